"""Soft MoE and Expert Choice against token choice.

Arms soft (16 experts of one slot for each image) and expert_choice (each expert takes 17 of a
group's 128 tokens) against vmoe_k1, whose experts have 17 slots too. Soft has 0.5 % more
multiply-adds.

Primary, one each: accuracy(soft) - accuracy(vmoe_k1), accuracy(expert_choice) - accuracy(vmoe_k1).
Secondary: NLL, Brier and expected calibration error.

Source: arXiv:2308.00951 (Soft MoE), arXiv:2202.09368 (Expert Choice).
"""

from collections.abc import Iterator

from bench.papers import arms, between
from bench.papers.jobs import Job
from bench.papers.protocol import Settings
from bench.papers.scores import Comparison
from bench.papers.store import Store

ARMS = ("vmoe_k1", "expert_choice", "soft")
PAIRS = (("expert_choice", "vmoe_k1"), ("soft", "vmoe_k1"))
PRIMARY = {
    (PAIRS[0], "accuracy"): "routers: expert choice",
    (PAIRS[1], "accuracy"): "routers: soft",
}
WANTED = ("accuracy", "NLL", "Brier", "ECE")


def jobs(store: Store, data: arms.Data, settings: Settings) -> Iterator[Job]:
    """The runs that are missing."""
    return between.jobs(ARMS, store, data, settings)


def comparisons(store: Store, data: arms.Data, settings: Settings) -> list[Comparison]:
    """Where the runs are there."""
    return between.comparisons(PAIRS, PRIMARY, WANTED, store, data, settings)


def table(store: Store, data: arms.Data, settings: Settings) -> list[list[str]]:
    """The arms' means."""
    return between.table(ARMS, WANTED, store, data, settings)
