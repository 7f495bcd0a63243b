"""Finds a declared router or expert: by its bare name, in a Python file, or in a module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from moegen.dsl.declare import Declared
from moegen.errors import TraceError, did_you_mean

T = TypeVar("T", bound=Declared)
_HOW = "give FILE.py:NAME or MODULE:NAME"


def find(name: str, kind: type[T], package: ModuleType) -> T:
    """The declared router or expert of that name.

    Args:
      name: "noisy_top_k" of the package, "FILE.py:NAME" of a file, or "MODULE:NAME". The file or
        module is run, as any import is.
      kind: Router or Expert.
      package: where bare names are looked up, such as moegen.routers.

    Raises:
      TraceError: if there is no such file, module or name (with the nearest real one), or the
        file does not run.
    """
    source, _, wanted = name.rpartition(":")
    holder = _load(source) if source else package
    known = {n: v for n, v in vars(holder).items() if isinstance(v, kind)}
    if wanted not in known:
        raise TraceError(
            f"no {kind.__name__.lower()} {wanted} in {source or package.__name__}"
            f"{did_you_mean(wanted, list(known))}",
            fix=f"use one of {', '.join(sorted(known)) or 'none'}, or FILE.py:NAME",
        )
    return known[wanted]


def _load(source: str) -> ModuleType:
    try:
        return _file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except TraceError:
        raise
    except ImportError as error:
        raise TraceError(f"{source} cannot be imported: {error}", fix=_HOW) from error
    except Exception as error:  # whatever the author's file raises is the author's to read
        what = f"{source} does not run: {type(error).__name__}: {error}"
        raise TraceError(what, fix=f"run `python {source}` for the whole traceback") from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TraceError(f"{path} is not a file", fix=_HOW)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise TraceError(f"{path} is not a Python file", fix=_HOW)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
