"""Grouped products by the Pallas kernels for Blackwell GPUs."""

from __future__ import annotations

from moegen.backends.grouped.pallas import pallas_kernel
from moegen.backends.grouped.pallas_gpu import respell
from moegen.kernels.grouped_dot import mosaic, pallas_tcgen05

PALLAS_TCGEN05 = pallas_kernel(
    "pallas_tcgen05",
    pallas_tcgen05.grouped_dot_tcgen05,
    pallas_tcgen05.grouped_outer_tcgen05,
    (pallas_tcgen05, mosaic),
    respell,
)
