# cython: language_level=3, embedsignature=True
# cython: binding=False
"""The host's part of the backend for Metal, whose kernels are text that PyTorch compiles."""

include "metal_host.pxi"


def describe():
    """Return what the backend runs on."""
    return {"isa": "metal", "available_isas": ["metal"]}
