"""Recorded router cases: how they are loaded, rerun through a layer, and compared.

The relative error of an array is max|ours - recorded| / max|recorded|.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg

DATA = Path(__file__).parents[2] / "data"


@mg.expert
def labelled(x: mg.floating["C W"], label: mg.floating["H"]):
    """Rows as they are, in a column of their expert's own."""
    return x * label


def with_labels(experts, dtype=np.float32):
    """The experts' parameters: expert e writes to column e."""
    return {"label": np.eye(experts, dtype=dtype)}


def load(name):
    """The cases of a file, each a dict, and its arrays."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    return json.loads((DATA / f"{name}.json").read_text())["cases"], arrays


def pairs(cases, every):
    """Parametrizes by case and form: every n-th case in a format, the others nightly.

    Compiling takes most of the time, and formats differ in how rows move, not in what is routed.

    Args:
      cases: from `load`.
      every: {form: n}.
    """
    params = [
        pytest.param(
            case, form, id=f"case{case['case']}-{form}",
            marks=() if (number + 1) % n == 0 else pytest.mark.nightly,
        )
        for form, n in every.items()
        for number, case in enumerate(cases)
    ]  # fmt: skip
    return pytest.mark.parametrize("case, form", params)


def arrays_of(case, arrays):
    """The arrays of one case, by their own names."""
    prefix = f"case{case['case']:03d}/"
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def relative_error(ours, recorded) -> float:
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    assert ours.shape == recorded.shape
    assert np.isfinite(ours).all()
    error, scale = np.abs(ours - recorded).max(), np.abs(recorded).max()
    return float(error / scale) if scale > 0 else float(error)


def with_one_hot_tokens(data):
    """[G, S, W] as [G, S, W + S]: what comes out of the last S columns says which token it was."""
    groups, tokens = data.shape[:2]
    return jnp.concatenate([data, jnp.tile(jnp.eye(tokens), (groups, 1, 1))], axis=-1)


def split_columns(y, width):
    """From y [G, S, W + S, E], the recorded experiment's combined rows, and token to token.

    Number e of the recorded experts multiplies by 1 + e. Token to token is f32[G, S, S, E]: sum
    over c of combine[g, s, e, c] * dispatch[g, t, e, c], however the slots are numbered.
    """
    scale = 1 + jnp.arange(y.shape[-1], dtype=y.dtype)
    return (y[:, :, :width] * scale).sum(-1), y[:, :, width:]


def token_to_token(combine, dispatch):
    return np.einsum("gsec,gtec->gste", combine, dispatch.astype(combine.dtype))


def check(errors, tolerance, record_property):
    """Every error within the tolerance; the report (--junitxml) has the numbers."""
    for name, error in errors.items():
        record_property(name, error)
    assert {n: e for n, e in errors.items() if not e <= tolerance} == {}
