"""`vmoe inspect CKPT`: the tree of a checkpoint, of any format, without reading its arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmoe.commands.given import Given, quiet
from vmoe.weights import files
from vmoe.weights.leaf import Leaf, Leaves

EXPERT = re.compile(r"(?:^|/)(\w+)/Moe/Mlp/")
UNITS = ("B", "kB", "MB", "GB", "TB")


def run(given: Given) -> int:
    """Prints path, shape, dtype and size of every array, and the totals."""
    quiet()
    found = files.read(given.arguments[0])
    print(f"{found.path}  ({found.format})\n")
    for line in table(found.leaves):
        print(line)
    for line in totals(found.leaves):
        print(line)
    return 0


def table(leaves: Leaves) -> Iterator[str]:
    """A line per array, in columns, in the order of the file."""
    rows = [
        (printable(path), str(list(leaf.shape)), leaf.dtype.name, size(leaf.nbytes))
        for path, leaf in leaves.items()
    ]
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    for path, shape, dtype, nbytes in rows:
        yield (
            f"{path:{widths[0]}}  {shape:{widths[1]}}  {dtype:{widths[2]}}  {nbytes:>{widths[3]}}"
        )


def totals(leaves: Leaves) -> Iterator[str]:
    """The sums, of all arrays and of the weights, and the experts of each block."""
    yield (
        f"\n{len(leaves)} arrays, {sum(x.size for x in leaves.values()):,} entries, "
        f"{size(sum(x.nbytes for x in leaves.values()))}"
    )
    weights = files.weights(leaves)
    if len(weights) < len(leaves):
        yield f"weights: {sum(leaf.size for leaf in weights.values()):,}, under {files.PARAMS}"
    for block, arrays in experts(weights).items():
        count = max((leaf.shape[0] for leaf in arrays if leaf.shape), default=0)
        each = sum(leaf.size for leaf in arrays) // max(count, 1)
        yield f"{printable(block)}: {count} experts of {each:,} weights"


def experts(leaves: Leaves) -> dict[str, list[Leaf]]:
    """The arrays of the experts of each MoE block; the first dim of each counts experts."""
    blocks: dict[str, list[Leaf]] = {}
    for path, leaf in leaves.items():
        if match := EXPERT.search(path):
            blocks.setdefault(match[1], []).append(leaf)
    return blocks


def size(nbytes: int) -> str:
    """Bytes for people: 1,000 to a kB."""
    amount, unit = float(nbytes), 0
    while amount >= 1000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{amount:.1f} {UNITS[unit]}" if unit else f"{nbytes} B"


def printable(text: str) -> str:
    """The text of a file with what could move a terminal's cursor written out."""
    return text if text.isprintable() else ascii(text)[1:-1]
