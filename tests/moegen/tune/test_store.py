"""moegen/tune/store.py: what was measured comes back; a damaged file is named and left as it is."""

import json

import pytest

from moegen.errors import TuneError
from moegen.tune.store import Measured, add_to_store, read_store

TIMES = {"slots": 1.5, "onehot": 2.0}
ONE = Measured("moe", "cpu", "0.10.2", "forward", "slots", TIMES, {"sorted": "no"})


def test_what_is_added_is_read(tmp_path):
    path = tmp_path / "folder" / "store.json"
    assert read_store(path) == {}
    add_to_store(path, "b", ONE)
    add_to_store(path, "a", ONE)
    assert read_store(path) == {"a": ONE, "b": ONE}
    assert list(path.parent.iterdir()) == [path]


def test_it_prints_the_fastest_first():
    lines = str(ONE).splitlines()
    assert lines[0] == "moe, forward, cpu, jax 0.10.2"
    assert lines[1].split() == ["slots", "1.500", "ms", "<-", "fastest"]
    assert lines[-1] == "sorted    left out: no"


ENTRY = {"program": "moe", "device": "cpu", "jax": "1", "direction": "forward", "left_out": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{",
        '{"version": 2, "choices": {}}',
        '{"version": 1, "choices": []}',
        '{"version": 1, "choices": {"a": {}}}',
        '{"version": 1, "choices": {"a": 3}}',
        json.dumps({"version": 1, "choices": {"a": {**ENTRY, "format": "x", "milliseconds": {}}}}),
        json.dumps({"version": 1, "choices": {"a": {**ENTRY, "format": 1, "milliseconds": 3}}}),
    ],
)
def test_a_damaged_store_is_refused_by_name_and_kept(tmp_path, text):
    path = tmp_path / "store.json"
    path.write_text(text)
    with pytest.raises(TuneError, match=r"store\.json is no store of measured choices"):
        add_to_store(path, "b", ONE)
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "store.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TuneError, match=r"store\.json"):
        read_store(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(TuneError, match="no store"):
        read_store(tmp_path)
