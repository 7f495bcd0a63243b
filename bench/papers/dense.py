"""A V-MoE beats a dense ViT of equal FLOPs.

Arms dense, vmoe_k1 and vmoe_k2_half (two experts a token, of half the width) of the protocol: equal
in the multiply-adds that are executed, unused slots and routers included.

Primary: accuracy(vmoe_k1) - accuracy(dense). Secondary: the same for vmoe_k2_half; NLL and expected
calibration error (15 bins), as they are and after temperature scaling; Brier score.

Source: arXiv:2106.05974, section 3 (where it is JFT and 100 times the width).
"""

from collections.abc import Iterator

from bench.papers import arms, between
from bench.papers.jobs import Job
from bench.papers.protocol import Settings
from bench.papers.scores import SCORES, Comparison
from bench.papers.store import Store

ARMS = ("dense", "vmoe_k1", "vmoe_k2_half")
PAIRS = (("vmoe_k1", "dense"), ("vmoe_k2_half", "dense"))
PRIMARY = {(PAIRS[0], "accuracy"): "dense: accuracy"}


def jobs(store: Store, data: arms.Data, settings: Settings) -> Iterator[Job]:
    """The runs that are missing."""
    return between.jobs(ARMS, store, data, settings)


def comparisons(store: Store, data: arms.Data, settings: Settings) -> list[Comparison]:
    """Of all scores, where the runs are there."""
    return between.comparisons(PAIRS, PRIMARY, tuple(SCORES), store, data, settings)


def table(store: Store, data: arms.Data, settings: Settings) -> list[list[str]]:
    """The arms' means."""
    return between.table(ARMS, tuple(SCORES), store, data, settings)
