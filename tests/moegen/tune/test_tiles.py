"""Tuning: spaces with their reasons, tables that are never silently wrong, choices in use."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen import catalogue, cli, experts, routers
from moegen.errors import TuneError
from moegen.kernels.grouped_dot.tiles_tpu import rests
from moegen.tune import search, tiles, tuned
from moegen.tune.clock import arrays, call_of
from moegen.tune.product import Product, grouped_products, loads
from moegen.tune.target import TARGETS
from moegen.tune.tile_space import Candidate, space_of, untuned_tile
from moegen.tune.tiles import ESTIMATED, MEASURED, Tuned, read_tiles, source_hash, write_tiles
from moegen.tune.tpu_cycles import Steps

V5E, CPU = TARGETS["tpu_v5e"], TARGETS["cpu"]
BF16 = ("bfloat16", "bfloat16")
DOT = Product("dot", 2048, 256, 512, 8, BF16)
OUTER = Product("outer", 2048, 256, 512, 8, ("bfloat16",))


def entry(product, tile, **changes):
    best = Candidate("pallas_tpu", tile)
    of = source_hash("tpu", product.kind)
    made = Tuned(
        product.key, "tpu_v5e", ESTIMATED, of, "jax 1, libtpu 2", best.kernel, tile, "cycles",
        {str(best): 5.0},
    )  # fmt: skip
    return replace(made, **changes)


def layer(**schedule):
    made = mg.Schedule(format="sorted", target="tpu_v5e", **schedule)
    x = jax.ShapeDtypeStruct((1, 1024, 256), jnp.bfloat16)
    router = routers.noisy_top_k.bind(capacity_factor=2.0)
    built = mg.compile(router, experts.mlp, made)
    params = built.abstract_params(x, experts=8, hidden=512)
    return built.lower(params, x)


def test_every_tile_is_legal_or_left_out_for_a_reason():
    for product in (DOT, OUTER):
        space = space_of(product, V5E)
        assert space.legal[0].tile == untuned_tile(product, V5E)
        assert not set(space.legal) & space.excluded.keys()
        assert len(set(space.legal)) == len(space.legal)
    reasons = space_of(OUTER, V5E).excluded
    assert reasons[Candidate("pallas_tpu", (256, 512, 64))].startswith("the MXU takes as long")
    reasons = space_of(DOT, V5E).excluded
    tall = Candidate("pallas_tpu", (512, *rests(1024)))
    assert reasons[tall] == "1024 rows are more than twice an expert's mean load, 256"
    deep = space_of(replace(DOT, depth=2**15, width=1024), TARGETS["tpu_v4"])
    assert any("MiB of VMEM" in reason for reason in deep.excluded.values())
    assert space_of(DOT, TARGETS["h100"]).legal == ()


def test_a_load_stands_for_the_rows():
    assert DOT.load == 256
    assert replace(DOT, rows=3000).key == DOT.key != replace(DOT, rows=4096).key
    assert replace(DOT, transposed=True).key != DOT.key != replace(DOT, block=8).key


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "tiles.json"
    one, other = entry(DOT, (256, *rests(128))), entry(OUTER, (256, 256, 128))
    write_tiles(path, {t.key: t for t in (one, other)})
    assert read_tiles(path).entries == {one.key: one, other.key: other}
    assert read_tiles(tmp_path / "none").entries == {}
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9, "tiles": []}',
    '{"version": 1, "tiles": [{}]}', '{"version": 1, "tiles": [3]}'])  # fmt: skip
def test_a_damaged_table_is_refused_by_name_and_kept(tmp_path, text, capsys):
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(TuneError, match=r"tiles\.json is no table of tiles"):
        read_tiles(path)
    with pytest.raises(TuneError, match=r"tiles\.json"):
        layer(tuned=str(path))
    assert cli.main(["tune", "--shapes=64x8x16x2", f"--store={path}"]) == 2
    assert "is no table of tiles" in capsys.readouterr().err
    assert path.read_text() == text


def test_an_entry_counts_for_its_product_device_kernels_and_versions():
    def find(**changes):
        one = replace(entry(DOT, (256, *rests(128))), **changes)
        return tiles.Tiles("t", {one.key: one}).find(DOT, V5E, "some chip")

    assert find()[0].tile == (256, *rests(128))
    assert find(device="tpu_v6e") == (None, "")
    assert find(kernels="0")[1] == "t is of other kernels (0): not used"
    assert find(basis=MEASURED, device="TPU v5")[0] is None
    old = {"basis": MEASURED, "made_with": "jax 0.1"}
    one = entry(DOT, (256, *rests(128)), device="chip", **old)
    assert "measured with jax 0.1" in tiles.Tiles("t", {"": one}).find(DOT, V5E, "chip")[1]
    fresh = replace(one, made_with=tiles.versions())
    assert tiles.Tiles("t", {"": fresh}).find(DOT, V5E, "chip")[0] == fresh
    assert "does not fit" in find(tile=(512, 4096))[1]
    assert tiles.Tiles("t").find(DOT, V5E, "chip") == (None, "")


def test_a_layer_takes_the_tiles_of_a_table_and_says_so(tmp_path):
    path = tmp_path / "mine.json"
    products = grouped_products(layer().program)
    assert {p.kind for p in products} == {"dot", "outer"}
    chosen = {p: space_of(p, V5E).legal[-1].tile for p in products}
    entries = [entry(p, tile) for p, tile in chosen.items()]
    write_tiles(path, {t.key: t for t in entries})
    lowered = layer(tuned=str(path))
    ops = [op for op in lowered.program.ops if op.attr.get("kernel") == "pallas_tpu"]
    assert {op.attr["tile"] for op in ops} == set(chosen.values())
    assert {op.attr["source"] for op in ops} == {ESTIMATED}
    assert "// tuned: " in lowered.explain()
    assert "by mine.json" in lowered.explain()


def test_a_table_of_other_kernels_is_said_and_not_used(tmp_path):
    path = tmp_path / "old.json"
    untuned = {op.name: op.attr.get("tile") for op in layer().program.ops}
    products = grouped_products(layer().program)
    entries = [entry(p, space_of(p, V5E).legal[-1].tile, kernels="0") for p in products]
    write_tiles(path, {t.key: t for t in entries})
    lowered = layer(tuned=str(path))
    assert {op.name: op.attr.get("tile") for op in lowered.program.ops} == untuned
    assert "old.json is of other kernels (0): not used" in lowered.explain()


def test_the_shipped_table_is_estimated_and_fits():
    for one in tiles.shipped().entries.values():
        assert one.basis == ESTIMATED
        assert one.device in ("tpu_v5e", "tpu_v6e")
        assert "libtpu" in one.made_with
        assert min(one.costs.values()) == one.costs[str(Candidate(one.kernel, one.tile))]


@pytest.mark.nightly
def test_the_shipped_table_is_of_the_kernels_as_they_are():
    """If not, `moegen tune` has to make it again: docs/kernels.md says how."""
    for one in tiles.shipped().entries.values():
        kind = "outer" if one.product.startswith("outer") else "dot"
        assert one.kernels == source_hash("tpu", kind), one.product


def told(_):
    pass


def test_a_search_by_the_compiler_compiles_each_height_once_and_keeps_the_best(
    tmp_path, monkeypatch
):
    asked = []

    def estimate_steps(target, blocks, told):
        asked.append(blocks)
        flat = {h: 100.0 + h for h in rests(1024)}
        return {n: "too large" if n == "512" else Steps(flat, dict.fromkeys(flat, 1.0))
                for n in blocks}  # fmt: skip

    monkeypatch.setattr(search, "basis_for", lambda target: ESTIMATED)
    monkeypatch.setattr(search, "estimate_steps", estimate_steps)
    store = tmp_path / "t.json"
    said = []
    ((found, new),) = search.tune([DOT, DOT], V5E, store, said.append)
    assert new
    assert said[0] == f"[1/1] {DOT.key}: {len(space_of(DOT, V5E).legal)} may run it"
    assert "left out: 1024 rows are more than twice" in said[1]
    assert found.costs[str(Candidate(found.kernel, found.tile))] == min(found.costs.values())
    assert found.tile[0] == 256  # the widest that was not refused
    assert not any(name.startswith("pallas_tpu 512 ") for name in found.costs)
    assert [(f, n) for f, n in search.tune([DOT], V5E, store, told)] == [(found, False)]
    assert len(asked) == 1


def test_what_is_done_stays_done_when_a_search_is_interrupted(tmp_path, monkeypatch):
    def seconds_of(product, candidate, cases):
        if product.kind == "outer":
            raise KeyboardInterrupt
        return {"runs": 2.0, "blocks": 1.0}[candidate.kernel]

    monkeypatch.setattr(search, "seconds_of", seconds_of)
    store = tmp_path / "t.json"
    with pytest.raises(KeyboardInterrupt):
        list(search.tune([DOT, OUTER], CPU, store, told))
    (kept,) = read_tiles(store).entries.values()
    assert (kept.product, kept.kernel, kept.basis) == (DOT.key, "blocks", MEASURED)
    assert kept.costs == {"runs": 2e3, "blocks": 1e3}
    assert cli.main(["tune", "--shapes=2048x256x512x8", f"--store={store}"]) == 130


def test_without_a_compiler_the_model_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "libtpu_folder", lambda: None)
    assert search.basis_for(V5E) == search.MODELLED
    for product in (DOT, replace(DOT, transposed=True), OUTER):
        ((found, _),) = search.tune([product], V5E, tmp_path / "t.json", told)
        assert found.basis == search.MODELLED
        assert all(math.isfinite(cost) for cost in found.costs.values())
        assert len(found.costs) == len(space_of(product, V5E).legal)


@pytest.mark.parametrize("kernel", ["runs", "blocks", "pallas_tpu"])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_timed_is_the_product(kernel, transposed):
    product = Product("dot", 48, 16, 24, 3, ("float32",) * 3, 1, transposed, block=8)
    candidate = Candidate(kernel, (24, 16) if kernel == "pallas_tpu" else ())
    sizes = np.array([16, 8, 24])
    rows, weights, read = arrays(product, 48)
    made = call_of(product, candidate, interpret=True)(rows, weights, read, jnp.asarray(sizes))
    owner = np.repeat(np.arange(3), sizes)
    spec = "nd,nfd->nf" if transposed else "nd,ndf->nf"
    want = np.einsum(spec, rows, np.asarray(weights)[owner]) + read
    np.testing.assert_allclose(made[0] if isinstance(made, tuple) else made, want, atol=1e-4)


def test_a_cpu_is_measured_once(tmp_path, capsys):
    store = tmp_path / "cpu.json"
    arguments = ["tune", "--shapes=16x4x8x2", "--dtype=f32", "--target=cpu", f"--store={store}"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert first.out.count("measured at") == len(read_tiles(store).entries) == 3
    assert first.err.count(" ms\n") == 6
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count("; known") == 3


def test_a_layer_on_a_cpu_takes_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "seconds_of", lambda p, c, cases: float(c.kernel == "runs"))
    store = tmp_path / "cpu.json"
    arguments = ["noisy_top_k", "--format=sorted", "--target=cpu"]
    assert cli.main(["tune", *arguments, f"--store={store}"]) == 0
    lowered = layer(tuned=str(store))
    assert not lowered.tiles  # it is of another device
    schedule = mg.Schedule(format="sorted", target="cpu", tuned=str(store))
    found = catalogue.lower_example(routers.noisy_top_k, experts.mlp, schedule, {}, key=True)
    kernels = [op.attr["kernel"] for op in found.program.ops if op.attr.get("source") == MEASURED]
    assert kernels == ["blocks"] * len(kernels) != []


@pytest.mark.parametrize("arguments,message", [
    (["--shapes=1x2x3"], '"1x2x3" is not ROWSxWIDTHxHIDDENxEXPERTS'),
    ([], "tune takes a router or --shapes"),
    (["noisy_top_k", "--shapes=8x8x8x2"], "tune takes a router or --shapes"),
    (["--shapes=8x8x8x2", "--target=h100"], "no h100 here to measure on"),
    (["noisy_top_k", "--format=onehot"], "has no product with tiles"),
])  # fmt: skip
def test_bad_flags_are_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    store = tmp_path / "t.json"
    assert cli.main(["tune", *arguments, f"--store={store}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not store.exists()


def test_notes_are_said_once():
    table = tiles.Tiles("t", {"": entry(DOT, (256, *rests(128)), kernels="0")})
    asked = tuned.TunedTiles((table,))
    assert loads(10, [1, 1]).tolist() == [5, 5]
    asked._note("a")
    asked._note("a")
    assert asked.notes == ["a"]
