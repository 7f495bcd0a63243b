"""What was fixed before anything was run: images, models, training, seeds, tests.

Images: Fashion-MNIST. Every run trains on the first 6,000 training images and is tested on all
10,000 test images; a learning rate is chosen on training images 6,000 to 6,999, which no run trains
on.

Models: ViT of width 64, 4 blocks, MLPs of 256, 4 heads, patches of 7 pixels (16 tokens an image),
learned positions, mean pooling. Sparse ones have 8 experts in blocks 1 and 3, groups of 8 images,
noise 1, importance and load loss 0.005, capacity factor 1.05 in training and testing, rounded up to
whole slots but not to a multiple of four, so that what is counted is what is executed.

Training: Adam, batches of 64, 750 steps (8 epochs: undertrained on purpose), 50 of them warmup,
then cosine to 0; gradients clipped at norm 1; no weight decay, no dropout, no augmentation. Each
arm has the learning rate, of 0.001 and 0.003, that is better on the held-out images in one run with
seed 1000, which is no seed of the comparison; a tie goes to the smaller.

Seeds 0 to 7, paired: a seed decides the order of images, the weights and the noise, and arms of one
seed see the same batches in the same order. Weights of the same name and shape are the same.

Tests: the paired differences over the seeds, by an exact two-sided sign-flip permutation test of
their mean; the interval inverts the same test (`bench.papers.statistics`). Eight seeds, since
with five the least p is 2/32, which no claim of a family can survive. Every claim has one primary
hypothesis (two for the routers); Holm's correction is over all of FAMILY, and one that has not been
run counts as p = 1. All else that is reported is secondary: it has intervals, not verdicts.
"""

from dataclasses import dataclass, replace

from vmoe.config import DataConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig

FAMILY = (
    "bpr: accuracy at low capacity",
    "dense: accuracy",
    "routers: soft",
    "routers: expert choice",
    "e3: NLL",
    "upcycling: accuracy",
)
"""The primary hypotheses, one test each."""
LEVEL = 0.05


@dataclass(frozen=True)
class Settings:
    """The sizes of the protocol; anything but the defaults is another experiment.

    Attributes:
      seeds: of the paired runs.
      tuning_seed: of the runs that choose a learning rate.
      learning_rates: to choose from.
      train_images, held_out: counted from the first training image.
      test_images: None for all.
      batch_size, steps, warmup_steps: of training.
      eval_batch: images per call in testing.
      together: seeds that are trained in one program, which is faster; results are the same up to
        rounding.
    """

    seeds: tuple[int, ...] = tuple(range(8))
    tuning_seed: int = 1000
    learning_rates: tuple[float, ...] = (0.001, 0.003)
    train_images: int = 6000
    held_out: int = 1000
    test_images: int | None = None
    batch_size: int = 64
    steps: int = 750
    warmup_steps: int = 50
    eval_batch: int = 200
    together: int = 4


QUICK = Settings(
    seeds=(0, 1, 2), train_images=64, held_out=16, test_images=32, batch_size=16, steps=4,
    warmup_steps=1, eval_batch=16, together=3,
)  # fmt: skip
"""Everything in little: to see that it runs, not a result."""

DENSE = ModelConfig(
    num_classes=10, patch_size=7, width=64, depth=4, mlp_dim=256, num_heads=4, head="gap"
)
ROUTER = RouterConfig(k=1, capacity_factor=1.05, capacity_multiple_of=0)
EXPERTS = MoEConfig(num_experts=8, layers=(1, 3), group_images=8, format="slots", router=ROUTER)
CHOICES = RouterConfig(name="expert_choice", capacity_factor=1.05, capacity_multiple_of=0)
NORMALISED = RouterConfig(name="mixtral", k=2, capacity_factor=1.05, capacity_multiple_of=0)
MEMBERS = RouterConfig(name="ensemble", k=1, capacity_factor=1.05, capacity_multiple_of=0)
MIXES = RouterConfig(name="soft", dims=(("C", 1),))


def sparse(**changes: object) -> ModelConfig:
    """The ViT with experts, EXPERTS but for the changes."""
    return replace(DENSE, moe=replace(EXPERTS, **changes))


ARMS: dict[str, ModelConfig] = {
    # 17 slots of 128 tokens' 16, and the router: what the experts cost, in the width of all MLPs.
    "dense": replace(DENSE, mlp_dim=266),
    "vmoe_k1": sparse(),
    "vmoe_k2_half": sparse(mlp_dim=128, router=replace(ROUTER, k=2)),
    "expert_choice": sparse(router=CHOICES),
    "soft": sparse(num_experts=16, group_images=1, format="onehot", router=MIXES),
    "e3": replace(sparse(layers=(4, 5), ensemble_size=2, router=MEMBERS), depth=6),
    "e3_vmoe_k2": replace(sparse(layers=(4, 5), router=replace(ROUTER, k=2)), depth=6, mlp_dim=291),
    "e3_half": replace(DENSE, depth=6, mlp_dim=127),
    "e3_wide": replace(DENSE, depth=6, mlp_dim=401),
    "up_dense": DENSE,
    "up_sparse": sparse(layers=(2, 3), router=NORMALISED),
    "up_raw": sparse(layers=(2, 3), router=replace(ROUTER, k=2)),
}
"""The models by name.

Products per image of the first five are equal to 0.02 %; soft has 0.5 % more. Those of the e3
claim are a family of their own, equal to 0.2 %, two of e3_half counted as one; upcycling's are not
equal.
"""


def train_config(arm: str, learning_rate: float, seed: int, settings: Settings) -> TrainConfig:
    """The run of an arm, as vmoe's trainer takes it."""
    return TrainConfig(
        seed=seed,
        steps=settings.steps,
        model=ARMS[arm],
        data=DataConfig(
            name="idx", batch_size=settings.batch_size, eval_batch_size=settings.eval_batch,
            max_shift=0, train_images=settings.train_images,
        ),
        optim=OptimConfig(
            name="adam", lr=learning_rate, clip_norm=1.0,
            schedule=ScheduleConfig(
                name="warmup_cosine_decay", warmup_steps=settings.warmup_steps
            ),
        ),
    ).validate()  # fmt: skip
