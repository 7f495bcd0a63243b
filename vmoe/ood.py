"""Telling images of other data sets apart by the model's confidence."""

from __future__ import annotations

import numpy as np


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that an image of the test set scores higher than one from outside, ties half.

    Args:
      inside: f64[N], scores such as the largest probability.
      outside: f64[M].
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    return float((ranks.mean() - (len(inside) + 1) / 2) / len(outside))


def fpr95(inside: np.ndarray, outside: np.ndarray) -> float:
    """Share of images from outside that pass the highest threshold that 95 % of the test set pass.

    Source: arXiv:1706.02690, section 4.
    """
    kept = int(np.ceil(0.95 * len(inside)))
    threshold = np.sort(inside)[len(inside) - kept]
    return float(np.mean(outside >= threshold))
