"""BUILD tells the truth: every source is in one library, and a library's edges are its imports."""

import ast
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.imports import ROOT, imports_of, is_own, module_name, source_files
from tests.test_layering import ALLOWED, layer_of


@dataclass(frozen=True)
class Library:
    """A py_library of BUILD with its globs expanded to files."""

    name: str
    files: frozenset[str]
    deps: frozenset[str]


def read_libraries(root: Path = ROOT) -> dict[str, Library]:
    """The py_library rules of BUILD, which may stand at the top level only."""
    tree = ast.parse((root / "BUILD").read_text(encoding="utf-8"), filename="BUILD")
    rules = [node.value for node in tree.body if _is_call(getattr(node, "value", None))]
    total = sum(_is_call(node) for node in ast.walk(tree))
    assert len(rules) == total, "BUILD: a py_library inside an expression cannot be checked"
    libraries = [_library(rule, root) for rule in rules]
    repeated = [name for name, n in Counter(lib.name for lib in libraries).items() if n > 1]
    assert not repeated, f"BUILD: defined twice: {repeated}"
    return {lib.name: lib for lib in libraries}


def problems(root: Path = ROOT) -> list[str]:
    """All differences between BUILD and the code, each a sentence that says what to change."""
    libraries = read_libraries(root)
    return [*_unowned(libraries, root), *_wrong_edges(libraries, root), *_cycles(libraries)]


def _is_call(node: ast.AST | None, name: str = "py_library") -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _library(rule: ast.Call, root: Path) -> Library:
    fields = {keyword.arg: keyword.value for keyword in rule.keywords}
    name = ast.literal_eval(fields["name"])
    srcs = _expand(fields["srcs"], root)
    deps = ast.literal_eval(fields.get("deps", ast.List([])))
    return Library(name, frozenset(srcs), frozenset(dep.removeprefix(":") for dep in deps))


def _expand(value: ast.expr, root: Path) -> set[str]:
    """The files of a `srcs` value: a list of names, a glob, or a sum of these."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _expand(value.left, root) | _expand(value.right, root)
    if isinstance(value, ast.Call) and _is_call(value, "glob"):
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        excluded = _matches(ast.literal_eval(arguments.get("exclude", ast.List([]))), root)
        return _matches(ast.literal_eval(value.args[0]), root) - excluded
    return set(ast.literal_eval(value))


def _matches(patterns: list[str], root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for p in patterns for path in root.glob(p)}


def _owners(libraries: dict[str, Library]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for library in libraries.values():
        for file in library.files:
            owners.setdefault(file, []).append(library.name)
    return owners


def _unowned(libraries: dict[str, Library], root: Path) -> list[str]:
    owners, sources = _owners(libraries), set(source_files(root))
    wrong = [
        f"BUILD: {file} is in {len(names)} libraries {names}, not in 1"
        for file in sorted(sources)
        if len(names := owners.get(file, [])) != 1
    ]
    absent = [f"BUILD: {file} does not exist" for file in sorted(set(owners) - sources)]
    empty = [f"BUILD: :{lib.name} has no sources" for lib in libraries.values() if not lib.files]
    return wrong + absent + empty


def _wrong_edges(libraries: dict[str, Library], root: Path) -> list[str]:
    owner = {module_name(file): names[0] for file, names in _owners(libraries).items()}
    found: list[str] = []
    for library in libraries.values():
        needed = _needed(library, owner, root)
        found += [
            f"BUILD: :{library.name} lacks the dependency ':{dep}': {needed[dep]}"
            for dep in sorted(needed.keys() - library.deps)
        ]
        found += [
            f"BUILD: :{library.name} lists ':{dep}', which none of its files imports: remove it"
            for dep in sorted(library.deps - needed.keys())
        ]
    return found


def _needed(library: Library, owner: dict[str, str], root: Path) -> dict[str, str]:
    """Library -> one import that needs it, over the files of `library`."""
    needed: dict[str, str] = {}
    for file in sorted(library.files):
        if not (root / file).is_file():
            continue  # `_unowned` reports it
        for found in imports_of(file, root):
            if is_own(found.module):
                target = owner.get(found.module, f"nothing that owns {found.module}")
                needed.setdefault(target, str(found))
    needed.pop(library.name, None)
    return needed


def _cycles(libraries: dict[str, Library]) -> list[str]:
    """Remove libraries without unmet dependencies until none is left; what stays is in a cycle."""
    left = {name: set(lib.deps) & libraries.keys() for name, lib in libraries.items()}
    while free := {name for name, deps in left.items() if not deps & left.keys()}:
        left = {name: deps for name, deps in left.items() if name not in free}
    return [f"BUILD: a cycle runs through {sorted(left)}"] if left else []


def test_build_equals_the_code() -> None:
    found = problems()
    assert not found, "\n".join(found)  # sentences, which pytest would cut short


def test_every_layer_of_the_architecture_has_its_library() -> None:
    libraries = read_libraries()
    present = {layer_of(module_name(file)) for file in source_files()}
    for layer in sorted(present & ALLOWED.keys() - {"vmoe", "bench"}):
        name = layer.replace("._", ".").replace(".", "_")
        assert {layer_of(module_name(file)) for file in libraries[name].files} == {layer}


def test_bazel_imports_every_library_alone() -> None:
    tree = ast.parse((ROOT / "BUILD").read_text(encoding="utf-8"))
    (layers,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS"
    )
    assert layers == sorted(read_libraries())


BUILD_TEXT = """
py_library(name = "low", srcs = glob(["moegen/ir/**/*.py"]))
py_library(name = "high", srcs = ["moegen/ops/a.py"], deps = [":low"])
"""
CODE = {"moegen/ir/types.py": "", "moegen/ops/a.py": "from moegen.ir.types import X"}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_true_file_has_no_problems(tmp_path: Path) -> None:
    write(tmp_path, {"BUILD": BUILD_TEXT, **CODE})
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    "change,expected",
    [
        ({"moegen/ir/types.py": "import moegen.ops.a"}, "lacks the dependency ':high'"),
        ({"moegen/ops/a.py": ""}, "none of its files imports: remove it"),
        ({"moegen/ops/b.py": ""}, "moegen/ops/b.py is in 0 libraries"),
        ({"BUILD": BUILD_TEXT.replace("a.py", "gone.py")}, "moegen/ops/gone.py does not exist"),
        (
            {"BUILD": BUILD_TEXT + 'py_library(name = "x", srcs = ["moegen/ops/a.py"])'},
            "in 2 libraries",
        ),
        ({"moegen/ops/a.py": "import moegen.nowhere"}, "nothing that owns moegen.nowhere"),
        (
            {
                "BUILD": BUILD_TEXT.replace('.py"]))', '.py"]), deps = [":high"])'),
                "moegen/ir/types.py": "import moegen.ops.a",
            },
            "a cycle runs through ['high', 'low']",
        ),
    ],
)
def test_a_planted_difference_is_found(
    tmp_path: Path, change: dict[str, str], expected: str
) -> None:
    write(tmp_path, {"BUILD": BUILD_TEXT, **CODE, **change})
    assert any(expected in problem for problem in problems(tmp_path))


def test_a_hidden_library_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"BUILD": '[py_library(name = n, srcs = []) for n in ["a"]]', **CODE})
    with pytest.raises(AssertionError, match="cannot be checked"):
        read_libraries(tmp_path)
