"""send_tokens: who is sent is chosen by what it takes; the meaning stays either way."""

import jax
import pytest

from moegen import Schedule, compile, experts, routers
from moegen.errors import LoweringError, ScheduleError
from tests.moegen.programs import assert_same_meaning

AUTO = jax.sharding.AxisType.Auto


def lowered(k=2, tokens=4, width=4, target="cpu", **settings):
    """A layer whose 16 experts are shared by 16 devices."""
    mesh = jax.sharding.AbstractMesh((16,), ("expert",), axis_types=(AUTO,))
    schedule = Schedule(**{"format": "slots", "mesh": mesh, "target": target, **settings})
    layer = compile(routers.noisy_top_k.bind(k=k), experts.mlp, schedule)
    x = jax.ShapeDtypeStruct((16, tokens, width), "float32")
    return layer.lower(x, key=jax.random.key(0), experts=16, hidden=width)


def kinds(found):
    return {one.kind for one in found.collectives(forward=True) if one.nbytes > 1 << 20}


@pytest.mark.parametrize("k, sent", [(1, {"all_to_all"}), (2, {"all_to_all"}),
                                     (8, {"all_gather", "reduce_scatter"})])  # fmt: skip
def test_on_a_torus_rows_are_sent_for_few_choices_and_tokens_for_many(k, sent):
    assert kinds(lowered(k=k, tokens=2048, width=512, target="tpu_v5e")) == sent


def test_behind_a_switch_rows_are_sent_for_as_many_choices_as_pay():
    assert kinds(lowered(k=8, tokens=2048, width=512, target="h100")) == {"all_to_all"}


def test_the_meaning_is_kept():
    stages = lowered(send="tokens").stages
    before, after = stages["choose_format"], stages["send_tokens"]
    assert_same_meaning(before, after)


def test_the_source_takes_a_device_own_slots():
    source = lowered(send="tokens").source()
    assert "own_slots(slot_all" in source
    assert "jax.lax.psum_scatter(" in source


def test_what_nothing_travels_for_is_refused():
    with pytest.raises(LoweringError, match="nothing travels in slots"):
        lowered(send="tokens", mesh=None)
    with pytest.raises(ScheduleError, match='send="row" is unknown'):
        Schedule(send="row")
