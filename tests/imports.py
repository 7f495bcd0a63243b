"""Reads which modules a Python file imports, without running it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("moegen", "vmoe", "bench")


@dataclass(frozen=True)
class Import:
    """One import: the importing file, its line, and the dotted module it asks for."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def source_files(root: Path = ROOT) -> list[str]:
    """Every Python file of the packages, as posix paths relative to `root`, sorted."""
    found = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return sorted(path.relative_to(root).as_posix() for path in found)


def module_name(file: str) -> str:
    """`moegen/ir/types.py` -> `moegen.ir.types`; a package's `__init__.py` -> the package."""
    return ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: str, root: Path = ROOT) -> list[Import]:
    """All imports of one file: at the top, inside functions and under TYPE_CHECKING alike."""
    tree = ast.parse((root / file).read_text(encoding="utf-8"), filename=file)
    return [
        Import(file, node.lineno, module)
        for node in ast.walk(tree)
        for module in _modules(node, file, root)
    ]


def all_imports(root: Path = ROOT) -> list[Import]:
    """All imports of all source files under `root`."""
    return [found for file in source_files(root) for found in imports_of(file, root)]


def is_own(module: str) -> bool:
    """Whether the module is one of this project's packages."""
    return module.partition(".")[0] in PACKAGES


def _modules(node: ast.AST, file: str, root: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = _absolute(node, file)
        for alias in node.names:
            name = f"{base}.{alias.name}"
            yield name if _is_module(name, root) else base


def _absolute(node: ast.ImportFrom, file: str) -> str:
    if not node.level:
        return node.module or ""
    package = Path(file).parent.parts
    parts = package[: len(package) - node.level + 1]
    return ".".join((*parts, node.module) if node.module else parts)


def _is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()
