"""shard on whole layers: same meaning at every stage, the fewest moves, and what is refused."""

import collections
import functools

import jax
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError, ScheduleError
from moegen.experts import mlp
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.text import format_program
from moegen.ir.types import placement_of
from moegen.ir.verify import verify
from moegen.passes.canonicalize import canonicalize
from moegen.passes.choose_format import choose_format
from moegen.passes.fuse import fuse
from moegen.passes.layout import MeshAxes, make_layout
from moegen.passes.reassociate import reassociate
from moegen.passes.rematerialize import rematerialize
from moegen.passes.shard import shard
from moegen.routers import noisy_top_k
from tests.moegen.programs import random_inputs, traced

OWNERS = {"x": "layer", "key": "layer", "w": "router"}
RULES = {"data": "G", "expert": "G E", "fsdp": "G D", "model": "F"}


@functools.cache
def joint(experts=4, groups=8, hidden=4):
    """Noisy top-k with an MLP, differentiated: G=8, S=5, D=4, E=4, F=4."""
    layer = mg.compile(noisy_top_k.bind(k=2, load_loss_weight=0.1), mlp, mg.Schedule(target="cpu"))
    x = jax.ShapeDtypeStruct((groups, 5, 4), np.float32)
    lowered = layer.lower(x, key=jax.random.key(0), experts=experts, hidden=hidden)
    return lowered.stages["differentiate"]


def sharded(program, rules=None, **sizes):
    rules = {a: tuple((rules or RULES)[a].split()) for a in sizes}
    mesh = MeshAxes(tuple(sizes.items()), tuple(rules.items()))
    owners = [OWNERS.get(v.name, "expert") for v in program.inputs]
    return verify(shard(program, make_layout(program, mesh, owners)))


def moves(program):
    return collections.Counter(
        op.name for op in program.ops
        if op.name in ("all_to_all", "all_gather", "reduce_scatter", "psum", "take_part")
    )  # fmt: skip


MESHES = (
    {"data": 2, "expert": 2, "model": 2},
    {"fsdp": 2, "expert": 4},
    {"model": 4, "fsdp": 2, "data": 2, "expert": 2},
)


@pytest.mark.parametrize("sizes, form", [(MESHES[0], "slots"), (MESHES[2], "onehot")])
def test_the_meaning_is_the_same_at_every_stage(sizes, form):
    program = joint()
    placed = sharded(program, **sizes)
    assert parse(format_program(placed)) == placed
    lowered = verify(fuse(canonicalize(choose_format(placed, form))))
    got, want = (interpret(p, *random_inputs(program)) for p in (lowered, program))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, 2e-5, 2e-6), got, want)


def test_rows_are_exchanged_twice_each_way_and_every_gradient_is_summed_once():
    found = moves(sharded(joint(), data=2, expert=2))
    assert found == {"all_to_all": 4, "psum": 5}  # d_w, d_w1, d_b1, d_w2, d_b2


def test_full_sharding_gathers_weights_and_scatters_their_gradients():
    placed = sharded(joint(), fsdp=2, data=2)
    found = moves(placed)
    assert found["all_to_all"] == 0
    assert found["reduce_scatter"] == 3  # w1, w2, b2 have D
    gathered = [op for op in placed.ops if op.name == "all_gather"]
    again = [op.inputs[0].name for op in gathered if op.attr.get("again")]
    assert sorted(again) == ["w1", "w2"]  # the backward does not keep whole weights
    assert sorted(o.inputs[0].name for o in gathered) == ["b2", "w1", "w1", "w2", "w2"]


def test_data_parallel_only_sums_gradients():
    assert moves(sharded(joint(), data=8)) == {"psum": 5}


def test_a_residual_owes_no_sum():
    """The backward is another function: what it reads of the forward is an array of JAX."""
    for sizes in MESHES:
        lowered = sharded(joint(), **sizes)
        forward = mg.runtime.stages.partition(lowered)
        assert not any(placement_of(v.type).partial for v in forward.residuals)


def test_what_is_computed_again_is_gathered_again():
    """save="least" on a mesh: what is kept and what the barrier holds back have their places."""
    program = reassociate(joint(), "least")
    placed = canonicalize(choose_format(sharded(program, fsdp=2, expert=2, model=2), "slots"))
    least = verify(fuse(rematerialize(placed, "least")))
    got, want = (interpret(p, *random_inputs(program)) for p in (least, joint()))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, 2e-5, 2e-6), got, want)


def test_fewer_experts_than_devices_are_on_each():
    program = joint(experts=2)
    layout = make_layout(
        program, MeshAxes((("expert", 4),), (("expert", ("G", "E")),)),
        [OWNERS.get(v.name, "expert") for v in program.inputs],
    )  # fmt: skip
    assert layout.experts == ()
    assert layout.notes == ("E=2 is less than the 4 devices of expert: each has all",)
    assert moves(verify(shard(program, layout)))["all_to_all"] == 0


def test_uneven_sizes_are_refused():
    with pytest.raises(LoweringError, match="E=6 has no 4 equal parts for the mesh axes expert"):
        sharded(joint(experts=6), expert=4)
    with pytest.raises(LoweringError, match="F=6 has no 4 equal parts") as caught:
        sharded(joint(hidden=6), model=4)
    assert caught.value.fix == "give the axes 3 device(s), or make F a multiple of 4"
    with pytest.raises(LoweringError, match="G=6 has no 4 equal parts"):
        sharded(joint(groups=6), data=4)


def test_rules_must_split_something():
    with pytest.raises(LoweringError, match='axis model splits "H", which is no dim'):
        sharded(joint(), {"model": "H"}, model=2)
    with pytest.raises(LoweringError, match="axis model would split nothing"):
        sharded(joint(), {"model": "S"}, model=2)


@pytest.mark.parametrize("sizes", [{"data": 2, "expert": 2, "model": 2}, {"data": 4}], ids=str)
def test_sorted_rows_mean_the_same_on_a_mesh(sizes):
    program = joint()
    lowered = choose_format(sharded(program, **sizes), "sorted", 2)
    lowered = verify(fuse(canonicalize(lowered)))
    assert parse(format_program(lowered)) == lowered
    swaps = [op for op in lowered.ops if op.name == "swap_parts"]
    assert len(swaps) == (5 if "expert" in sizes else 0)  # sizes, and rows twice each way
    got, want = (interpret(p, *random_inputs(program)) for p in (lowered, program))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, 2e-5, 2e-6), got, want)


def on(shape, names, **options):
    auto = (jax.sharding.AxisType.Auto,) * len(names)
    return mg.Schedule(mesh=jax.make_mesh(shape, names, axis_types=auto), **options)


def test_schedules_with_a_mesh_are_frozen_keys():
    one = on((1, 1), ("data", "model"), axes={"model": "F"})
    assert one == on((1, 1), ("data", "model"))
    assert hash(one) == hash(on((1, 1), ("data", "model"), axes={"data": "G"}))
    assert one.axes == (("data", ("G",)), ("model", ("F",)))


def test_schedules_say_what_every_axis_splits():
    with pytest.raises(ScheduleError, match="nothing says what the mesh axis pipe splits"):
        on((1,), ("pipe",))
    with pytest.raises(ScheduleError, match='axes="dat" is unknown'):
        on((1,), ("data",), axes={"dat": "G"})
    with pytest.raises(ScheduleError, match="axes are given and no mesh"):
        mg.Schedule(axes={"data": "G"})
    with pytest.raises(ScheduleError, match="the mesh axis data is explicit, not automatic"):
        mg.Schedule(mesh=jax.make_mesh((1,), ("data",)))


def test_without_a_mesh_nothing_changes():
    program = traced().program
    assert shard(program, None) is program
