"""`vmoe configs`: the configs that come with vmoe."""

from __future__ import annotations

import ast

from vmoe.commands.given import Given
from vmoe.overrides import CONFIGS


def run(given: Given) -> int:
    """Prints each config's name and the first line of its docstring."""
    files = sorted(CONFIGS.glob("[a-z]*.py"))
    width = max(len(file.stem) for file in files)
    for file in files:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        print(f"{file.stem:{width}}  {text.splitlines()[0]}")
    return 0
