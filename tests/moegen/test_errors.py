"""What an error prints, and where it finds the author's line."""

import pytest

from moegen import errors
from moegen.errors import Location, MoegenError, did_you_mean


def test_message_with_all_parts(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("first\n   second line  \n")
    error = errors.ShapeError(
        "top_k: k=6", fix="pick k <= 4", op="top_k(%x)", location=Location(str(path), 2, "router")
    )
    assert str(error) == "\n".join(
        [
            "top_k: k=6",
            "  in  top_k(%x)",
            "  --> mine.py:2 in router",
            "   | second line",
            "  fix: pick k <= 4",
        ]
    )


def test_message_with_what_is_known():
    assert str(MoegenError("no")) == "no"
    located = MoegenError("no", location=Location("not/a/file.py", 3))
    assert str(located) == "no\n  --> file.py:3"


def test_located_fills_only_gaps():
    error = MoegenError("no", op="mine")
    assert error.located("other", Location("a.py", 1)) is error
    assert (error.op, str(error.location)) == ("mine", "a.py:1")
    error.located("other", Location("b.py", 2))
    assert str(error.location) == "a.py:1"


def test_every_error_is_a_moegen_error():
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert len(kinds) >= 11
    for kind in kinds:
        with pytest.raises(MoegenError, match="no"):
            raise kind("no")


def test_did_you_mean():
    assert did_you_mean("capasity", ["capacity", "k"]) == ' (did you mean "capacity"?)'
    assert did_you_mean("e", ["G", "S", "E"]) == ' (did you mean "E"?)'
    assert did_you_mean("zzz", ["capacity"]) == ""
