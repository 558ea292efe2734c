"""``python -m bitsandbytes``: what is installed and what runs where, as ``python -m bnbx`` says."""

from bnbx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
