"""``python benchmarks/quality_study``: see cli.py."""

import sys
from pathlib import Path

# Python puts this folder first; the package and what it shares with the others lie one above.
sys.path[0] = str(Path(__file__).parents[1])
sys.path.insert(1, str(Path(__file__).parents[2] / "examples"))

if __name__ == "__main__":
    from quality_study.cli import main

    main()
