"""shard: where a mesh would split the program. Its place in the pipeline is fixed.

Until the collectives exist it accepts the absence of a mesh and refuses everything else.
"""

from __future__ import annotations

from typing import Any

from moegen.errors import LoweringError
from moegen.ir.program import Program


def shard(program: Program, mesh: Any) -> Program:
    """Returns the program for one device.

    Raises:
      LoweringError: if a mesh is given; nothing is ever run unsharded in silence.
    """
    if mesh is not None:
        raise LoweringError(
            f"@{program.name}: a mesh is given ({mesh}), sharding is not implemented",
            fix="compile with Schedule(mesh=None); data parallelism by jax.jit works outside",
        )
    return program
