"""The README and the guide tell the truth: what they print is what the commands print today.

`pytest tests/test_readme.py --update-golden` writes them anew.
"""

import re
import shlex
from pathlib import Path

import pytest

from moegen import cli
from vmoe import cli as vmoe
from vmoe.metrics import JSONL, read_jsonl

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"<!-- generated: moegen (?P<command>[^\n]*?) -->\n```[a-z]*\n(?P<text>.*?)```", re.DOTALL
)


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(shlex.split(command)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("document, least", [("README.md", 7), ("docs/write-a-router.md", 1)])
def test_generated_blocks_are_current(document, least, monkeypatch, capsys, request):
    monkeypatch.chdir(ROOT)
    text = (ROOT / document).read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        text = BLOCK.sub(
            lambda m: m[0].replace("```\n" + m["text"], "```\n" + printed(m["command"], capsys)),
            text,
        )
        (ROOT / document).write_text(text, encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) >= least, "the layer after each pass"
    for block in blocks:
        assert block["text"] == printed(block["command"], capsys), block["command"]


def run_python(document: str, example: str) -> dict:
    """Runs all Python blocks in order, in one namespace, as a reader would type them."""
    text = (ROOT / document).read_text(encoding="utf-8")
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        source = "from __future__ import annotations\n" + block
        exec(compile(source, str(ROOT / example), "exec"), namespace)
    return namespace


def test_python_in_the_readme_runs():
    made = run_python("README.md", "docs/noisy_top_k.py")
    assert made["y"].shape == made["x"].shape
    assert made["aux"]["importance"].shape == (2,)


def test_python_in_write_a_router_runs():
    made = run_python("docs/write-a-router.md", "docs/cosine.py")
    assert made["other"] is not made["layer"], "the last block ran"


def test_the_command_in_write_a_router_trains(monkeypatch, tmp_path):
    text = (ROOT / "docs" / "write-a-router.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```console\nvmoe (.*?)\n```", text)
    monkeypatch.chdir(ROOT)
    small = ["steps=2", "model.depth=2", "model.moe.layers=(1,)", "optim.schedule.warmup_steps=1"]
    flags = [flag for flag in shlex.split(command) if not flag.startswith("--workdir")]
    flags += [f"--config.{field}" for field in (*small, f"workdir={tmp_path}")]
    assert vmoe.main(flags) == 0
    records = {r["kind"]: r for r in read_jsonl(tmp_path / JSONL)}
    assert records["train"]["step"] == 2
    assert records["train"]["auxiliary_loss"] > 0
    assert 0 <= records["eval"]["dropped"] < 1


@pytest.mark.parametrize(
    "document, file", [("README.md", "noisy_top_k.py"), ("docs/write-a-router.md", "cosine.py")]
)
def test_example_stands_in_the_document(document, file):
    """The DSL example is the file that the generated blocks were made from."""
    source = (ROOT / "docs" / file).read_text(encoding="utf-8")
    example = source[source.index("@mg.router") :]
    assert example.strip() in (ROOT / document).read_text(encoding="utf-8")
