"""The fitted rates against observed times: regret on the part that was kept from the fit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from moegen.errors import TuneError
from moegen.tune import fit, tokamax
from moegen.tune.fit_rates import fit_kernel
from moegen.tune.judge import judge, report
from moegen.tune.kernel_model import kernels_of
from moegen.tune.observations import Observation, held_out, read_table, write_table
from moegen.tune.problem import DIRECTIONS, Problem
from moegen.tune.target import TARGETS

TABLE = Path(__file__).parents[2] / "data" / "tuning" / "grouped_dot.tsv"
DEVICES = ("b200", "h100", "tpu7x", "tpu_v5e", "tpu_v5p", "tpu_v6e")


@pytest.fixture(scope="module")
def observed():
    return read_table(TABLE)


@pytest.fixture(scope="module")
def verdicts(observed):
    fitted = {device: kernels_of(device) for device in DEVICES}
    return {(v.target, v.direction, v.held_out): v for v in judge(observed, fitted)}


def test_a_third_is_held_out_and_no_shape_is_on_both_sides(observed):
    problems = {o.problem for o in observed}
    kept = {p for p in problems if held_out(p)}
    assert 0.25 < len(kept) / len(problems) < 0.42
    shapes = [{(p.rows, p.k, p.n, p.groups) for p in side} for side in (kept, problems - kept)]
    assert not shapes[0] & shapes[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("side", [False, True])
def test_median_regret_of_the_kernel_is_below_a_tenth(verdicts, device, direction, side):
    verdict = verdicts[device, direction, side]
    if (device, direction, side) == ("b200", "drhs", True):
        assert verdict.regrets == ()  # one kernel only ran these
    else:
        assert np.median(verdict.regrets) <= 0.10


def test_mean_regret_is_less_than_that_of_the_best_single_kernel(verdicts):
    """The median alone says little: on most devices one kernel wins nearly always."""
    ours = [r for v in verdicts.values() for r in v.regrets]
    single = [r for v in verdicts.values() for r in v.single]
    assert len(ours) > 300
    assert np.mean(ours) < 0.5 * np.mean(single)


# Median error of the predicted seconds at observed tiles, of all directions together, held out.
ERRORS = {
    "b200": 0.06,
    "h100": 0.09,
    "tpu7x": 0.09,
    "tpu_v5e": 0.30,
    "tpu_v5p": 0.08,
    "tpu_v6e": 0.15,
}


@pytest.mark.parametrize("device", DEVICES)
def test_predicted_seconds_come_out_on_problems_never_seen(verdicts, device):
    errors = [e for d in DIRECTIONS for e in verdicts[device, d, True].errors]
    assert np.median(errors) <= ERRORS[device]


def test_committed_rates_are_those_of_the_fit(observed):
    own = [
        o
        for o in observed
        if (o.target, o.kernel) == ("h100", "mosaic_gpu") and not held_out(o.problem)
    ]
    fitted = fit_kernel(TARGETS["h100"], "mosaic_gpu", own)
    committed = kernels_of("h100")["mosaic_gpu"]
    assert (fitted.tiles, fitted.directions) == (committed.tiles, committed.directions)
    for name, value in dataclasses.asdict(fitted.rates).items():
        assert value == pytest.approx(getattr(committed.rates, name), rel=0.05), name


def test_a_fit_recovers_the_rates_that_made_the_times():
    target = TARGETS["h100"]
    made = dataclasses.replace(
        kernels_of("h100")["triton"], tiles=((128.0, 128.0, 32.0, 4.0),), dense=()
    )
    problems = [
        Problem(d, rows, k, n, 64)
        for d in DIRECTIONS
        for rows in (8192, 65536)
        for k, n in ((512, 4096), (2048, 1024))
    ]
    (tile,) = made.tiles
    seconds = [float(fit_seconds(p, target, made, tile)) for p in problems]
    times = [
        Observation("h100", "triton", p, "same", tile, s)
        for p, s in zip(problems, seconds, strict=True)
    ]
    fitted = fit_kernel(target, "triton", times)
    again = [float(fit_seconds(p, target, fitted, tile)) for p in problems]
    assert again == pytest.approx(seconds, rel=0.1)


def fit_seconds(problem, target, kernel, tile):
    from moegen.tune.kernel_model import predict

    return predict(problem, target, kernel, tile)


def test_report_has_a_line_per_device_direction_and_part(verdicts):
    lines = report(verdicts.values()).splitlines()
    assert len(lines) == 1 + len(DEVICES) * 3 * 2
    assert lines[0].split()[:5] == ["device", "dir", "part", "cases", "regret"]
    (line,) = [x for x in lines if x.startswith("b200     drhs  held-out")]
    assert line.split()[3:5] == ["0", "-"]


def test_a_table_is_read_as_written(tmp_path, observed):
    path = tmp_path / "deep" / "table.tsv"
    write_table(path, observed[:20], "where\nfrom")
    assert read_table(path) == observed[:20]
    assert path.read_text().startswith("# where\n# from\ntarget\tkernel\t")
    assert [p.name for p in path.parent.iterdir()] == ["table.tsv"]


def test_broken_tables_are_named(tmp_path):
    path = tmp_path / "t.tsv"
    with pytest.raises(TuneError, match=r"t\.tsv: No such file"):
        read_table(path)
    path.write_text("head\nh100\ttriton\n")
    with pytest.raises(TuneError, match=r"t\.tsv, line 2: not an observation"):
        read_table(path)
    with pytest.raises(TuneError, match="no tokamax tables"):
        tokamax.read_tokamax(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(TuneError, match="cannot be written"):
        write_table(blocked / "t.tsv", [], "")


def call(left, right, contracted, sizes, **more):
    dims = {"dot_dimension_numbers": [[[contracted[0]], [contracted[1]]], [[], []]]}
    return json.dumps(
        {
            "lhs": f"bf16[{left}]",
            "rhs": f"bf16[{right}]",
            "group_sizes": sizes,
            "ragged_dot_dimension_numbers": dims,
            "preferred_element_type": None,
            "return_residuals": False,
        }
        | more
    )


def timed(*times, **config):
    return {json.dumps(config): {"evaluation_times_ms": list(times)}}


def test_tokamax_tables_are_read(tmp_path):
    table = {
        call("8,4", "2,4,6", (1, 1), [8, 0]): timed(3, 1, 2, tile_m=128, tile_k=4, tile_n=6),
        call("8,6", "2,4,6", (1, 2), {"num_groups": 2}): {},
        call("8,4", "8,6", (0, 0), {"num_groups": 2}): timed(5),
        call("8,4", "2,4,6", (1, 1), [4, 4], return_residuals=True): timed(1),
        call("8,4", "2,4,6", (1, 1), [4, 4], lhs="f32[8,4]"): timed(1),
    }
    (tmp_path / "tpu7x").mkdir()
    (tmp_path / "tpu7x" / "pallas_mosaic_tpu_ragged_dot.json").write_text(json.dumps(table))
    drhs, fwd = tokamax.read_tokamax(tmp_path)
    assert fwd == Observation(
        "tpu7x", "pallas_tpu", Problem("fwd", 8, 4, 6, 2, 1), "same", (128, 4, 6), 2e-3
    )
    assert drhs.problem == Problem("drhs", 8, 4, 6, 2)
    assert (drhs.tile, drhs.seconds) == ((), 5e-3)
    (tmp_path / "tpu7x" / "pallas_mosaic_tpu_ragged_dot.json").write_text("{")
    with pytest.raises(TuneError, match="not a tokamax table"):
        tokamax.read_tokamax(tmp_path)


def test_tiles_stated_in_another_order_are_turned(tmp_path):
    turned = timed(1, tile_m=256, tile_k=7168, tile_n=512)  # 7168 is contracted, that is n
    table = {call("4096,7168", "8,512,7168", (1, 2), {"num_groups": 8}): turned}
    (tmp_path / "tpu7x").mkdir()
    (tmp_path / "tpu7x" / "pallas_mosaic_tpu_ragged_dot.json").write_text(json.dumps(table))
    (found,) = tokamax.read_tokamax(tmp_path)
    assert found.problem == Problem("dlhs", 4096, 512, 7168, 8)
    assert found.tile == (256, 512, 7168)


def test_main_prints_the_report_and_writes_rates(tmp_path, capsys, observed):
    small = [o for o in observed if (o.target, o.kernel) in {("h100", "xla"), ("h100", "triton")}]
    table = tmp_path / "t.tsv"
    write_table(table, small, "")
    rates = tmp_path / "rates.json"
    flags.FLAGS.mark_as_parsed()
    with flagsaver.as_parsed(write_rates=str(rates)):
        fit.main(["fit", str(table)])
    assert capsys.readouterr().out.splitlines()[1].startswith("h100     fwd   fit")
    written = json.loads(rates.read_text())
    assert "Apache-2.0" in written["source"]
    assert set(written["devices"]["h100"]) == {"xla", "triton"}
