"""Where the package is."""

from __future__ import annotations

import sys
from pathlib import Path

import bnbx

PACKAGE_DIR = Path(bnbx.__file__).parent
DYNAMIC_LIBRARY_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
