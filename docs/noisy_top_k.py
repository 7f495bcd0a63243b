"""The router and expert of the README: V-MoE's noisy top-k with batch priority."""

from __future__ import annotations

import moegen as mg


@mg.router
def noisy_top_k(
    x: mg.f32["S D"],
    w: mg.f32["D E"],
    key: mg.Key,
    *,
    k: int = 2,
    noise_std: float = 1.0,
    capacity_factor: float = 1.05,
):
    """Noisy top-k token choice with batch priority (arXiv:2106.05974)."""
    logits = mg.dot(x, w, over="D")
    noisy = logits + mg.normal(key, like=logits) * (noise_std / mg.size("E"))
    gates = mg.softmax(noisy, over="E")
    weight, expert = mg.top_k(gates, k, over="E")
    route = mg.assign(expert, weight, priority="gate", capacity=mg.capacity(k, capacity_factor))
    importance = mg.cv2(mg.sum(mg.softmax(logits, over="E"), over="S"), over="E")
    return route, {"importance": importance}


@mg.expert
def mlp(x: mg.f32["C D"], w1: mg.f32["D F"], w2: mg.f32["F D"]):
    """Two dense layers with GELU between."""
    return mg.dot(mg.gelu(mg.dot(x, w1, over="D")), w2, over="F")
