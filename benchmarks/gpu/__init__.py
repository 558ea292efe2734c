"""Everything that needs a GPU: build, tests, compute-sanitizer and benchmarks."""
