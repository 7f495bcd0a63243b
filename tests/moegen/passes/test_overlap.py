"""overlap: the meaning stays, parts do not wait for each other, what cannot be cut is refused."""

import jax
import pytest

from moegen import Schedule, compile, experts, routers
from moegen.errors import LoweringError, ScheduleError
from moegen.tune.chunks import Overlapped, chunks_for, overlapped
from moegen.tune.target import TARGETS
from tests.moegen.programs import assert_same_meaning

AUTO = jax.sharding.AxisType.Auto


def lowered(router=routers.noisy_top_k, dims=(8, 16, 8, 8, 32), dtype="float32", **schedule):
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "expert"), axis_types=(AUTO, AUTO))
    settings = {"format": "slots", "target": "cpu", "mesh": mesh, **schedule}
    groups, tokens, width, count, hidden = dims
    layer = compile(router, experts.mlp, Schedule(**settings))
    x = jax.ShapeDtypeStruct((groups, tokens, width), dtype)
    return layer.lower(x, key=jax.random.key(0), experts=count, hidden=hidden)


@pytest.mark.parametrize("format", ["slots", "onehot"])
def test_the_meaning_is_kept(format):
    stages = lowered(dims=(8, 4, 4, 4, 8), format=format, overlap=2).stages
    before, after = stages["choose_format"], stages["overlap"]
    assert_same_meaning(before, after)


def test_no_chunk_waits_for_another_before_they_are_joined():
    program = lowered(overlap=4).stages["overlap"]
    definitions = program.definitions()
    returns = [op for op in program.ops if op.name == "all_to_all" and op.attr["join"] == "E"]
    assert len(returns) == 4 * 2
    for op in returns:
        seen, waiting = set(), [op.inputs[0].name]
        while waiting:
            if (made := definitions.get(waiting.pop())) is not None and made not in seen:
                seen.add(made)
                waiting += [v.name for v in made.inputs]
        assert not any(made.name == "concat" for made in seen)


def test_the_source_shows_every_chunk():
    source = lowered(overlap=2).source()
    assert "xe_x_0 = jax.lax.all_to_all(xe_0" in source
    assert "xe_x_1 = jax.lax.all_to_all(xe_1" in source


@pytest.mark.parametrize(
    "settings", [{"overlap": 3}, {"overlap": 2, "format": "sorted"}, {"overlap": 2, "mesh": None}]
)
def test_what_cannot_be_cut_is_refused(settings):
    with pytest.raises(LoweringError, match="equal chunks could be made of"):
        lowered(**settings)


@pytest.mark.parametrize("overlap", [0, "many"])
def test_a_schedule_holds_a_number_or_auto(overlap):
    with pytest.raises(ScheduleError, match="overlap="):
        Schedule(overlap=overlap)


def test_chunks_save_what_the_shorter_of_both_takes_and_cost_starts():
    parts = Overlapped(moving=4.0, counting=6.0, again=0.0)
    assert parts.seconds(1) == 10.0
    assert parts.seconds(4) == 10.0 / 4 + 6.0 * 3 / 4
    assert Overlapped(4.0, 6.0, again=5.0).seconds(2) > 10.0


def test_the_cost_model_cuts_a_large_exchange_and_leaves_a_small_one():
    """Of a large layer exchange and products take about as long; a small one only waits."""
    target = TARGETS["tpu_v5e"]
    large = lowered(dims=(32, 2048, 1024, 8, 4096), dtype="bfloat16", target="tpu_v5e")
    small = lowered(target="tpu_v5e")
    assert chunks_for(large.stages["choose_format"], "auto", target) > 1
    assert chunks_for(small.stages["choose_format"], "auto", target) == 1
    parts = overlapped(large.stages["choose_format"], target)
    assert 0 < parts.again < parts.moving < parts.seconds(1)


def test_auto_leaves_what_does_not_travel_in_slots():
    assert lowered(overlap="auto", format="sorted", target="tpu_v5e").choice.format == "sorted"
