"""The cost of a program on a mesh: one device's own part of the work, and what its moves take."""

import jax
import pytest

from moegen import Schedule, compile, experts, routers
from moegen.tune.cost import program_cost
from moegen.tune.network import Box, Collective
from moegen.tune.target import TARGETS


def lowered(format: str = "slots", **axes: int):
    mesh = None
    if axes:
        auto = (jax.sharding.AxisType.Auto,) * len(axes)
        mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=auto)
    schedule = Schedule(format=format, target="tpu_v5p", mesh=mesh)
    layer = compile(routers.switch, experts.mlp, schedule)
    x = jax.ShapeDtypeStruct((8, 16, 8), "float32")
    return layer.lower(x, key=jax.random.key(0), experts=8, hidden=32)


def test_a_device_of_a_mesh_does_its_part():
    alone, shared = lowered().cost(), lowered(data=2, expert=4).cost()
    assert alone.moving == 0.0
    assert shared.moving > 0.0
    assert shared.flops == pytest.approx(alone.flops / 8, rel=0.05)


def test_rows_are_exchanged_twice_forward_and_twice_backward():
    program = lowered(data=2, expert=4)
    capacity = program.program.sizes["C"]
    rows = Collective("all_to_all", ("expert",), 4, 8 * capacity * 8 * 4)
    assert [one for one in program.collectives() if one.kind == "all_to_all"] == [rows] * 4
    assert program.collectives(forward=True) == [rows] * 2


@pytest.mark.parametrize("exchange", ["blocks", "ragged"])
def test_sorted_rows_are_counted_as_they_leave(exchange):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("expert",), axis_types=auto)
    schedule = Schedule(format="sorted", exchange=exchange, target="tpu_v5p", mesh=mesh)
    layer = compile(routers.switch, experts.mlp, schedule)
    x = jax.ShapeDtypeStruct((8, 16, 8), "float32")
    found = layer.lower(x, key=jax.random.key(0), experts=8, hidden=32).collectives(forward=True)
    exchanged = [one for one in found if one.kind == "all_to_all" and one.nbytes > 8 * 8 * 4]
    assert len(exchanged) == 2
    assert len({one.nbytes for one in exchanged}) == 1


def test_the_box_of_an_axis_decides_what_its_moves_take():
    program, target = lowered(expert=8).program, TARGETS["tpu_v5p"]
    ring = program_cost(program, target).moving
    assert program_cost(program, target, {"expert": Box((8,), (False,))}).moving > ring
    assert program_cost(program, target, {"expert": Box((2, 4), (True, True))}).moving < ring
