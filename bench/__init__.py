"""Benchmarks: each suite is one module with `add_arguments`, `run` and a one-line docstring."""
