"""A run on one page: how it learnt, what its experts do, what it is worth as capacity falls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.assignment import read_experts
from vmoe.calibration import calibration_error, nll, reliability
from vmoe.data.pipeline import ImageSet, evaluation_batches
from vmoe.drawing.charts import Line, heat_map, line_chart, percent
from vmoe.drawing.page import Section, page
from vmoe.drawing.patches import image_uri, patch_picture
from vmoe.encoder import block_name
from vmoe.errors import UserError
from vmoe.inference import AS_TRAINED, Choices, chosen_model
from vmoe.layers.patches import patch_grid
from vmoe.metrics import JSONL, read_jsonl
from vmoe.outputs import Outputs, collect
from vmoe.routing import has_setting
from vmoe.specialisation import expert_class_counts
from vmoe.use.sweep import BUDGETS, CAPACITIES, settings, sweep
from vmoe.use.sweep_page import charts
from vmoe.use.trained import Trained, images_of

PICTURES = 6
LOW = (1.0, 0.5, 0.25)
"""Capacity factors of the pictures of dropped patches."""
LOST = "#d64550"
MOST_BLOCKS = 6
"""MoE blocks that have heat maps of their own; the last ones say the most about classes."""


def report(workdir: Path, trained: Trained, rounds: int, note: Callable[[str], None]) -> str:
    """The HTML page of a run.

    Args:
      workdir: has its metrics.
      trained: its model.
      rounds: timed passes of the capacity curve.
      note: told what is being done.

    Raises:
      UserError: if the metrics or the data cannot be read.
    """
    records = read_records(workdir)
    _, images = images_of(trained)
    note("predictions of the test images")
    outputs = collect(trained.config, trained.params, images)
    sections = [*curves(records)]
    if trained.config.model.moe is not None:
        note("experts")
        sections += [*load_over_time(records), *classes(trained, images), *dropped(trained, images)]
    sections += [*capacity_curve(trained, images, rounds, note), calibration(outputs)]
    return page(
        f"Run {workdir.name}", _subtitle(trained, len(outputs.labels)), _facts(trained, outputs),
        sections,
    )  # fmt: skip


def read_records(workdir: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.

    Raises:
      UserError: if there are none.
    """
    try:
        return list(read_jsonl(workdir / JSONL))
    except OSError as error:
        raise UserError(
            f"{workdir / JSONL} cannot be read: {error.strerror}; fix: the workdir of a run"
        ) from None


def curves(records: Sequence[dict[str, Any]]) -> Iterator[Section]:
    """Loss, accuracy, and what the routers did, over the steps."""
    drawn = [
        line_chart("loss", "step", [
            _course(records, "train", "main_loss", "training"),
            _course(records, "eval", "loss", "test"),
        ]),
        line_chart("accuracy", "step", [
            _course(records, "train", "accuracy", "training, one batch"),
            _course(records, "eval", "accuracy", "test"),
        ], show=percent),
    ]  # fmt: skip
    for figure, title, show in (
        ("dropped", "dropped choices", percent),
        ("gate_entropy", "entropy of the gates, over log E", "{:.2f}".format),
    ):
        names = _by_block(records, figure)
        if names:
            lines = [_course(records, "train", name, name.split("/")[0]) for name in names]
            drawn.append(line_chart(title, "step", lines, show=show))
    drawn.append(
        line_chart("learning rate", "step", [_course(records, "train", "learning_rate", "")])
    )
    yield Section("Training", "Training figures are of single batches.", tuple(drawn))


def load_over_time(records: Sequence[dict[str, Any]]) -> Iterator[Section]:
    """Each expert's share of the load at every logged step."""
    maps = []
    for name in _by_block(records, "load")[-MOST_BLOCKS:]:
        own = [r for r in records if name in r]
        shares = np.array([r[name] for r in own]).T
        steps = [str(r["step"]) for r in own]
        title = f"{name.split('/')[0]}: expert by step"
        most = 2.0 / len(shares)
        maps.append(heat_map(title, shares, _numbers(len(shares)), steps, most=most, show=percent))
    if maps:
        text = (
            "Share of a batch's served choices that each expert got: an even load is half of the "
            "full colour everywhere, an expert nobody chooses stays blank."
        )
        yield Section("Expert load over time", text, tuple(maps))


def classes(trained: Trained, images: ImageSet) -> Iterator[Section]:
    """Which classes' patches go to which expert, by MoE block."""
    try:
        counts = expert_class_counts(trained.config, trained.params, images)
    except UserError:
        return  # tokens choose no experts with this router: there is nothing to draw
    maps = []
    for block, table in [*counts.items()][-MOST_BLOCKS:]:
        shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1.0)
        rows, columns = _class_names(images, len(shares)), _numbers(shares.shape[1])
        maps.append(heat_map(f"{block}: class by expert", shares, rows, columns, show=percent))
    text = (
        "Each row is a class of test images: which experts serve its patches, of all that found a "
        "place. Rows that look alike mean that "
        "the block routes by something else than the class, such as the place or the stroke."
    )
    yield Section("Experts and classes", text, tuple(maps))


def dropped(trained: Trained, images: ImageSet) -> Iterator[Section]:
    """Test images with the patches that no expert sees, as the capacity falls."""
    config = trained.config
    moe = config.model.moe
    if moe is None or not has_setting(moe.router, "capacity_factor", "batch_priority"):
        return
    batch = next(
        iter(evaluation_batches(images, -(-PICTURES // moe.group_images) * moe.group_images))
    )
    rows, columns = patch_grid(*trained.image_shape[:2], config.model.patch_size)
    count = min(PICTURES, int(batch["mask"].sum()))
    uris = [image_uri(image, *config.data.value_range) for image in batch["images"][:count]]
    side = 132
    clear = [[("#000", 0.0)] * columns] * rows
    parts = ["".join(patch_picture(uri, clear, side=side) for uri in uris)]
    names = ["as it is"]
    for factor in LOW:
        seen = _seen(trained, batch, Choices(capacity=factor, batch_priority=True))
        patches = seen[:count, -rows * columns :].reshape(count, rows, columns)
        fills = [[[(LOST, 0.0 if p else 0.6) for p in row] for row in own] for own in patches]
        parts.append(
            "".join(patch_picture(u, f, side=side) for u, f in zip(uris, fills, strict=True))
        )
        names.append(f"capacity {factor:g}: {np.mean(~patches):.0%} of the patches dropped")
    strips = tuple(
        f'<p>{name}</p><div class="strip">{part}</div>'
        for name, part in zip(names, parts, strict=True)
    )
    text = (
        f"Red: patches that no expert of {block_name(max(moe.layers))} sees, with batch priority; "
        f"the images of a group of {moe.group_images} share its experts' buffers."
    )
    yield Section("Patches dropped at low capacity", text, strips)


def capacity_curve(
    trained: Trained, images: ImageSet, rounds: int, note: Callable[[str], None]
) -> Iterator[Section]:
    """Accuracy against capacity, multiply-adds and time."""
    choose = partial(settings, base=AS_TRAINED, capacities=CAPACITIES, budgets=BUDGETS)
    if len(choose(trained.config.model)) == 1:
        return
    rows = sweep([trained], images, choose, rounds, note)
    text = (
        "The same weights with less room: batch priority serves the largest gates first, token "
        "order whoever comes first, a budget the share of tokens asked for."
    )
    yield Section("Capacity and budget", text, tuple(charts(rows)))


def calibration(outputs: Outputs) -> Section:
    """How often the model is right when it says it is so sure."""
    bins = reliability(outputs.p, outputs.labels)
    used = bins[bins[:, 0] > 0]
    perfect = Line("as sure as right", [(0.0, 0.0), (1.0, 1.0)], dashed=True)
    found = Line("this model", [(float(c), float(a)) for _, c, a in used], marks=True)
    share = Line("", [(float(c), float(s)) for s, c, _ in used], marks=True)
    text = (
        f"Images in {len(bins)} bins of confidence; calibration error "
        f"{calibration_error(outputs.p, outputs.labels):.3f}. Above the dashed line the model is "
        "right more often than it says."
    )
    return Section(
        "Calibration", text,
        (line_chart("accuracy", "confidence", [found, perfect], show=percent),
         line_chart("share of the images", "confidence", [share], show=percent)),
    )  # fmt: skip


def _seen(trained: Trained, batch: dict[str, np.ndarray], choices: Choices) -> np.ndarray:
    """bool[B, T]: whether any expert of the last MoE block saw a token, of whatever member."""
    config = trained.config.model
    chosen_model(config, choices)
    found = read_experts(
        config, choices.program, trained.params, jnp.asarray(batch["images"]),
        jnp.asarray(batch["mask"]), choices.served,
    )  # fmt: skip
    *_, last = found.values()
    seen = np.asarray(last).reshape(len(batch["images"]), -1, *last.shape[1:]) > 0
    return seen.any(axis=(1, 3))


def _by_block(records: Sequence[dict[str, Any]], figure: str) -> list[str]:
    """The names encoderblock_N/FIGURE that are in the records, in the order of the blocks."""
    names = {name for r in records for name in r if name.endswith(f"/{figure}")}
    return sorted(names, key=lambda name: int(name.split("/")[0].rpartition("_")[2]))


def _course(records: Sequence[dict[str, Any]], kind: str, name: str, label: str) -> Line:
    points = [(r["step"], r[name]) for r in records if r["kind"] == kind and name in r]
    return Line(label, points, marks=len(points) < 3)


def _class_names(images: ImageSet, count: int) -> list[str]:
    return [*images.class_names] or _numbers(count)


def _numbers(count: int) -> list[str]:
    return [str(n) for n in range(count)]


def _subtitle(trained: Trained, count: int) -> str:
    moe = trained.config.model.moe
    kind = "a dense ViT"
    if moe is not None:
        kind = (
            f"{moe.num_experts} experts in blocks {', '.join(map(str, sorted(moe.layers)))}, "
            f"router {moe.router.name}"
        )
    return f"{trained.config.data.name}, {kind}; step {trained.step}; {count} test images"


def _facts(trained: Trained, outputs: Outputs) -> dict[str, str]:
    weights = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    return {
        "test accuracy": f"{outputs.accuracy:.2%}",
        "test loss (NLL)": f"{nll(outputs.p, outputs.labels):.4f}",
        "calibration error": f"{calibration_error(outputs.p, outputs.labels):.3f}",
        "weights": f"{weights:,}",
    }
