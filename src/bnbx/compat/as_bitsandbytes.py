"""bnbx's modules under names with the word bitsandbytes in them, for ``__module__`` of classes.

``bnbx.compat.as_bitsandbytes.optim.adamw`` is ``bnbx.optim.adamw``. Importing it registers no
alias: it is what unpickling an object that was pickled beside the alias does.
"""

from __future__ import annotations

import sys

from bnbx.compat.alias import SHARED
from bnbx.compat.finder import ModuleAlias

__path__: list[str] = []  # a package, whose modules the finder has

sys.meta_path.insert(0, ModuleAlias(__name__, "bnbx", SHARED | {"autograd"}))
