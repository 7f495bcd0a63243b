"""Finding routers and experts by name."""

import pytest

import moegen as mg
from moegen import experts, routers
from moegen.errors import TraceError


def test_a_bare_name_is_the_packages():
    assert mg.find("mixtral", mg.Router, routers) is routers.mixtral
    assert mg.find("mlp", mg.Expert, experts) is experts.mlp


def test_a_module_and_a_name():
    assert mg.find("moegen.routers.switch:switch", mg.Router, routers) is routers.switch


def test_the_nearest_name_is_offered():
    with pytest.raises(TraceError, match=r'no router mixtrall .*did you mean "mixtral"'):
        mg.find("mixtrall", mg.Router, routers)


def test_a_file_that_does_not_run_says_why(tmp_path):
    (tmp_path / "wrong.py").write_text("one = 1 / 0\n")
    with pytest.raises(TraceError, match=r"wrong.py does not run: ZeroDivisionError"):
        mg.find(f"{tmp_path / 'wrong.py'}:router", mg.Router, routers)
