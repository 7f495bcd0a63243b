"""Grouped products by the Pallas kernels for TPUs."""

from __future__ import annotations

from moegen.backends.grouped.pallas import pallas_kernel
from moegen.kernels.grouped_dot import (
    heights,
    pallas_tpu,
    pallas_tpu_gather,
    pallas_tpu_outer,
    results_tpu,
    visits,
    vmem,
    weights_tpu,
)

MODULES = (
    pallas_tpu,
    pallas_tpu_gather,
    pallas_tpu_outer,
    heights,
    results_tpu,
    visits,
    vmem,
    weights_tpu,
)
PALLAS_TPU = pallas_kernel(
    "pallas_tpu",
    pallas_tpu.grouped_dot_tpu,
    pallas_tpu_outer.grouped_outer_tpu,
    MODULES,
    gathered=pallas_tpu_gather.gathered_dot_tpu,
)
