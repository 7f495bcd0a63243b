"""The collectives of a compiled program, read from XLA's text: kind, bytes, mesh axes, how often.

Devices in replica groups are numbered in the order of the mesh, so that a group's axes are those
along which its numbers vary. A collective within a loop counts as often as XLA knows it to run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from moegen.errors import TuneError
from moegen.tune.network import Collective

OPCODES = {
    "all-to-all": "all_to_all",
    "ragged-all-to-all": "all_to_all",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-reduce": "all_reduce",
    "collective-permute": "permute",
    "collective-broadcast": "permute",
}
"""XLA's collectives as `moegen.tune.network` has them."""
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_OPCODE = re.compile(rf"\s({'|'.join(OPCODES)})(-start)?\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_ENDED = re.compile(r"\s[a-z-]+-(done|update)\(")
"""What ends an operation that was begun by another line, which counts."""
_CONTEXT = re.compile(r"\bu32\[\](\{[^}]*\})?")
"""What a start gives its end, beside operands and results."""
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALL = re.compile(r"\b(calls|body|condition|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_IOTA = re.compile(r"(?:replica_groups|device_list)=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"\{([^}]*)\}"
)
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")


def collectives(text: str, mesh: Sequence[tuple[str, int]]) -> list[Collective]:
    """Every collective of a compiled module that moves something, in its order.

    Args:
      text: XLA's text of the module, `compiled.as_text()`.
      mesh: (axis, devices along it) pairs.

    Raises:
      TuneError: if a group has devices that the mesh does not have.
    """
    lines = _computations(text)
    times = _times(text, lines)
    read = (
        _collective(line, mesh, times[name], body)
        for name, body in lines.items()
        if times.get(name)
        for line in body
    )
    return [one for one in read if one]


def totals(found: Sequence[Collective]) -> dict[tuple[str, tuple[str, ...]], tuple[int, int]]:
    """By kind and axes: bytes that one device puts in, and how many collectives, the most first."""
    sums: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
    for one in found:
        nbytes, count = sums.get((one.kind, one.axes), (0, 0))
        sums[one.kind, one.axes] = (nbytes + one.nbytes * one.times, count + one.times)
    return dict(sorted(sums.items(), key=lambda item: -item[1][0]))


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation, by name."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = found.setdefault(match[2], [])
        elif line.startswith(" "):
            current.append(line)
    return found


def _times(text: str, lines: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs; a loop that XLA does not know the trips of counts once.

    XLA prints a computation before those that call it.
    """
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    times = {entry[1]: 1} if entry else {}
    for name in reversed(lines):
        for line in lines[name]:
            if _ENDED.search(line):
                continue
            trips = int(found[1]) if (found := _TRIPS.search(line)) else 1
            for how, called in _CALL.findall(line):
                for inner in re.findall(r"[\w.\-]+", called):
                    more = times.get(name, 0) * (trips if how == "body" else 1)
                    times[inner] = times.get(inner, 0) + more
    return times


def _collective(
    line: str, mesh: Sequence[tuple[str, int]], times: int, body: Sequence[str]
) -> Collective | None:
    match = _OPCODE.search(line)
    if match is None:
        return None
    kind, shapes = OPCODES[match[1]], line[: match.start()].partition("=")[2]
    groups = _groups(line, math.prod(size for _, size in mesh))
    devices = max((len(group) for group in groups), default=1)
    if devices == 1:
        return None
    nbytes = _bytes(_CONTEXT.sub("", shapes) if match[2] else shapes)
    if match[1] == "ragged-all-to-all":
        nbytes = min(nbytes, _first_operand_bytes(line[match.end() :], body) or nbytes)
    elif match[2] and kind in ("all_gather", "permute", "all_to_all"):  # operands and results
        nbytes = nbytes // (1 + (devices if kind == "all_gather" else 1))
    elif kind == "all_gather":
        nbytes //= devices
    elif kind == "reduce_scatter":
        nbytes *= devices
    return Collective(kind, _axes(groups, mesh), devices, nbytes, times)


def _first_operand_bytes(operands: str, body: Sequence[str]) -> int:
    """Of ragged rows: where they arrive a list is as long as the worst case, where they are not."""
    name = re.match(r"%?([\w.\-]+)", operands)
    definition = re.compile(rf"^\s*(?:ROOT )?%?{re.escape(name[1])} = (\S+)") if name else None
    found = (definition.match(line) for line in body) if definition else ()
    return next((_bytes(match[1]) for match in found if match), 0)


def _bytes(shapes: str) -> int:
    return sum(
        math.prod(int(n) for n in dims.split(",") if n) * _bits(dtype) // 8
        for dtype, dims in _SHAPE.findall(shapes)
    )


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    number = re.match(r"[a-z]+(\d+)", dtype)
    return int(number[1]) if number else 0


def _groups(line: str, devices: int) -> list[list[int]]:
    """The groups of devices; pairs of a permute are groups of two."""
    if found := _IOTA.search(line):
        shape = _numbers(found[1])
        return _rows(_iota(found[2], found[3]).reshape(shape[0], -1))
    if found := _MESH.search(line):
        return _mesh_groups(*found.groups())
    if found := _LISTED.search(line) or _PAIRS.search(line):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
    return [list(range(devices))]


def _mesh_groups(axes: str, dims: str | None, order: str | None, along: str) -> list[list[int]]:
    """Groups of a mesh of XLA's own: mesh['a'=32,'b'=16], device_ids=([16,32]T(1,0)) {'a'}."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values())) if dims is None else _iota(dims, order)
    ids = ids.reshape(tuple(sizes.values()))
    named = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)
    if any(part for _, _, part in named):
        raise TuneError(f"XLA splits an axis of its mesh in {{{along}}}, which is not read yet")
    inside = [list(sizes).index(name) for name, _, _ in named]
    moved = np.moveaxis(ids, inside, range(-len(inside), 0))
    return _rows(moved.reshape(-1, math.prod(moved.shape[-len(inside) :])))


def _iota(dims: str, order: str | None) -> np.ndarray:
    """[16,32]T(1,0): numbers in an array of these sizes, its axes then in this order, flat."""
    sizes = _numbers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _rows(array: np.ndarray) -> list[list[int]]:
    return [[int(n) for n in row] for row in array]


def _axes(groups: Sequence[Sequence[int]], mesh: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """The axes along which the numbers of a group vary, in any group."""
    sizes = [size for _, size in mesh]
    if max(max(group) for group in groups) >= math.prod(sizes):
        raise TuneError(f"the program is for more devices than the mesh {dict(mesh)} has")
    places = [np.array(np.unravel_index(list(group), sizes)) for group in groups]
    return tuple(
        axis
        for at, (axis, _) in enumerate(mesh)
        if any(len(set(place[at].tolist())) > 1 for place in places)
    )
