"""What is to be planned: a training config on a mesh of a slice of TPUs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from moegen import plan
from moegen.errors import MoegenError
from vmoe.config import OptimConfig, TrainConfig
from vmoe.errors import UserError
from vmoe.model_config import ModelConfig
from vmoe.overrides import load, with_overrides
from vmoe.sharding import AXES
from vmoe.variants import variant

RECIPE = "vmoe_15b"
"""The config that --model takes all from but the model, and the optimiser of smaller ones."""
BATCH = 4096
IMAGE = (224, 224, 3)


@dataclass(frozen=True)
class Request:
    """The flags of `vmoe plan`, as anything that JSON can hold.

    Attributes:
      flags: its own, by name.
      overrides: "--config.FIELD=VALUE" flags.
      image: height, width, channels; None: IMAGE.
    """

    flags: dict[str, str]
    overrides: list[str] = field(default_factory=list)
    image: Sequence[int] | None = None

    def need(self, flag: str, example: str) -> str:
        """The value of a flag.

        Raises:
          UserError: if it was not given.
        """
        if flag not in self.flags:
            raise UserError(f"--{flag} is missing; fix: for example --{flag}={example}")
        return self.flags[flag]


@dataclass(frozen=True)
class Asked:
    """A plan to make.

    Attributes:
      name: of the model, as it was given.
      config: of the run, its mesh included.
      topology: the slice.
      image: height, width, channels.
      whole_depth: the blocks of the model that was named, where --depth cut some off; else None.
    """

    name: str
    config: TrainConfig
    topology: plan.Topology
    image: tuple[int, int, int] = IMAGE
    whole_depth: int | None = None

    def on(self, mesh: tuple[tuple[str, int], ...]) -> Asked:
        """The same on another mesh.

        Raises:
          UserError: if the batch has no equal parts on it.
        """
        return replace(self, config=replace(self.config, mesh=mesh).validate())


def asked(given: Request) -> Asked:
    """Reads the flags of `vmoe plan`.

    Raises:
      UserError: names what is missing or does not fit, and the fix.
    """
    try:
        topology = plan.topology(given.need("topology", "v5p:8x8x8"))
    except MoegenError as error:
        raise UserError(f"{error.what}; fix: {error.fix}") from None
    mesh = _mesh(given, topology)
    name, config = _config(given)
    whole = None
    if "depth" in given.flags and config.model.depth != (depth := _number(given, "depth")):
        config, whole = replace(config, model=shallower(config.model, depth)), config.model.depth
    if "batch" in given.flags:
        config = _with_batch(config, _number(given, "batch"))
    config = with_overrides(replace(config, mesh=mesh), given.overrides).validate()
    height, width, channels = given.image or IMAGE
    return Asked(name, config, topology, (height, width, channels), whole)


def shallower(model: ModelConfig, depth: int) -> ModelConfig:
    """The same model with its first blocks only.

    Raises:
      UserError: if it has fewer, or no MoE block is among them.
    """
    if not 1 <= depth <= model.depth:
        raise UserError(f"--depth={depth}: the model has 1 to {model.depth} blocks; fix: fewer")
    moe = model.moe
    if moe is not None:
        layers = tuple(layer for layer in moe.layers if layer < depth)
        if not layers:
            raise UserError(
                f"--depth={depth} leaves no MoE block; fix: --depth={min(moe.layers) + 1} or more"
            )
        moe = replace(moe, layers=layers)
    return replace(model, depth=depth, moe=moe)


def _config(given: Request) -> tuple[str, TrainConfig]:
    if ("model" in given.flags) == ("config" in given.flags):
        raise UserError("give either --model or --config; fix: for example --model=V-MoE-15B")
    if "config" in given.flags:
        return given.flags["config"], load(given.flags["config"])
    return given.flags["model"], pretraining(given.flags["model"])


def pretraining(name: str) -> TrainConfig:
    """A published model as it is pre-trained: 15B's recipe, with Adam for the smaller ones.

    32 experts in every other block, bfloat16, blocks computed again, batches of 4096.

    Source: arXiv:2106.05974.
    """
    recipe = load(RECIPE)
    model = variant(
        name, num_classes=recipe.model.num_classes, head_bias_init=recipe.model.head_bias_init,
        dtype=recipe.model.dtype, remat=recipe.model.remat,
    )  # fmt: skip
    if "-15B" not in name:
        adam = OptimConfig(lr=recipe.optim.lr, clip_norm=1.0, schedule=recipe.optim.schedule)
        recipe = replace(recipe, optim=adam)
    return _with_batch(replace(recipe, model=model), BATCH)


def _with_batch(config: TrainConfig, batch: int) -> TrainConfig:
    data = replace(config.data, batch_size=batch, eval_batch_size=batch)
    return replace(config, data=data)


def _number(given: Request, flag: str) -> int:
    text = given.flags[flag]
    if not text.isdecimal() or not int(text):
        raise UserError(f"--{flag}={text} is no number; fix: 1 or more")
    return int(text)


def _mesh(given: Request, topology: plan.Topology) -> tuple[tuple[str, int], ...]:
    text = given.need("mesh", "data=16,expert=32")
    found = re.findall(r"(\w+)=([1-9]\d*)(?:,|$)", text)
    if ",".join("=".join(pair) for pair in found) != text:
        raise UserError(f"--mesh={text} is no list of AXIS=SIZE; fix: as in data=16,expert=32")
    mesh = tuple((axis, int(size)) for axis, size in found)
    for axis, _ in mesh:
        if axis not in AXES:
            raise UserError(f"--mesh={text}: no axis {axis}; fix: use {', '.join(AXES)}")
    devices = math.prod(size for _, size in mesh)
    if devices != topology.devices:
        raise UserError(
            f"--mesh={text} is of {devices} devices, {topology.name} has {topology.devices}; "
            "fix: sizes whose product that is"
        )
    return mesh
