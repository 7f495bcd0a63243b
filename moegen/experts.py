"""Experts from papers, written in the DSL."""

from __future__ import annotations

import moegen as mg


@mg.expert
def mlp(
    x: mg.floating["C D"],
    w1: mg.floating["D F"],
    b1: mg.floating["F"],
    w2: mg.floating["F D"],
    b2: mg.floating["D"],
    key: mg.Key = None,
    *,
    dropout: float = 0.0,
):
    """Two dense layers with GELU between, and dropout after each as in ViT.

    Dropout needs a key; without one the call is deterministic. Source: arXiv:2010.11929.
    """
    rate = 0.0 if key is None else dropout
    h = mg.dropout(key, mg.gelu(mg.dot(x, w1, over="D") + b1), rate)
    return mg.dropout(key, mg.dot(h, w2, over="F") + b2, rate)


@mg.expert
def gated(
    x: mg.floating["C D"],
    w_gate: mg.floating["D F"],
    w_up: mg.floating["D F"],
    w_down: mg.floating["F D"],
):
    """A gated linear unit with SiLU and no biases (SwiGLU). Source: arXiv:2002.05202."""
    gate = mg.silu(mg.dot(x, w_gate, over="D"))
    return mg.dot(gate * mg.dot(x, w_up, over="D"), w_down, over="F")
