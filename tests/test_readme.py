"""The README tells the truth: its generated blocks are what the commands print today.

`pytest tests/test_readme.py --update-golden` writes them anew.
"""

import re
import shlex
from pathlib import Path

import pytest

from moegen import cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(
    r"<!-- generated: moegen (?P<command>[^\n]*?) -->\n```[a-z]*\n(?P<text>.*?)```", re.DOTALL
)


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(shlex.split(command)) == 0
    return capsys.readouterr().out


def test_generated_blocks_are_current(monkeypatch, capsys, request):
    monkeypatch.chdir(ROOT)
    text = README.read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        text = BLOCK.sub(
            lambda m: m[0].replace("```\n" + m["text"], "```\n" + printed(m["command"], capsys)),
            text,
        )
        README.write_text(text, encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= 7, "the README shows the layer after each pass"
    for block in blocks:
        assert block["text"] == printed(block["command"], capsys), block["command"]


def test_python_in_the_readme_runs():
    """All Python blocks in order, in one namespace, as a reader would type them."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    namespace: dict = {}
    filename = str(ROOT / "docs" / "noisy_top_k.py")
    for block in blocks:
        exec(compile("from __future__ import annotations\n" + block, filename, "exec"), namespace)
    assert namespace["y"].shape == namespace["x"].shape
    assert namespace["aux"]["importance"].shape == (2,)


def test_example_stands_in_the_readme():
    """The DSL example is the file that the generated blocks were made from."""
    source = (ROOT / "docs" / "noisy_top_k.py").read_text(encoding="utf-8")
    example = source[source.index("@mg.router") :]
    assert example.strip() in README.read_text(encoding="utf-8")
