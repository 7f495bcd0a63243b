"""All ops. Importing this package fills the registry."""

from moegen.ops import (
    call,
    elementwise,
    grouped,
    linalg,
    named,
    random,
    reduce,
    routing,
    rows,
    shape,
)

__all__ = [
    "call",
    "elementwise",
    "grouped",
    "linalg",
    "named",
    "random",
    "reduce",
    "routing",
    "rows",
    "shape",
]
