"""The analytic plan: it counts what the mesh changes, and knows other meshes."""

import math
from dataclasses import replace

import pytest

from moegen.plan import Collective
from tests.vmoe.tiny import CONFIG
from vmoe.plan.asked import Request, asked
from vmoe.plan.estimate import Work, estimate, others, seconds
from vmoe.sharding import IMAGE_AXES

SMALL = [
    "--config.model.depth=2", "--config.model.width=16", "--config.model.mlp_dim=32",
    "--config.model.num_heads=2", "--config.model.moe.layers=(1,)",
    "--config.model.num_classes=10",
]  # fmt: skip


def wanted(mesh: str, *overrides: str, **flags: str):
    given = {"model": "V-MoE-S/32", "topology": "v5e:2x4", "mesh": mesh, "batch": "64", **flags}
    return asked(Request(given, [*SMALL, *overrides]))


def test_all_devices_together_do_the_same_products():
    one = estimate(wanted("data=8")).work.flops
    assert estimate(wanted("data=2,expert=4")).work.flops == pytest.approx(one, rel=0.05)
    # The model axis shares out the experts' hidden units, and repeats all else.
    assert estimate(wanted("data=4,model=2")).work.flops > one


def test_experts_on_their_own_devices_hold_less_and_send_rows():
    spread, copied = estimate(wanted("expert=8")), estimate(wanted("data=8"))
    assert spread.state < copied.state
    kinds = {(one.kind, one.axes) for one in spread.work.collectives}
    assert ("all_to_all", ("expert",)) in kinds
    assert {one.axes for one in copied.work.collectives} == {("data",)}
    assert {"compute", "HBM", "expert"} == spread.seconds.keys()
    assert spread.step >= max(spread.seconds.values())


def test_collectives_take_as_long_as_each_of_them_often():
    made = wanted("expert=8")
    once = Collective("all_to_all", ("expert",), 8, 10**9)
    alone, often = (
        seconds(Work(0.0, 0.0, (replace(once, times=times),)), made)["expert"] for times in (1, 36)
    )
    assert often == pytest.approx(36 * alone)
    # 2x4 chips that close no ring: the cut through the longer side decides.
    assert alone == pytest.approx(1e9 * 4 / (4 * 5e10), rel=1e-3)


def test_blocks_that_are_computed_again_take_more_products_and_less_memory():
    again, kept = (
        estimate(wanted("data=8", f"--config.model.remat={remat}")) for remat in ("full", "none")
    )
    assert again.work.flops > kept.work.flops
    assert again.held < kept.held


def test_the_exchange_of_a_dense_model_is_its_gradients():
    given = {"model": "ViT-S/32", "topology": "v5e:2x4", "mesh": "data=8", "batch": "64"}
    moved = estimate(asked(Request(given, SMALL[:4]))).work.collectives
    assert [(one.kind, one.axes) for one in moved] == [("all_reduce", ("data",))]


def test_other_meshes_have_the_devices_and_even_parts():
    made = wanted("data=8")
    found = list(others(made))
    assert (("data", 2), ("expert", 4)) in found
    for mesh in found:
        assert math.prod(size for _, size in mesh) == 8
        parts = math.prod(size for axis, size in mesh if axis in IMAGE_AXES)
        assert made.config.data.batch_size % parts == 0
    assert list(others(replace(made, config=replace(CONFIG, model=made.config.model)))) == found
