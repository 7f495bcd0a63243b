"""Kernels: what runs. Each is a plain function of arrays and depends on JAX alone.

The emitter copies the functions a program needs into the program's source.
"""
