"""Products that exchange their slots themselves, as calls of their kernel."""

from __future__ import annotations

from moegen.backends.collectives import axis_names
from moegen.backends.source import Emitter, Template, dims_of
from moegen.ir.program import Op
from moegen.kernels.exchanged_dot_tpu import exchanged_dot_tpu


def _exchanged_dot(e: Emitter, op: Op) -> list[str]:
    x, weights = op.inputs
    settings = [f"tile={op.attr['tile']}"]
    if dims_of(weights)[-1] == op.attr["over"]:
        settings.append("transposed=True")
    if op.attr.get("interpret"):
        settings.append("interpret=True")
    operands = f"{e.name(x)}, {e.name(weights)}, {axis_names(op.attr['axes'])}"
    return [
        f"{e.results(op)} = {e.use(exchanged_dot_tpu)}(",
        f"    {operands},",
        *(f"    {setting}," for setting in settings),
        ")",
    ]


TEMPLATES: dict[str, Template] = {"exchanged_dot": _exchanged_dot}
