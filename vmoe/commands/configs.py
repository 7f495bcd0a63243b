"""`vmoe configs`: the configs that come with vmoe."""

from __future__ import annotations

import ast

from vmoe.commands.given import Given
from vmoe.overrides import CONFIGS


def run(given: Given) -> int:
    """Prints each config's name and the first line of its docstring."""
    for file in sorted(CONFIGS.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        print(f"{file.stem:16} {text.splitlines()[0]}")
    return 0
