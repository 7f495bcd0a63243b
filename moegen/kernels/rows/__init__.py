"""Routing numbers and row moves."""
