"""Passes: each takes a program and returns one. See `pipeline` for their order."""
