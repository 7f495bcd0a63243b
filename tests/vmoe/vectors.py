"""Recorded numbers of the released system: files of tests/data, and how ours are compared.

The relative error of an array is max|ours - recorded| / max|recorded|.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig

DATA = Path(__file__).parent.parent / "data"
TOLERANCE = 2e-5

BIAS = -2.302585092994046


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def tree(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The nested dict of the arrays whose path starts with `prefix/`."""
    root: dict[str, Any] = {}
    for path, value in arrays.items():
        if path.startswith(prefix + "/"):
            *parents, leaf = path.removeprefix(prefix + "/").split("/")
            node = root
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jnp.asarray(value)
    return root


def paths(nested: Any) -> dict[str, jax.Array]:
    """{"a/b": leaf} of a nested dict."""
    flat, _ = jax.tree_util.tree_flatten_with_path(nested)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in flat}


def relative_error(ours: Any, recorded: Any, scale: float | None = None) -> float:
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    assert ours.shape == recorded.shape
    assert np.isfinite(ours).all()
    return float(np.abs(ours - recorded).max() / (scale or np.abs(recorded).max()))


def _model(layers: tuple[int, ...], router: RouterConfig, **changes: Any) -> ModelConfig:
    moe = MoEConfig(num_experts=4, layers=layers, group_images=2, router=router)
    fields = {"representation_size": 16, **changes}
    return ModelConfig(
        num_classes=10, patch_size=4, width=16, depth=6, mlp_dim=32, num_heads=2,
        head_bias_init=BIAS, moe=moe, **fields,
    )  # fmt: skip


MODELS = {
    "c1_vmoe_last2_det": _model((3, 5), RouterConfig()),
    "c2_vmoe_every2_det": _model((1, 3, 5), RouterConfig()),
    "c3_vmoe_every2_bpr_noisy": _model(
        (1, 3, 5), RouterConfig(capacity_factor=0.5, batch_priority=True)
    ),
    "c4_vmoe_k1_indices_gap_sincos2d_qknorm": _model(
        (3, 5), RouterConfig(k=1, capacity_factor=1.5, gshard_loss_weight=0.01),
        representation_size=None, head="gap", position="sincos2d", qk_norm=True,
    ),
}  # fmt: skip
NOISY = "c3_vmoe_every2_bpr_noisy"
