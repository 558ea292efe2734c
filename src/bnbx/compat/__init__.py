"""bnbx for programs written for bitsandbytes: ``import bnbx.compat.bitsandbytes`` before they run.

``python -m bnbx.compat program.py`` does it for a program that is not to be changed. Importing this
package alone registers nothing.
"""

from __future__ import annotations

from bnbx.compat.alias import COMPATIBLE_VERSION, install

__all__ = ["COMPATIBLE_VERSION", "install"]
