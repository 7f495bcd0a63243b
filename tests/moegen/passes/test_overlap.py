"""overlap: the meaning stays, parts do not wait for each other, what cannot be cut is refused."""

import jax
import pytest

from moegen import Schedule, compile, experts, routers
from moegen.errors import LoweringError, ScheduleError
from moegen.tune.chunks import Overlapped, chunks_for, estimates, overlapped
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


@pytest.mark.parametrize("overlap", [2, "ring"])
@pytest.mark.parametrize("format", ["slots", "onehot"])
def test_the_meaning_is_kept(format, overlap):
    stages = lowered(dims=(8, 4, 4, 4, 8), format=format, overlap=overlap).stages
    before, after = stages["choose_format"], stages["overlap"]
    assert_same_meaning(before, after)


@pytest.mark.parametrize("overlap, op, joins", [(4, "all_to_all", "concat"),
                                                ("ring", "ring_permute", "ring_join")])  # fmt: skip
def test_no_part_waits_for_another_before_they_are_joined(overlap, op, joins):
    program = lowered(overlap=overlap).stages["overlap"]
    definitions = program.definitions()
    returns = [one for one in program.ops if one.name == op and one.attr["join"] == "E"]
    assert len(returns) == 4 * 2
    for one in returns:
        seen, waiting = set(), [one.inputs[0].name]
        while waiting:
            if (made := definitions.get(waiting.pop())) is not None and made not in seen:
                seen.add(made)
                waiting += [v.name for v in made.inputs]
        assert not any(made.name == joins for made in seen)


def test_the_source_shows_every_device_of_a_ring():
    source = lowered(overlap="ring").source()
    assert "xe_x_0 = xe_0 #" in " ".join(source.split())
    for n, by in ((1, 1), (2, 3), (3, 2)):
        assert f'xe_{n} = part_at(xe, "expert", 0, by={by})' in source
        pairs = f"[(n, (n + {by}) % 4) for n in range(4)]"
        assert f'xe_x_{n} = jax.lax.ppermute(xe_{n}, "expert", {pairs})' in source


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


def test_a_ring_needs_an_exchange_of_slots():
    with pytest.raises(LoweringError, match="could go round a ring"):
        lowered(overlap="ring", format="sorted")


@pytest.mark.parametrize("overlap", [0, "many"])
def test_a_schedule_holds_a_number_or_auto(overlap):
    with pytest.raises(ScheduleError, match="overlap="):
        Schedule(overlap=overlap)


def test_chunks_save_what_the_shorter_of_both_takes_and_cost_starts():
    parts = Overlapped(moving=4.0, counting=6.0, again=0.0)
    assert parts.seconds(1) == 10.0
    assert parts.seconds(4) == 10.0 / 4 + 6.0 * 3 / 4
    assert Overlapped(4.0, 6.0, again=5.0).seconds(2) > 10.0
    assert parts.ring_seconds(4) == 6.0
    assert Overlapped(moving=6.0, counting=4.0, again=0.5).ring_seconds(4) == 1.0 + 6.0 + 1.5


def test_the_cost_model_cuts_a_large_exchange_and_leaves_a_small_one():
    """Of a large layer exchange and products take about as long; a small one only waits."""
    target = TARGETS["tpu_v5e"]
    large = lowered(dims=(32, 2048, 1024, 8, 4096), dtype="bfloat16", target="tpu_v5e")
    small = lowered(target="tpu_v5e")
    assert chunks_for(large.stages["choose_format"], "auto", target) != 1
    assert chunks_for(small.stages["choose_format"], "auto", target) == 1
    parts = overlapped(large.stages["choose_format"], target)
    assert 0 < parts.again < parts.moving < parts.seconds(1)


def on_a_ring(k, devices=4, hidden=4096, target="tpu_v5e", **schedule):
    """Two experts on each of the devices of one ring, 2048 tokens of width 1024 on each."""
    mesh = jax.sharding.AbstractMesh((devices,), ("expert",), axis_types=(AUTO,))
    settings = {"format": "slots", "mesh": mesh, "target": target, "overlap": "auto", **schedule}
    layer = compile(routers.noisy_top_k.bind(k=k), experts.mlp, Schedule(**settings))
    x = jax.ShapeDtypeStruct((devices, 2048, 1024), "bfloat16")
    return layer.lower(x, key=jax.random.key(0), experts=2 * devices, hidden=hidden)


@pytest.mark.parametrize(
    "k, chosen",
    [(1, "all_to_all"), (2, "all_to_all"), (4, "ring_permute"), (8, "ring_permute")],
)
def test_an_exchange_for_few_choices_and_a_ring_for_many(k, chosen):
    """Few rows take less time than reading the experts' weights once more for each device."""
    ops = {op.name for op in on_a_ring(k).stages["overlap"].ops}
    assert ops & {"all_to_all", "ring_permute"} == {chosen}


def test_chunks_are_chosen_only_where_the_compiler_lets_them_overlap():
    gpu = on_a_ring(8, devices=16, target="h100").stages["choose_format"]
    assert chunks_for(gpu, "auto", TARGETS["h100"]) == 2
    assert set(estimates(gpu, TARGETS["tpu_v5e"])) == {1, "ring"}


def test_behind_a_switch_the_exchange_is_too_short_for_a_ring():
    assert "ring_permute" not in {op.name for op in on_a_ring(4, target="h100").program.ops}


@pytest.mark.parametrize("k, kinds", [(1, {"all_to_all"}), (8, {"all_gather", "reduce_scatter"})])
def test_what_overlaps_is_weighed_against_sending_all_tokens(k, kinds):
    """On a ring of 16 the rows of 8 choices take longer than what could hide them."""
    found = on_a_ring(k, devices=16, hidden=1024).collectives(forward=True)
    assert {one.kind for one in found if one.nbytes > 1 << 20} == kinds


def test_rows_are_sent_where_their_overlap_is_asked_for():
    kinds = {c.kind for c in on_a_ring(8, devices=16, overlap="ring").collectives()}
    assert "permute" in kinds


def test_auto_leaves_what_does_not_travel_in_slots():
    assert lowered(overlap="auto", format="sorted", target="tpu_v5e").choice.format == "sorted"


@pytest.mark.parametrize("overlap", [2, "ring"])
def test_auto_takes_a_format_that_can_overlap_as_asked(overlap):
    sizes = (8, 64, 8, 32, 64)
    router = routers.noisy_top_k.bind(k=1, noise_std=0.0, dropless=True)
    assert lowered(router, sizes, format="auto").choice.name == "sorted"
    choice = lowered(router, sizes, format="auto", overlap=overlap).choice
    assert choice.format in ("slots", "onehot")
    (refused,) = [c.refused for c in choice.candidates if c.name == "sorted"]
    assert refused.startswith("@noisy_top_k_mlp: no exchange of C=")
