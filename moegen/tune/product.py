"""One grouped product as a kernel with tiles is asked for it: sizes, dtypes, its space of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moegen.ir.locality import own_sizes
from moegen.ir.program import Op, Program
from moegen.ir.types import EXPERT, Tensor
from moegen.ops.named import dims_tuple
from moegen.ops.parts import ROWS

SKEW = (3000, 100, 2000, 37, 1500, 55, 1000, 500)
"""Shares of eight experts whose loads differ by 80 times: the skewed case of docs/kernels.md."""
JNP = {"bf16": "bfloat16", "f32": "float32", "f16": "float16"}


@dataclass(frozen=True, slots=True)
class Product:
    """A grouped product, without what it is part of.

    Attributes:
      kind: "dot", [rows, depth] x [experts, depth, width]; or "outer", the sum over each expert's
        rows of [rows, depth] times [rows, width].
      rows: of all experts together.
      depth: the width that a "dot" sums over, or the first one of an "outer".
      width: of the result.
      experts: weight matrices.
      dtypes: of the rows, then, in a "dot", of every operand of its epilogue and of every result
        that has a row for each row.
      reads: how many of these are operands.
      transposed: whether the weights of a "dot" are [experts, width, depth].
      block: each expert's rows are padded to a multiple of it.
    """

    kind: str
    rows: int
    depth: int
    width: int
    experts: int
    dtypes: tuple[str, ...]
    reads: int = 0
    transposed: bool = False
    block: int = 1

    @property
    def key(self) -> str:
        """What tiles depend on, as text: the mean load stands for the rows."""
        turned, padded = " turned" * self.transposed, f" block {self.block}" * (self.block > 1)
        sizes = f"{self.load} rows each, {self.depth} x {self.width}, {self.experts} experts"
        return f"{self.kind}{turned}: {sizes}, {' '.join(self.dtypes)}, {self.reads} read{padded}"

    @property
    def load(self) -> int:
        """Mean rows of an expert, rounded down to a power of two."""
        return 1 << (max(self.rows // self.experts, 1).bit_length() - 1)

    @property
    def widths(self) -> int:
        """How many numbers of a tile are widths of a block; the rest are heights."""
        return 2 if self.kind == "outer" else 1

    @property
    def flops(self) -> float:
        """Multiplications and additions that are needed."""
        return 2.0 * self.rows * self.depth * self.width


def product_of(op: Op, sizes: Mapping[str, int]) -> Product | None:
    """The product that an op asks for; None if it is none of plain rows and matrices."""
    types = [v.type for v in (*op.inputs[:2], *op.results[:1]) if isinstance(v.type, Tensor)]
    wanted = {"grouped_dot": [2, 3, 2], "grouped_outer": [2, 2, 3]}.get(str(op.name))
    if [len(t.dims) for t in types] != wanted or any(t.dtype not in JNP for t in types):
        return None
    a, b, made = types
    rows, experts, dtype, block = sizes[ROWS], sizes[EXPERT], JNP[a.dtype], op.attr.get("block", 1)
    if op.name == "grouped_outer":
        deep, wide = (sizes[d] for d in made.dims if d != EXPERT)
        return Product("outer", rows, deep, wide, experts, (dtype,), block=block)
    (over,) = dims_tuple(op.attr["over"])
    read, results = (
        [t for t in _tensors(vs) if ROWS in t.dims] for vs in (op.inputs[3:], op.results)
    )
    if any(t.dtype not in JNP for t in (*read, *results)):
        return None
    dtypes, turned = (dtype, *(JNP[t.dtype] for t in (*read, *results))), b.dims[-1] == over
    wide = sizes[made.dims[1]]
    return Product("dot", rows, sizes[over], wide, experts, dtypes, len(read), turned, block)


def grouped_products(program: Program) -> list[Product]:
    """Every different product of a program, in order; sizes as one device sees them."""
    found = (product_of(op, own_sizes(program, op)) for op in program.ops)
    return list(dict.fromkeys(p for p in found if p is not None))


def loads(rows: int, shares: Sequence[float]) -> np.ndarray:
    """Rows of each expert, i64[E], in proportion to these shares: `rows` in all."""
    ends = np.rint(np.cumsum(shares) / np.sum(shares) * rows).astype(int)
    return np.diff(ends, prepend=0)


def _tensors(values: tuple[object, ...]) -> list[Tensor]:
    types = [getattr(v, "type", None) for v in values]
    return [t for t in types if isinstance(t, Tensor)]
