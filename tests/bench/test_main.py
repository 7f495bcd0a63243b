"""`python -m bench`: the list of suites, and one clear line for a user's mistake."""

from pathlib import Path

import pytest

from bench.__main__ import SUITES, main


def test_without_a_suite_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, suite in SUITES.items():
        assert name in printed
        assert suite.__doc__.splitlines()[0] in " ".join(printed.split())


def test_an_unknown_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["layers"])
    assert exit_.value.code == 2
    assert "invalid choice: 'layers'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--rounds=1"], "error: rounds=1: quartiles need at least 3"),
        (["--json=absent/result.json"], "error: --json: absent is no folder"),
    ],
)
def test_bad_flags_are_one_line_and_write_nothing(
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["layer", "--quick", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
