"""All ops. Importing this package fills the registry."""

from moegen.ops import (
    barrier,
    call,
    elementwise,
    exchange,
    gathered,
    grouped,
    linalg,
    mesh,
    named,
    random,
    reduce,
    routing,
    rows,
    scope,
    send,
    shape,
)

__all__ = [
    "barrier",
    "call",
    "elementwise",
    "exchange",
    "gathered",
    "grouped",
    "linalg",
    "mesh",
    "named",
    "random",
    "reduce",
    "routing",
    "rows",
    "scope",
    "send",
    "shape",
]
