"""What a training run is: typed, frozen settings, and the checks that hold between them."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from vmoe.errors import UserError
from vmoe.init_config import InitFromConfig
from vmoe.model_config import ModelConfig
from vmoe.sharding import AXES, IMAGE_AXES

DATASETS = ("digits", "idx", "npz", "folder", "tfrecord", "array_record", "tfds")
OPTIMIZERS = ("adam", "sgd", "adafactor")
LOSSES = ("softmax", "sigmoid")
SCHEDULES = (
    "constant",
    "warmup_exponential_decay",
    "warmup_cosine_decay",
    "warmup_linear_decay",
    "warmup_polynomial_decay",
    "rsqrt",
)


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are prepared, and how they are fed.

    Attributes:
      name: one of DATASETS: "digits", scikit-learn's handwritten digits; "idx", a folder of IDX
        files; "npz", one file of arrays; "folder", a subfolder for each class; "tfrecord" or
        "array_record", a folder of files of tf.train.Example; "tfds", TensorFlow Datasets.
      path: the folder or file; of tfds its data_dir; unused by digits.
      tfds_name: the data set of tfds, such as "cifar10:3.0.2".
      train_split, test_split: subfolders of folder, parts of file names, x_SPLIT of npz, splits
        such as "train[:99%]" of tfds; unused by digits and idx.
      keys: the features of an Example that hold the encoded image and the label.
      classes: how many; None: as many as the data has. For npz and Examples.
      class_names: one for each, for people to read; (): as the data calls them (the subfolders of
        folder, the label's names of tfds), else numbers.
      batch_size: images per training step.
      eval_batch_size: images per evaluation step; the last batch is padded and masked.
      train_ops, test_ops: what is done to an image, in order, by the names of vmoe.data.ops:
        (("inception_crop", 224), ("flip_lr",), ("randaugment", 2, 10)).
      channels: 1 for grey, 3 for RGB; None: RGB for image files, arrays as they are.
      value_range: the values of black and white.
      max_shift: training images are moved by up to this many pixels along each axis, at last.
      train_images: only the first so many training images; None for all.
      corrupt: "fatal": an image that cannot be read ends the run; "skip": it is named, counted
        and left out.
      threads: that read and prepare images; unused for arrays without operations.
      prefetch: batches made ahead.
    """

    name: str = "digits"
    path: str = ""
    tfds_name: str = ""
    train_split: str = "train"
    test_split: str = "test"
    keys: tuple[str, str] = ("image", "label")
    classes: int | None = None
    class_names: tuple[str, ...] = ()
    batch_size: int = 64
    eval_batch_size: int = 120
    train_ops: tuple[tuple[Any, ...], ...] = ()
    test_ops: tuple[tuple[Any, ...], ...] = ()
    channels: int | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    max_shift: int = 1
    train_images: int | None = None
    corrupt: str = "fatal"
    threads: int = 4
    prefetch: int = 2


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves between step 0 and the last one; its peak is optim.lr.

    Attributes:
      name: one of SCHEDULES.
      warmup_steps: steps of linear rise from 0.
      end_value: where the decay ends.
      decay_steps: last step of the decay, warmup included; None: the run's last. Not for
        exponential decay and rsqrt.
      transition_steps, decay_rate, transition_begin, staircase: of exponential decay.
      power: of polynomial decay.
      timescale, cooldown_steps: of rsqrt; the cooldown is a linear fall to 0 at the run's end.
    """

    name: str = "warmup_cosine_decay"
    warmup_steps: int = 0
    end_value: float = 0.0
    decay_steps: int | None = None
    transition_steps: int = 1000
    decay_rate: float = 0.5
    transition_begin: int = 0
    staircase: bool = False
    power: float = 1.0
    timescale: int = 10000
    cooldown_steps: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Patterns are regular expressions searched for in paths such as
    "Encoder/encoderblock_1/Moe/Router/dense/kernel"; the first that is found counts.

    Attributes:
      name: one of OPTIMIZERS.
      lr: peak learning rate.
      schedule: its course.
      weight_decay: (pattern, rate) pairs; rate * learning rate * weight is taken off each step.
      gradient_scale: (pattern, factor) pairs, applied before clipping.
      clip_norm: largest norm of all gradients together; None: no such limit.
      clip_value: largest absolute gradient entry; None: no such limit.
      trainable: patterns of the weights to train; empty: all.
      frozen: patterns of the weights left as they are; they count in the norm all the same.
      b1, b2, eps: of adam.
      momentum: of sgd and adafactor; 0 for none.
      nesterov: of sgd.
      momentum_dtype: of the first moments; "float32" or "bfloat16".
      min_dim_to_factor: adafactor keeps full second moments below this size.
      max_decay_rate: adafactor's second moments decay by at most this rate.
      average_decay: of a running average of the weights, which is what is evaluated then; None:
        no such average.
    """

    name: str = "adam"
    lr: float = 1e-3
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    weight_decay: tuple[tuple[str, float], ...] = ()
    gradient_scale: tuple[tuple[str, float], ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    trainable: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    momentum_dtype: str = "float32"
    min_dim_to_factor: int = 32
    max_decay_rate: float = 0.999
    average_decay: float | None = None


@dataclass(frozen=True)
class MixupConfig:
    """Images averaged with others of their batch.

    Attributes:
      concentration: of the Dirichlet draw of the shares; 0: off.
      images: how many are averaged.
    """

    concentration: float = 0.0
    images: int = 2


@dataclass(frozen=True)
class AdversarialConfig:
    """Training on images that were changed against the model.

    Attributes:
      steps: of the change, each with a gradient of its own; 0: off.
      epsilon: how far a pixel moves at most, in units of data.value_range.
    """

    steps: int = 0
    epsilon: float = 0.0


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the run is saved.

    Attributes:
      every: steps between checkpoints; the last step is saved too.
      keep: how many of the newest stay.
    """

    every: int = 100
    keep: int = 3


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    Attributes:
      seed: of the initial weights, the order and shifts of images, noise and dropout.
      workdir: where checkpoints and metrics go; starting again there resumes the run.
      steps: training steps.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations on the test images; 0: only after the last step.
      loss: one of LOSSES.
      label_smoothing: share of each label spread evenly over the classes.
      mesh: axes of the devices that share the work, (("data", 2), ("expert", 4)): data, expert and
        fsdp share out the images, expert also the experts, fsdp keeps their weights in parts, model
        splits their hidden units; empty: one device.
      microbatches: parts of the batch that gradients are summed over, one in memory at a time.
      init_from: the checkpoint that its first weights come from.
      mixup, adversarial, model, data, optim, checkpoint: see there.
    """

    seed: int = 0
    workdir: str = ""
    steps: int = 1000
    log_every: int = 50
    eval_every: int = 0
    loss: str = "softmax"
    label_smoothing: float = 0.0
    microbatches: int = 1
    mesh: tuple[tuple[str, int], ...] = ()
    mixup: MixupConfig = field(default_factory=MixupConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    init_from: InitFromConfig = field(default_factory=InitFromConfig)

    def validate(self) -> TrainConfig:
        """Returns the config itself once every rule holds.

        Raises:
          UserError: names the field, the mismatch and the fix.
        """
        _validate_counts(self)
        _validate_model(self)
        _validate_mesh(self)
        _known("loss", self.loss, LOSSES)
        _validate_data(self.data)
        _known("optim.name", self.optim.name, OPTIMIZERS)
        _known("optim.schedule.name", self.optim.schedule.name, SCHEDULES)
        _known("optim.momentum_dtype", self.optim.momentum_dtype, ("float32", "bfloat16"))
        _validate_rates(self)
        self.init_from.validate()
        return self


def _validate_model(config: TrainConfig) -> None:
    try:
        config.model.validate()
    except ValueError as error:
        raise UserError(f"model.{error}") from None
    if config.data.batch_size % config.microbatches:
        raise UserError(
            f"data.batch_size={config.data.batch_size} cannot be cut into "
            f"microbatches={config.microbatches}; fix: a number that divides it"
        )
    if config.model.moe is None:
        return
    group = config.model.moe.group_images
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(config.data, name)
        if size % group:
            raise UserError(
                f"data.{name}={size} is not a multiple of model.moe.group_images={group}; "
                f"fix: for example data.{name}={-(-size // group) * group}"
            )
    if config.data.batch_size % (config.microbatches * group):
        raise UserError(
            f"data.batch_size={config.data.batch_size} is not microbatches={config.microbatches} "
            f"whole numbers of groups of model.moe.group_images={group}; fix: fewer microbatches"
        )


def _validate_mesh(config: TrainConfig) -> None:
    names = [name for name, _ in config.mesh]
    for name, size in config.mesh:
        _known("mesh", name, AXES)
        if size < 1 or names.count(name) > 1:
            raise UserError(f'mesh={config.mesh}: axis "{name}"; fix: each once, with 1 or more')
    parts = math.prod(size for name, size in config.mesh if name in IMAGE_AXES)
    if config.data.batch_size % (parts * config.microbatches):
        raise UserError(
            f"data.batch_size={config.data.batch_size} has no {parts} equal parts for the mesh, in "
            f"each of {config.microbatches} microbatches; fix: a multiple of "
            f"{parts * config.microbatches}"
        )


def _validate_data(data: DataConfig) -> None:
    _known("data.name", data.name, DATASETS)
    _known("data.corrupt", data.corrupt, ("fatal", "skip"))
    if data.channels not in (None, 1, 3):
        raise UserError(f"data.channels={data.channels} is neither grey nor RGB; fix: 1 or 3")
    if not data.value_range[0] < data.value_range[1]:
        raise UserError(f"data.value_range={data.value_range} is no range; fix: (black, white)")
    if data.name == "tfds" and not data.tfds_name:
        raise UserError(
            'data.name="tfds" needs a data set; fix: for example data.tfds_name=cifar10'
        )


def _validate_counts(config: TrainConfig) -> None:
    at_least_one = {
        "steps": config.steps,
        "log_every": config.log_every,
        "microbatches": config.microbatches,
        "mixup.images": config.mixup.images,
        "data.batch_size": config.data.batch_size,
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.threads": config.data.threads,
        "data.prefetch": config.data.prefetch,
        "checkpoint.every": config.checkpoint.every,
        "checkpoint.keep": config.checkpoint.keep,
        "optim.schedule.transition_steps": config.optim.schedule.transition_steps,
        "optim.schedule.timescale": config.optim.schedule.timescale,
    }
    for name in ("train_images", "classes"):
        if (count := getattr(config.data, name)) is not None:
            at_least_one[f"data.{name}"] = count
    not_negative = {
        "seed": config.seed,
        "eval_every": config.eval_every,
        "adversarial.steps": config.adversarial.steps,
        "data.max_shift": config.data.max_shift,
        "optim.schedule.warmup_steps": config.optim.schedule.warmup_steps,
        "optim.schedule.cooldown_steps": config.optim.schedule.cooldown_steps,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise UserError(f"{name}={value} must be 1 or more; fix: raise it")
    for name, value in not_negative.items():
        if value < 0:
            raise UserError(f"{name}={value} is negative; fix: give 0 or more")


def _validate_rates(config: TrainConfig) -> None:
    optim = config.optim
    if not optim.lr >= 0:
        raise UserError(f"optim.lr={optim.lr} is no learning rate; fix: for example 1e-3")
    for name in ("b1", "b2", "momentum"):
        value = getattr(optim, name)
        if not 0 <= value < 1:
            raise UserError(f"optim.{name}={value} is no decay rate; fix: 0 <= {name} < 1")
    average = optim.average_decay
    if average is not None and not 0 <= average < 1:
        raise UserError(f"optim.average_decay={average} is no decay rate; fix: for example 0.999")
    for name in ("mixup.concentration", "adversarial.epsilon"):
        group, _, last = name.partition(".")
        if not getattr(getattr(config, group), last) >= 0:
            raise UserError(f"{name} is negative; fix: 0 turns it off")
    for name in ("clip_norm", "clip_value"):
        value = getattr(optim, name)
        if value is not None and not value > 0:
            raise UserError(f"optim.{name}={value} must be positive; fix: None for no limit")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            f"label_smoothing={config.label_smoothing} is no share; fix: 0 <= label_smoothing < 1"
        )


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value in known:
        return
    close = difflib.get_close_matches(value, known, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    raise UserError(f'{name}="{value}" is unknown; fix: {hint}use one of {", ".join(known)}')
