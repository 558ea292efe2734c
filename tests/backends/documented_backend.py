"""The backend that docs/backends.md shows, on the device in Python; import it to register it."""

from __future__ import annotations

import re
from pathlib import Path

from . import python_device

DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"
BLOCK = re.search(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)[1]
assert f'"{python_device.NAME}"' in BLOCK
exec(compile(BLOCK, DOCUMENT, "exec"))  # noqa: S102 (our own document)
