"""Collectives read from compiled programs: lines that XLA for TPUs wrote, cut short."""

import pytest

from moegen.errors import TuneError
from moegen.tune.hlo import collectives, totals
from moegen.tune.network import Collective

MESH = (("data", 2), ("expert", 4))
PROGRAM = """HloModule jit_step, is_scheduled=true

%body.1 (p: (s32[], f32[64])) -> (s32[], f32[64]) {{
  %all-reduce.2 = f32[64]{{0}} all-reduce(%g), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), \
to_apply=%add
}}

%async_computation (p: bf16[8,4]) -> bf16[8,4] {{
  ROOT %all-to-all.9 = bf16[8,4]{{1,0}} all-to-all(%p), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}
}}

ENTRY %main.1 (a: bf16[8,4]) -> bf16[8,4] {{
{lines}
}}
"""
CASES = {
    "%x = bf16[4,1,136,1408]{3,2,1,0:T(8,128)(2,1)} all-to-all(%f), channel_id=1, "
    "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}": Collective(
        "all_to_all", ("expert",), 4, 4 * 136 * 1408 * 2
    ),
    "%x = (f32[16]{0}, bf16[2,8]{1,0}, /*index=2*/f32[]) all-reduce(%a, %b, %c), channel_id=1, "
    "replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%add": Collective(
        "all_reduce", ("data", "expert"), 8, 64 + 32 + 4
    ),
    "%x = f32[4,1,8]{2,1,0} all-gather(%f), replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], "
    "device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}": Collective(
        "all_gather", ("expert",), 4, 32
    ),
    "%x = (f32[8]{0}, f32[16]{0}) all-gather-start(%f), replica_groups=[4,2]<=[2,4]T(1,0)": (
        Collective("all_gather", ("data",), 2, 32)
    ),
    "%x = f32[4]{0} reduce-scatter(%f), replica_groups=[2,4]<=[8], to_apply=%add": Collective(
        "reduce_scatter", ("expert",), 4, 64
    ),
    "%x = f32[8]{0} collective-permute(%f), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}": (
        Collective("permute", ("expert",), 2, 32)
    ),
    "%x = ((bf16[8,4]{1,0}), bf16[8,4]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) "
    "all-to-all-start(%f), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}": Collective(
        "all_to_all", ("expert",), 4, 64
    ),
    "%x = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%f), "
    "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}": Collective("permute", ("expert",), 2, 32),
    "%x = f32[8]{0} all-reduce(%f), replica_groups={}, to_apply=%add": Collective(
        "all_reduce", ("data", "expert"), 8, 32
    ),
}


def of_lines(*lines: str) -> list[Collective]:
    return collectives(PROGRAM.format(lines="\n".join(f"  {line}" for line in lines)), MESH)


@pytest.mark.parametrize("line", CASES)
def test_one_line(line):
    assert of_lines(line) == [CASES[line]]


def test_in_a_loop_and_under_way_while_others_run():
    loop = (
        "%w = (s32[], f32[64]) while(%t), condition=%c.1, body=%body.1, "
        'backend_config={"known_trip_count":{"n":"12"}}'
    )
    under_way = "%s = ((bf16[8,4]), bf16[8,4]) async-start(%a), calls=%async_computation"
    found = of_lines(loop, under_way, "%d = bf16[8,4] async-done(%s), calls=%async_computation")
    assert found[0] == Collective("all_reduce", ("data",), 2, 256, 12)
    assert found[1:] == [Collective("all_to_all", ("expert",), 4, 64)]


def test_ragged_rows_count_as_many_as_a_device_has_not_as_may_arrive():
    rows, none = "%rows = bf16[128,64]{1,0} fusion(%a)", "%none = bf16[320,64]{1,0} broadcast(%z)"
    groups = "replica_groups={{0,1,2,3},{4,5,6,7}}"
    sent = f"%x = bf16[320,64]{{1,0}} ragged-all-to-all(%rows, %none, %i, %s, %o, %r), {groups}"
    back = f"%y = bf16[128,64]{{1,0}} ragged-all-to-all(%x, %rows, %i, %s, %o, %r), {groups}"
    wanted = Collective("all_to_all", ("expert",), 4, 128 * 64 * 2)
    assert of_lines(rows, none, sent, back) == [wanted] * 2
    assert of_lines(sent) == [Collective("all_to_all", ("expert",), 4, 320 * 64 * 2)]


def test_what_moves_nothing_is_left_out():
    assert of_lines("%x = f32[8]{0} all-reduce(%f), replica_groups={{0},{1}}, to_apply=%a") == []
    assert of_lines("%x = f32[8]{0} add(%all-reduce.1, %b)") == []


def test_totals_have_the_most_bytes_first():
    small, large = Collective("all_reduce", ("data",), 2, 8, 3), Collective("permute", (), 2, 99)
    assert list(totals([small, large, small]).items()) == [
        (("permute", ()), (99, 1)),
        (("all_reduce", ("data",)), (48, 6)),
    ]


def test_a_program_for_more_devices_is_refused():
    with pytest.raises(TuneError, match="more devices than the mesh"):
        of_lines("%x = f32[8] all-reduce(%f), replica_groups={{0,9}}, to_apply=%add")
