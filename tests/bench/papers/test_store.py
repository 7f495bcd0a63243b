"""bench/papers/store.py: results by name, whole or not at all, of one experiment only."""

import numpy as np
import pytest

from bench.papers.store import Store


def test_a_result_comes_back(tmp_path):
    store = Store(tmp_path / "new" / "folder", {"seeds": (0, 1), "steps": 3})
    assert not store.has("runs/a")
    store.write("runs/a", {"accuracy": 0.5}, {"x": np.arange(3)})
    assert store.has("runs/a")
    assert store.read("runs/a") == {"accuracy": 0.5}
    np.testing.assert_array_equal(store.arrays("runs/a")["x"], [0, 1, 2])
    again = Store(tmp_path / "new" / "folder", {"seeds": (0, 1), "steps": 3})
    assert again.has("runs/a")
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_of_other_settings_is_refused(tmp_path):
    Store(tmp_path, {"seeds": (0, 1), "steps": 3})
    with pytest.raises(ValueError, match=r"--out: .* was made with other steps, width; fix"):
        Store(tmp_path, {"seeds": (0, 1), "steps": 4, "width": 8})


def test_arrays_without_their_numbers_are_no_result(tmp_path, monkeypatch):
    store = Store(tmp_path, {})

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.papers.store.write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.write("a", {}, {"x": np.zeros(2)})
    assert not store.has("a")


def test_a_damaged_file_is_named(tmp_path):
    store = Store(tmp_path, {})
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is damaged: .*; fix: remove it"):
        store.read("a")
