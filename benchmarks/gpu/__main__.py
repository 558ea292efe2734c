"""``python benchmarks/gpu``."""

import sys
from pathlib import Path

# The package lies beside this file's folder, wherever Python was started.
sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.cli import main

main()
