"""differentiate: from a forward program to a joint one, with cotangents and gradients.

It runs before every scheduling pass, so that forward and backward share formats, fusion
and kernels. Each op's own derivative rule does the work; this is only the reverse walk.
"""

from __future__ import annotations

from moegen.errors import DerivativeError
from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.program import Op, Program, Value, live_ops
from moegen.ir.rewrite import keep, rename, resolve
from moegen.ir.types import cotangent_type


def differentiate(program: Program) -> Program:
    """Adds one cotangent per float output and one gradient per float input.

    Raises:
      DerivativeError: naming the op and the author's line, where a rule is missing.
    """
    if program.cotangents:
        raise DerivativeError(f"@{program.name} is differentiated already")
    reverse = _Reverse(program)
    return reverse.run()


class _Reverse:
    def __init__(self, program: Program):
        self.program = program
        self.location = None
        self.b = Builder(Dims(program.sizes), locate=lambda: self.location)
        self.owed: dict[str, list[Value]] = {}
        self.names: dict[str, str] = {}

    def run(self) -> Program:
        p, b = self.program, self.b
        known = {v.name: v for v in p.inputs}
        for value in p.inputs:
            b.fresh(value.name)
        for op in p.ops:
            results = keep(b, _with_operands(op, known))
            known.update(zip((r.name for r in op.results), results, strict=True))
        forward = tuple(b.ops)
        cotangents = self.declare_cotangents()
        for op in reversed(forward):
            self.pull_back(op)
        gradients = [(v.name, self.gradient(v)) for v in p.inputs if cotangent_type(v.type)]
        outputs = [(n, known.get(v.name, v)) for n, v in p.outputs]
        joint = b.program(p.name, p.inputs, outputs, cotangents, gradients)
        wanted = [v for _, v in (*outputs, *gradients)]
        joint = joint.with_(ops=live_ops(joint.ops, wanted), mesh=p.mesh)
        return rename(joint, self.names)

    def declare_cotangents(self) -> list[Value]:
        found = []
        for name, value in self.program.outputs:
            type_ = cotangent_type(value.type)
            if type_:
                found.append(self.b.argument(f"d_{name}", type_))
                self.owed.setdefault(value.name, []).append(found[-1])
        return found

    def pull_back(self, op: Op) -> None:
        """Passes the cotangents of an op's results on to its operands."""
        cotangents = tuple(self.collect(r) for r in op.results)
        if all(c is None for c in cotangents):
            return
        self.location = op.location  # type: ignore[assignment]
        try:
            grads = registry.lookup(op.name).derive(self.b, op, *cotangents)
        except DerivativeError as error:
            raise error.located(None, op.location) from None
        for operand, grad in zip(op.operands, grads, strict=True):
            if grad is not None and isinstance(operand, Value):
                self.owed.setdefault(operand.name, []).append(grad)

    def collect(self, value: Value) -> Value | None:
        """Sums what is owed to a value; None when nothing is."""
        parts = self.owed.pop(value.name, [])
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = self.b.one("add", total, part)
        self.names.setdefault(total.name, f"d_{value.name}")
        return total

    def gradient(self, value: Value) -> Value:
        """The gradient of an input; zeros where nothing flows back."""
        type_ = cotangent_type(value.type)
        assert type_ is not None
        total = self.collect(value)
        if total is None:
            total = self.b.one("full", 0.0, dims=type_.dims, dtype=type_.dtype)
        fitted = self.b.fit(total, type_)
        self.names.setdefault(fitted.name, f"d_{value.name}")
        return fitted


def _with_operands(op: Op, known: dict[str, Value]) -> Op:
    operands = tuple(resolve(dict(known), o) for o in op.operands)
    return Op(op.name, operands, op.attrs, op.results, op.location)
