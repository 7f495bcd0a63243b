"""Configs that run: each file's docstring gives the command, the time and the expected score."""
