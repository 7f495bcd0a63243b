"""Tables of tuned kernels and tiles: what moegen ships, and what `moegen tune` writes.

An entry is found by the product, the device, the kernel's source and, where it was measured, jax's
version: a table made with other kernels says nothing of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from moegen.errors import TuneError
from moegen.kernels.grouped_dot import (
    blocks,
    heights,
    pallas_tpu,
    pallas_tpu_outer,
    results_tpu,
    runs,
    visits,
    vmem,
    weights_tpu,
)
from moegen.tune.product import Product
from moegen.tune.target import Target
from moegen.tune.tile_space import Candidate, space_of
from moegen.tune.whole import write_text

VERSION = 1
ESTIMATED, MODELLED, MEASURED = "estimated", "modelled", "measured"
SOURCES: dict[tuple[str, str], tuple[ModuleType, ...]] = {
    ("tpu", "dot"): (pallas_tpu, heights, results_tpu, visits, vmem, weights_tpu),
    ("tpu", "outer"): (pallas_tpu_outer, visits, vmem),
    ("cpu", "dot"): (runs, blocks),
    ("cpu", "outer"): (runs, blocks),
}
"""By platform and kind of product, the files whose text a choice depends on."""
SHIPPED = "grouped_tiles.json"


@dataclass(frozen=True, slots=True)
class Tuned:
    """The choice for a product.

    Attributes:
      product: its key.
      device: the target, or where it was measured what JAX calls the kind of device.
      basis: "measured"; "estimated" by the device's compiler; "modelled" without either.
      kernels: hash of the kernels' source.
      made_with: versions of jax and, for estimates, of libtpu.
      kernel: the one taken.
      tile: its tile.
      unit: of the costs, for equal and for skewed loads together.
      costs: by candidate; the first one is what is taken untuned.
    """

    product: str
    device: str
    basis: str
    kernels: str
    made_with: str
    kernel: str
    tile: tuple[int, ...]
    unit: str
    costs: dict[str, float]

    @property
    def key(self) -> str:
        """Names the entry in a table."""
        measured = f" | {self.made_with}" if self.basis == MEASURED else ""
        return f"{self.product} | {self.device} | {self.basis} | {self.kernels}{measured}"

    def __str__(self) -> str:
        untuned, *_ = self.costs.values()
        taken = self.costs[str(Candidate(self.kernel, self.tile))]
        return (
            f"{self.product}: {Candidate(self.kernel, self.tile)}, {self.basis} at "
            f"{taken:.6g} {self.unit}; untuned {untuned:.6g}"
        )


@dataclass(frozen=True)
class Tiles:
    """Entries by key, and the name of what they were read from."""

    name: str
    entries: Mapping[str, Tuned] = field(default_factory=dict)

    def find(self, product: Product, target: Target, device: str) -> tuple[Tuned | None, str]:
        """The entry for a product, the measured one first; or, if only an outdated one, why."""
        note = ""
        for tuned in sorted(self.entries.values(), key=lambda t: t.basis != MEASURED):
            where = device if tuned.basis == MEASURED else target.name
            if (tuned.product, tuned.device) != (product.key, where):
                continue
            if tuned.kernels != source_hash(target.platform, product.kind):
                note = f"{self.name} is of other kernels ({tuned.kernels}): not used"
            elif tuned.basis == MEASURED and tuned.made_with != versions():
                note = f"{self.name} was measured with {tuned.made_with}: not used"
            elif Candidate(tuned.kernel, tuned.tile) not in space_of(product, target).legal:
                note = f"{self.name} has a tile that does not fit here: not used"
            else:
                return tuned, ""
        return None, note


def read_tiles(path: Path) -> Tiles:
    """Reads a table; an empty one if the file does not exist.

    Raises:
      TuneError: if it cannot be read or is no table, with its name.
    """
    try:
        return Tiles(path.name, _entries(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Tiles(path.name)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TuneError(f"{path} is no table of tiles ({reason})", fix="move it away") from None


def write_tiles(path: Path, entries: Mapping[str, Tuned]) -> None:
    """Writes a table; the file is replaced at once. Raises OSError if it cannot be written."""
    found = [asdict(entries[key]) for key in sorted(entries)]
    lines = ",\n".join(json.dumps(one) for one in found)
    write_text(path, f'{{"version": {VERSION}, "tiles": [\n{lines}\n]}}\n')


@cache
def shipped() -> Tiles:
    """The table that comes with moegen, estimated by libtpu for chips that were not there."""
    file = resources.files("moegen.tune").joinpath("data", SHIPPED)
    return Tiles("the shipped table", _entries(file.read_text(encoding="utf-8")))


@cache
def source_hash(platform: str, kind: str) -> str:
    """Of the text of the kernels that are tuned for a platform and a kind of product."""
    files = [Path(str(module.__file__)) for module in SOURCES[platform, kind]]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def versions() -> str:
    """What a measurement depends on beside the kernels."""
    return f"jax {jax.__version__}"


def _entries(text: str) -> dict[str, Tuned]:
    content = json.loads(text)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, not {VERSION}")
    found = [_entry(one) for one in content["tiles"]]
    return {tuned.key: tuned for tuned in found}


def _entry(found: dict[str, Any]) -> Tuned:
    """One entry; raises ValueError, TypeError, AttributeError or KeyError if it is none."""
    tuned = Tuned(**{**found, "tile": tuple(int(n) for n in found["tile"])})
    costs = {name: float(cost) for name, cost in tuned.costs.items()}
    if str(Candidate(tuned.kernel, tuned.tile)) not in costs:
        raise ValueError(f"the tile of {tuned.product!r} has no cost")
    return tuned
