"""The catalogue: every router of the package is in it, and docs/routers.md is current."""

from pathlib import Path

import pytest

from moegen import catalogue, cli, routers

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routers.md"


@pytest.fixture(scope="module")
def found():
    return catalogue.entries()


def test_every_router_has_an_entry_with_a_paper(found):
    assert [e.name for e in found] == sorted(routers.__all__)
    for entry in found:
        assert entry.papers, f"{entry.name} names no paper in its docstring"
        assert entry.formats, f"{entry.name} can be stored in no format"
        assert entry.summary.endswith("."), entry.name


def test_command_lists_them(capsys):
    assert cli.main(["routers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["router", "who", "chooses"]
    assert len(lines) == 1 + len(routers.__all__)
    assert any(li.startswith("noisy_top_k") and "load_loss" in li for li in lines)


def test_page_is_current(found, request):
    text = catalogue.markdown(found)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text
