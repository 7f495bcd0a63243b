"""Grouped products by the kernels of Pallas Triton."""

from __future__ import annotations

from moegen.backends.grouped.pallas import pallas_kernel
from moegen.kernels.grouped_dot import pallas_triton

PALLAS_TRITON = pallas_kernel(
    "pallas_triton",
    pallas_triton.grouped_dot_triton,
    pallas_triton.grouped_outer_triton,
    (pallas_triton,),
)
