"""Safetensors files, through the package of that name; its reader is hardened against bad files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vmoe.weights.leaf import Leaf, Leaves, check_paths, dtype_of, malformed, shape_of, unreadable
from vmoe.weights.whole import written_whole

NAMES = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip


def read(file: Path) -> Leaves:
    """The arrays of a file; only its header is read until they are asked for.

    Raises:
      UserError: if it cannot be read or is malformed, naming it and what is wrong.
    """
    with _opened(file) as opened:
        leaves = {name: _leaf(opened, name, file) for name in opened.keys()}  # noqa: SIM118
    check_paths(leaves, file)
    return leaves


def write(file: Path, leaves: Leaves) -> None:
    """Writes arrays to a file under their paths.

    Raises:
      UserError: if the file cannot be written, or is there already.
    """
    # The package writes memory as it lies, so each array has to lie in C order.
    arrays = {path: np.asarray(leaf.read(), order="C") for path, leaf in leaves.items()}
    with written_whole(file) as (unfinished,):
        save_file(arrays, unfinished)


def _leaf(opened: Any, name: str, file: Path) -> Leaf:
    declared = opened.get_slice(name)
    dtype = dtype_of(NAMES.get(declared.get_dtype(), declared.get_dtype()), file)
    return Leaf(shape_of(declared.get_shape(), file), dtype, partial(_read, file, name))


def _read(file: Path, name: str) -> np.ndarray:
    with _opened(file) as opened:
        return np.array(opened.get_tensor(name))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="np") as opened:
            yield opened
    except OSError as error:
        raise unreadable(file, error) from None
    except SafetensorError as error:
        raise malformed(file, " ".join(str(error).split())[:200]) from None
