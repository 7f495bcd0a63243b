"""Weights in files: one flat dict of lazy arrays, whichever format they are stored in."""
