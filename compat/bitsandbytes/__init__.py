"""bnbx under the name bitsandbytes: importing this package registers bnbx in its place."""

import sys

# An import returns what is in sys.modules at its end. This module leaves, so that bnbx does not
# take it for another bitsandbytes.
del sys.modules[__name__]

import bnbx.compat.bitsandbytes  # noqa: E402, F401
