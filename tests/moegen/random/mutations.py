"""Ill-typed variants: one small change to the text of a good program.

Each mutation takes a line of the program and a number that says where and how, and returns the
line changed, or None where there is nothing of its kind to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from moegen.ir import registry
from moegen.ir.program import Program
from moegen.ir.text import format_program

Mutation = Callable[[str, int, Program], str | None]
MUTATIONS: dict[str, Mutation] = {}

_ATTR = re.compile(r", (\w+)=(\"[^\"]*\"|\((?:[^()]|\([^()]*\))*\)|[^,()]+)(?=[,)])")
_ONLY_ATTR = re.compile(r"\((\w+)=(\"[^\"]*\"|\((?:[^()]|\([^()]*\))*\)|[^,()]+)(?=[,)])")
_TYPE = re.compile(r"\b(f32|i32|bool)\[([^\]]*)\]")
BAD = (
    '"Nowhere"', "0", "-1", "7", "2.5", "True", "None", '""', '"f33"', "()", '("G",)', '("E", "E")',
    '"gelu(acc"', '("gelu(acc)",)', "((1, 2),)", "1e400", '"f32"', '"i32"', '"S"', "(2,)",
)  # fmt: skip
"""Values for attributes: wrong kinds, wrong dims, wrong numbers."""


@dataclass(frozen=True)
class Mutated:
    """The text after a mutation, and the line, from 1, that was changed."""

    text: str
    line: int
    before: str
    after: str


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def mutate(program: Program, name: str, where: int, how: int) -> Mutated | None:
    """Changes the first line from number `where` on that the mutation can change.

    Lines are those of ops; at the end, the search goes on at the first.
    """
    lines = format_program(program, locations=False).split("\n")
    ops = [i for i, line in enumerate(lines) if re.match(r"  %\w.* = \w+\(", line)]
    for i in (*ops[where % len(ops) :], *ops[: where % len(ops)]):
        changed = MUTATIONS[name](lines[i], how, program)
        if changed is not None and changed != lines[i]:
            text = "\n".join([*lines[:i], changed, *lines[i + 1 :]])
            return Mutated(text, i + 1, lines[i], changed)
    return None


def _split(line: str) -> tuple[str, str, str]:
    """Results, op name, and what is in its parentheses."""
    match = re.fullmatch(r"  (.*?) = (\w+)\((.*)\)", line)
    assert match, line
    return match[1], match[2], match[3]


def _arguments(inside: str) -> tuple[list[str], str]:
    """Operands, and the text of the attributes with the comma in front of it."""
    parts, rest = [], inside
    while match := re.match(r"(%\w+|-?[\d.][^,=]*|-?inf|True|False)(?:, |$)", rest):
        parts.append(match[1])
        rest = rest[match.end() :]
    return parts, f", {rest}" if rest else ""


def _joined(line: str, operands: list[str], attrs: str) -> str:
    results, name, _ = _split(line)
    inside = ", ".join(operands) + attrs
    return f"  {results} = {name}({inside.removeprefix(', ')})"


def _replace_operand(line: str, how: int, *new: str) -> str | None:
    """Puts operands in the place of one; none takes it away."""
    operands, attrs = _arguments(_split(line)[2])
    if not operands:
        return None
    at = how % len(operands)
    return _joined(line, [*operands[:at], *new, *operands[at + 1 :]], attrs)


def _names(program: Program, line: str) -> list[str]:
    """Values that are defined above a line."""
    defined = line.strip().split(":")[0]
    found = [f"%{v.name}" for v in program.arguments]
    for op in program.ops:
        if f"%{op.results[0].name}" == defined:
            break
        found += [f"%{r.name}" for r in op.results]
    return found


@mutation
def wrong_operand(line: str, how: int, program: Program) -> str | None:
    """Another value of the program, which is most often of another type."""
    known = _names(program, line)
    return _replace_operand(line, how, known[(how // 3) % len(known)])


@mutation
def swapped_operands(line: str, how: int, program: Program) -> str | None:
    operands, attrs = _arguments(_split(line)[2])
    if len(operands) < 2:
        return None
    i = how % (len(operands) - 1)
    operands[i], operands[i + 1] = operands[i + 1], operands[i]
    return _joined(line, operands, attrs)


@mutation
def missing_operand(line: str, how: int, program: Program) -> str | None:
    return _replace_operand(line, how)


@mutation
def extra_operand(line: str, how: int, program: Program) -> str | None:
    operands, attrs = _arguments(_split(line)[2])
    known = [*_names(program, line), "0", "1.5", "True"]
    operands.insert(how % (len(operands) + 1), known[(how // 2) % len(known)])
    return _joined(line, operands, attrs)


@mutation
def number_as_operand(line: str, how: int, program: Program) -> str | None:
    return _replace_operand(line, how, ("0.5", "3", "True", "-inf")[how % 4])


@mutation
def undefined_value(line: str, how: int, program: Program) -> str | None:
    return _replace_operand(line, how, "%nobody")


@mutation
def unknown_op(line: str, how: int, program: Program) -> str | None:
    return line.replace(" = ", " = un", 1)


@mutation
def another_op(line: str, how: int, program: Program) -> str | None:
    known = registry.known_ops()
    results, _, inside = _split(line)
    return f"  {results} = {known[how % len(known)]}({inside})"


def _replace_attr(line: str, how: int, change: Callable[[str, str], str]) -> str | None:
    found = [*_ONLY_ATTR.finditer(line), *_ATTR.finditer(line)]
    if not found:
        return None
    match = found[how % len(found)]
    lead = match[0][: 2 if match[0].startswith(", ") else 1]
    return line[: match.start()] + change(lead, match[0][len(lead) :]) + line[match.end() :]


@mutation
def bad_attribute(line: str, how: int, program: Program) -> str | None:
    bad = BAD[(how // 2) % len(BAD)]
    return _replace_attr(line, how, lambda lead, text: f"{lead}{text.split('=')[0]}={bad}")


@mutation
def deleted_attribute(line: str, how: int, program: Program) -> str | None:
    changed = _replace_attr(line, how, lambda lead, text: lead if lead == "(" else "")
    return changed and changed.replace("(, ", "(")


@mutation
def unknown_attribute(line: str, how: int, program: Program) -> str | None:
    lead = "" if line.endswith("()") else ", "
    return f"{line[:-1]}{lead}colour={BAD[how % len(BAD)]})"


@mutation
def wrong_dim(line: str, how: int, program: Program) -> str | None:
    """A dim name in an attribute becomes another one."""
    found = list(re.finditer(r'"(\w+)"', line))
    dims = [*program.sizes, "Nowhere"]
    if not found:
        return None
    match = found[how % len(found)]
    return f'{line[: match.start()]}"{dims[(how // 2) % len(dims)]}"{line[match.end() :]}'


def _replace_type(line: str, how: int, change: Callable[[str, list[str]], str]) -> str | None:
    found = list(_TYPE.finditer(line))
    if not found:
        return None
    match = found[how % len(found)]
    dims = [d for d in match[2].split(", ") if d]
    return line[: match.start()] + change(match[1], dims) + line[match.end() :]


@mutation
def wrong_result_dtype(line: str, how: int, program: Program) -> str | None:
    def change(dtype: str, dims: list[str]) -> str:
        others = [t for t in ("f32", "i32", "bool", "bf16", "f33") if t != dtype]
        return f"{others[how % 4]}[{', '.join(dims)}]"

    return _replace_type(line, how, change)


@mutation
def wrong_result_dims(line: str, how: int, program: Program) -> str | None:
    def change(dtype: str, dims: list[str]) -> str:
        known = list(program.sizes)
        form = how % 4
        if form == 0 and dims:
            dims = dims[1:]
        elif form == 1:
            dims = [*dims, known[how % len(known)]]
        elif form == 2:
            dims = dims[::-1]
        elif dims:
            dims = [*dims[:-1], known[how % len(known)]]
        return f"{dtype}[{', '.join(dims)}]"

    return _replace_type(line, how, change)


@mutation
def extra_result(line: str, how: int, program: Program) -> str | None:
    return line.replace(" = ", ", %spare: f32[] = ", 1)


@mutation
def deleted_op(line: str, how: int, program: Program) -> str | None:
    return "  // nothing"


@mutation
def broken_text(line: str, how: int, program: Program) -> str | None:
    """A character is lost."""
    at = 2 + how % (len(line) - 2)
    return line[:at] + line[at + 1 :]
