"""Classes are called what the config says, else what their data does, else by number."""

import pytest

from vmoe.config import DataConfig
from vmoe.data.class_names import checked_names, class_name
from vmoe.data.pipeline import load
from vmoe.errors import UserError


def test_the_config_goes_before_the_data():
    assert checked_names((), ("ant", "bee"), 2) == ("ant", "bee")
    assert checked_names(("Ameise", "Biene"), ("ant", "bee"), 2) == ("Ameise", "Biene")
    assert checked_names((), (), 2) == ()


def test_a_class_without_a_name_has_its_number():
    assert [class_name(("ant",), label) for label in (0, 1)] == ["ant", "class 1"]


def test_names_reach_images_in_memory():
    names = tuple(f"digit {n}" for n in range(10))
    train, test = load(DataConfig(class_names=names))
    assert train.class_names == test.first(3).class_names == names


def test_names_that_are_too_few_are_refused():
    with pytest.raises(UserError, match="class_names has 2 names and the data 10 classes"):
        load(DataConfig(class_names=("zero", "one")))
