"""Compiled bindings, one module per backend."""
