"""Routers from papers, one file each, written in the DSL."""

from moegen.routers.noisy_top_k import noisy_top_k

__all__ = ["noisy_top_k"]
