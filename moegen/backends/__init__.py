"""Backends: programs as Python source. What is emitted is what runs."""
