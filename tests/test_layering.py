"""Imports run downwards only: each layer may import the layers listed for it here, and no other.

The table is the architecture of docs/architecture.md. `dsl`, `passes` and `kernels`/`backends` are
siblings that never meet before `tune` and `runtime`. The routers and experts that ship with moegen
stand above it: they are programs on its public names, as a user's are. So are the models and
benchmarks.
"""

import sys
from pathlib import Path

import pytest

from tests.imports import ROOT, Import, all_imports, imports_of, is_own, module_name, source_files

BASE = {"moegen.errors", "moegen._compat"}
OPS = BASE | {"moegen.ir", "moegen.ops"}
BELOW_TUNE = OPS | {"moegen.dsl", "moegen.passes", "moegen.kernels", "moegen.backends"}
BELOW_PUBLIC = BELOW_TUNE | {"moegen.tune", "moegen.runtime"}
PUBLIC = {"moegen", "moegen.errors", "moegen.experts", "moegen.plan", "moegen.routers"}

# layer -> the other layers it may import
ALLOWED: dict[str, set[str]] = {
    "moegen.errors": set(),
    "moegen._compat": {"moegen.errors"},
    "moegen.ir": BASE,
    "moegen.ops": BASE | {"moegen.ir"},
    "moegen.dsl": OPS,
    "moegen.passes": OPS,
    "moegen.kernels": {"moegen.errors"},
    "moegen.backends": OPS | {"moegen.kernels"},
    "moegen.tune": BELOW_TUNE,
    "moegen.runtime": BELOW_TUNE | {"moegen.tune"},
    "moegen": BELOW_PUBLIC,
    "moegen.plan": BELOW_PUBLIC,
    "moegen.experts": {"moegen", "moegen.errors"},
    "moegen.routers": {"moegen", "moegen.errors"},
    "moegen.catalogue": BELOW_PUBLIC | {"moegen", "moegen.experts", "moegen.routers"},
    "moegen.cli": BELOW_PUBLIC | {"moegen", "moegen.catalogue", "moegen.experts", "moegen.routers"},
    "vmoe": PUBLIC,
    "bench": PUBLIC | {"vmoe", "moegen.kernels", "moegen.tune"},
}

# What each part may take from outside the standard library; pyproject.toml installs no more.
JAX = {"jax", "jaxlib", "numpy"}
TRAINER = {
    "absl", "google_crc32c", "grain", "ml_collections", "ml_dtypes", "msgpack", "optax", "orbax",
    "PIL", "safetensors", "scipy", "sklearn", "tensorboardX",
    "tensorflow_datasets",  # where it is installed; nothing needs it
}  # fmt: skip
THIRD_PARTY: dict[str, set[str]] = {
    "moegen.kernels": JAX,
    "moegen": JAX | {"absl"},
    "vmoe": JAX | TRAINER,
    "bench": JAX | {"absl", "PIL"},  # PIL only where --png is given
}


def layer_of(module: str) -> str:
    """The layer a module belongs to; a module that no layer holds is an error of the layout."""
    if not module.startswith("moegen"):
        return module.partition(".")[0]
    layer = ".".join(module.split(".")[:2])
    if layer not in ALLOWED:
        raise LookupError(f"{module} is in no layer of tests/test_layering.py: add its place there")
    return layer


def upward(found: Import) -> bool:
    """Whether an import of the project's own code leaves its layer for one that is not below it."""
    source, target = layer_of(module_name(found.file)), layer_of(found.module)
    if source == target:
        return False
    # The models see names, not modules: `moegen.routers` is public, `moegen.routers.soft` is too,
    # `moegen.ir` is not.
    return target not in ALLOWED[source]


def foreign(found: Import) -> bool:
    """Whether an import takes a package from outside that its part of the project may not use."""
    top = found.module.partition(".")[0]
    if is_own(top) or top in sys.stdlib_module_names:
        return False
    layer = layer_of(module_name(found.file))
    return top not in THIRD_PARTY.get(layer, THIRD_PARTY[layer.partition(".")[0]])


def upward_imports(root: Path = ROOT) -> list[str]:
    return [str(i) for i in all_imports(root) if is_own(i.module) and upward(i)]


def foreign_imports(root: Path = ROOT) -> list[str]:
    return [str(i) for i in all_imports(root) if foreign(i)]


def plant(root: Path, file: str, text: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_there_are_sources_to_hold() -> None:
    layers = {layer_of(module_name(file)) for file in source_files()}
    assert {"moegen.errors", "moegen.ir", "moegen.ops", "vmoe", "bench"} <= layers


def test_imports_run_downwards() -> None:
    found = upward_imports()
    assert not found, "\n".join(found)


def test_third_party_imports_are_the_declared_ones() -> None:
    found = foreign_imports()
    assert not found, "\n".join(found)


def test_the_table_has_no_cycle() -> None:
    below: set[str] = set()
    for layer, allowed in ALLOWED.items():
        assert allowed <= below, f"{layer} may import {allowed - below}, which come after it"
        below.add(layer)


@pytest.mark.parametrize(
    "file,text",
    [
        ("moegen/ir/types.py", "import moegen.ops.linalg"),
        ("moegen/ir/types.py", "from moegen import ops"),
        ("moegen/ir/types.py", "from ..ops import linalg"),
        ("moegen/ir/types.py", "def late():\n    from moegen.runtime import compile"),
        ("moegen/ops/linalg.py", "import moegen"),
        ("moegen/passes/fuse.py", "from moegen.dsl import trace"),
        ("moegen/dsl/trace.py", "from moegen.passes import fuse"),
        ("moegen/kernels/rows.py", "from moegen.ir import types"),
        ("moegen/backends/xla.py", "from moegen.tune import cost"),
        ("moegen/runtime/compile.py", "import moegen.cli"),
        ("moegen/__init__.py", "from moegen import routers"),
        ("moegen/routers/soft.py", "from moegen.ops import linalg"),
        ("vmoe/moe.py", "from moegen.ir import types"),
        ("vmoe/moe.py", "import moegen.runtime.schedule"),
        ("bench/layer.py", "from moegen.backends import xla"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    plant(tmp_path, "moegen/ops/linalg.py", "")
    plant(tmp_path, "moegen/routers/__init__.py", "")
    plant(tmp_path, file, text)
    assert len(upward_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    "file,text",
    [
        ("moegen/kernels/rows.py", "import absl.logging"),
        ("moegen/ir/types.py", "import optax"),
        ("vmoe/model.py", "from flax import linen"),
        ("bench/layer.py", "import torch"),
    ],
)
def test_a_planted_foreign_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    plant(tmp_path, file, text)
    assert len(foreign_imports(tmp_path)) == 1


def test_permitted_imports_pass(tmp_path: Path) -> None:
    plant(tmp_path, "moegen/ops/linalg.py", "import jax\nfrom moegen.ir import types\nimport ast")
    plant(tmp_path, "moegen/ir/types.py", "from . import program\nfrom moegen.errors import E")
    plant(tmp_path, "vmoe/moe.py", "import moegen\nfrom moegen.routers import noisy_top_k")
    assert upward_imports(tmp_path) == []
    assert foreign_imports(tmp_path) == []
    assert len(imports_of("moegen/ops/linalg.py", tmp_path)) == 3


def test_a_module_outside_the_layout_is_refused() -> None:
    with pytest.raises(LookupError, match=r"moegen\.helpers is in no layer"):
        layer_of("moegen.helpers")
