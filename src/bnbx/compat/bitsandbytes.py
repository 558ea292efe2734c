"""Importing this module registers bnbx under the name bitsandbytes; it is that module then.

The line comes before anything that imports or looks for bitsandbytes, transformers for one::

    import bnbx.compat.bitsandbytes
"""

from __future__ import annotations

import sys

from bnbx.compat.alias import install

sys.modules[__name__] = install()
