"""Damaged files: a byte changed, bytes cut off, and a reader that may refuse but not fail."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from vmoe.errors import UserError
from vmoe.weights.leaf import Leaves

MEMORY = 4 * 2**20
"""What reading a file of some kilobytes may take; a declared size of a gigabyte does not fit."""


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """The bytes with one of them changed, some cut off, or some put in twice."""
    kind = draw(st.sampled_from(["change", "cut", "repeat"]))
    at = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        return data[:at]
    if kind == "repeat":
        return data[:at] + data[at : at + draw(st.integers(1, 40))] + data[at:]
    return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]


def shapes_or_refusal(read: Callable[[], Leaves], file: Path) -> list[tuple] | None:
    """Shapes and dtypes of the arrays, all of them read; None for one line that names the file."""
    message = None
    tracemalloc.start()
    try:
        leaves = read()
        for leaf in leaves.values():
            array = leaf.read()
            assert (array.shape, array.dtype) == (leaf.shape, leaf.dtype)
    except UserError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY
    if message is None:
        return sorted((leaf.shape, leaf.dtype.name) for leaf in leaves.values())
    assert file.name.split(".data")[0].removesuffix(".index") in message
    assert "fix: " in message
    assert "\n" not in message
    return None
