"""The dense parts of a vision transformer: each file has one layer's `init_*` and its function."""
