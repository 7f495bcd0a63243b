"""bench/papers: a whole tiny run, its pairing, its resumption, and its flags."""

import struct
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import papers
from bench.__main__ import main
from bench.papers import arms, bpr, predict, protocol
from bench.papers.jobs import run_all
from bench.papers.protocol import QUICK
from bench.papers.store import Store
from vmoe import model
from vmoe.model_config import ModelConfig
from vmoe.state import init_state, make_train_step

TINY = replace(
    QUICK, seeds=(0, 1), learning_rates=(0.001,), train_images=32, held_out=16, together=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """IDX files with a few random images, as Fashion-MNIST's are named."""
    path = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(0)
    for name, count in (("train", 48), ("t10k", 32)):
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        header = b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape)
        (path / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = b"\0\0\x08\x01" + struct.pack(">I", count)
        (path / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return str(path)


def shrunk(config: ModelConfig) -> ModelConfig:
    """The arm in little: two blocks, the second sparse where any was."""
    moe = config.moe
    if moe is not None:
        group = min(4, moe.group_images)
        moe = replace(moe, num_experts=4, layers=(1,), group_images=group, mlp_dim=None)
    return replace(config, width=8, depth=2, mlp_dim=16, num_heads=2, moe=moe)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The bpr claim, run once for this file, with a small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(protocol.ARMS, "vmoe_k1", shrunk(protocol.ARMS["vmoe_k1"]))
        for name, few in (("LOW", (0.3,)), ("CAPACITIES", (0.3, 2.0)), ("FLIPS", (0.3,))):
            patch.setattr(bpr, name, few)  # each capacity is a program to compile
        data = arms.load(folder, TINY)
        store = Store(tmp_path_factory.mktemp("out"), asdict(TINY))
        assert run_all(papers.missing({"bpr": bpr}, store, data, TINY))
        yield store, data


def test_a_claim_runs_and_is_not_run_again(finished):
    store, data = finished
    assert papers.missing({"bpr": bpr}, store, data, TINY) == []
    section = papers.section(bpr, store, data, TINY)
    assert section.missing == 0
    assert len(section.table) == 1 + len(bpr.CAPACITIES)
    assert section.table[1][-3:] != ["", "", ""]  # flips are counted at this capacity
    assert section.table[2][-3:] == ["", "", ""]
    assert {len(curve) for curve in section.curves.values()} == {len(bpr.CAPACITIES)}
    low, at_two = section.comparisons[0], section.comparisons[-1]
    assert low.primary == protocol.FAMILY[0]
    assert at_two.name == "bpr - vanilla, C = 2"
    first, second = (store.read(bpr.curve_name(o, 1))["points"] for o in ("bpr", "vanilla"))
    wanted = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(first, second, strict=True)]
    assert low.differences[1] == pytest.approx(np.mean(wanted[: len(bpr.LOW)]))
    for a, b in zip(first, second, strict=True):  # who is dropped changes, not how many
        assert a["dropped"] == pytest.approx(b["dropped"], abs=0.02)
    assert first[0]["dropped"] > 0.5 > 0.2 > first[1]["dropped"]


def test_an_interrupted_claim_goes_on(finished):
    store, data = finished
    path = store.folder / f"{bpr.curve_name('random', 1)}.json"
    before = path.read_text(encoding="utf-8")
    path.unlink()
    (job,) = papers.missing({"bpr": bpr}, store, data, TINY)
    assert papers.section(bpr, store, data, TINY).missing == 1
    assert papers.section(bpr, store, data, TINY).comparisons == []
    assert run_all([job])
    assert path.read_text(encoding="utf-8") == before


def test_seeds_together_are_the_trainer_alone(finished):
    store, data = finished
    config = protocol.train_config("vmoe_k1", 0.001, 1, TINY)
    state, step = init_state(config, data.train.shape), make_train_step(config)
    batches = arms.training_batches(data.train, config.data, 1)
    for _ in range(config.steps):
        state, _ = step(state, next(batches))
    together = arms.params_of("vmoe_k1", 1, store)
    alone = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, wanted), found in zip(alone, jax.tree.leaves(together), strict=True):
        # Attention does not depend on the keys' bias: its gradient is rounding noise, which adam
        # raises to steps of the learning rate.
        atol = 2e-3 if "key" in str(path) and "bias" in str(path) else 1e-5
        np.testing.assert_allclose(found, wanted, atol=atol, err_msg=str(path))


def test_what_a_run_keeps_is_what_it_predicts(finished):
    store, data = finished
    config = protocol.train_config("vmoe_k1", 0.001, 0, TINY)
    params = arms.params_of("vmoe_k1", 0, store)
    apply = jax.jit(lambda p, x: model.apply(config.model, p, x)[0])
    logits = apply(params, jnp.asarray(data.test.images[:16]))
    kept = store.arrays(arms.run_name("vmoe_k1", 0))["log_probabilities"]
    np.testing.assert_allclose(kept[:16], jax.nn.log_softmax(logits), atol=1e-5)


def test_a_random_order_that_is_token_order_is_vanilla(finished):
    store, data = finished
    config = protocol.train_config("vmoe_k1", 0.001, 0, TINY)
    params, images = arms.params_of("vmoe_k1", 0, store), jnp.asarray(data.test.images[:16])
    falling = -jnp.broadcast_to(jnp.arange(64.0), (4, 64))
    wanted, dropped = predict.classify(bpr.served(config, 0.3, "vanilla"), params, images, None)
    found, other = predict.classify(
        bpr.served(config, 0.3, "random"), params, images, [{"priority": falling}]
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(dropped, other, atol=1e-6)
    assert dropped > 0.1


def test_the_better_learning_rate_is_taken_and_the_smaller_at_a_tie(tmp_path):
    settings = replace(TINY, learning_rates=(0.003, 0.001, 0.01))
    store = Store(tmp_path, {})
    for rate, score in ((0.003, 0.7), (0.001, 0.7), (0.01, 0.6)):
        store.write(arms.trial_name("dense", rate), {"accuracy": score})
    assert arms.learning_rate("dense", store, settings) == 0.001


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--data=absent"], "error: absent/train-images-idx3-ubyte.gz does not exist"),
        (["--data={folder}"], "error: --data: {folder} has 48 training images, the protocol"),
    ],
)
def test_bad_flags_are_one_line_and_write_nothing(flags, message, folder, tmp_path, capsys):
    flags = [flag.format(folder=folder) for flag in flags]
    assert main(["papers", f"--out={tmp_path / 'out'}", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message.format(folder=folder))
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_all_claims_run_to_their_end(folder, tmp_path, capsys, monkeypatch):
    for name, config in protocol.ARMS.items():
        monkeypatch.setitem(protocol.ARMS, name, shrunk(config))
    for name, few in (("LOW", (0.3,)), ("CAPACITIES", (0.3, 2.0)), ("FLIPS", (0.3,))):
        monkeypatch.setattr(bpr, name, few)
    monkeypatch.setattr(papers, "QUICK", TINY)
    monkeypatch.setattr("bench.papers.e3.OUTSIDE_IMAGES", 16)
    monkeypatch.setattr("bench.papers.speed.ROUNDS", 3)
    page = tmp_path / "papers.md"
    page.write_text(f"{papers.page.BEGIN}{papers.page.END}", encoding="utf-8")
    command = ["papers", "--quick", f"--data={folder}", f"--out={tmp_path / 'out'}"]
    assert main([*command, f"--page={page}"]) == 0
    printed = capsys.readouterr().out
    assert "Not finished" not in printed
    for hypothesis in protocol.FAMILY:
        assert f"Primary, {hypothesis}: " in printed
    for claim in papers.CLAIMS:
        assert (tmp_path / "papers" / f"{claim}-accuracy.svg").is_file()
    assert main([*command, "--report-only"]) == 0
    assert capsys.readouterr().out.strip() in page.read_text(encoding="utf-8")
