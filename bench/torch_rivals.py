"""The same layer in PyTorch on the CPU: a loop over experts, and `grouped_mm`.

PyTorch is no dependency: `load` imports it, and raises ImportError where it is not installed.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from bench.workloads import Params

Tensor = Any


def load() -> ModuleType:
    """PyTorch; raises ImportError where it is not installed."""
    return importlib.import_module("torch")


def tensors(torch: ModuleType, params: Params, x: jax.Array) -> tuple[dict[str, Tensor], Tensor]:
    """The router's and the experts' weights by name, and the tokens [S, D], as leaves."""

    def tensor(a: jax.Array) -> Tensor:
        made = torch.from_numpy(np.array(a, np.float32)).to(getattr(torch, str(a.dtype)))
        return made.requires_grad_(True)

    return {n: tensor(a) for part in params.values() for n, a in part.items()}, tensor(x[0])


def route(torch: ModuleType, w: dict[str, Tensor], x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest gates of each token [S, K], and their experts."""
    weight, expert = torch.topk(torch.softmax(x.float() @ w["w"], -1), k)
    return weight, expert


def loop(torch: ModuleType, w: dict[str, Tensor], x: Tensor, k: int) -> Tensor:
    """A loop over experts with index_add, as Mixtral in transformers before grouped products."""
    weight, expert = route(torch, w, x, k)
    out = torch.zeros_like(x)
    for e in range(w["w1"].shape[0]):
        token, choice = torch.where(expert == e)
        rows = torch.nn.functional.gelu(x[token] @ w["w1"][e] + w["b1"][e], approximate="tanh")
        rows = (rows @ w["w2"][e] + w["b2"][e]) * weight[token, choice, None].to(x.dtype)
        out = out.index_add(0, token, rows)
    return out


def grouped(torch: ModuleType, w: dict[str, Tensor], x: Tensor, k: int) -> Tensor:
    """Rows sorted by expert and `grouped_mm`, as transformers does now."""
    product = torch.nn.functional.grouped_mm
    weight, expert = route(torch, w, x, k)
    owner, order = torch.sort(expert.reshape(-1), stable=True)
    token = order // k
    counts = torch.bincount(owner, minlength=w["w1"].shape[0])
    ends = torch.cumsum(counts, 0).to(torch.int32)
    hidden = product(x[token], w["w1"], offs=ends) + w["b1"][owner]
    hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
    rows = product(hidden, w["w2"], offs=ends) + w["b2"][owner]
    rows = rows * weight.reshape(-1)[order, None].to(x.dtype)
    return torch.zeros_like(x).index_add(0, token, rows)


LAYERS: dict[str, Callable[..., Tensor]] = {"torch_loop": loop, "torch_grouped_mm": grouped}


def call(
    name: str, params: Params, x: jax.Array, k: int, *, training: bool
) -> Callable[[], Tensor]:
    """A call of the layer of that name, or of its gradients by all weights and the tokens.

    Raises ImportError where PyTorch or the op is not there.
    """
    torch = load()
    w, tokens = tensors(torch, params, x)
    if name == "torch_grouped_mm" and not hasattr(torch.nn.functional, "grouped_mm"):
        raise ImportError(f"PyTorch {torch.__version__} has no grouped_mm")

    def forward() -> Tensor:
        with torch.no_grad():
            return LAYERS[name](torch, w, tokens, k)

    def gradients() -> Tensor:
        loss = LAYERS[name](torch, w, tokens, k).float().square().mean()
        return torch.autograd.grad(loss, [*w.values(), tokens])

    return gradients if training else forward
