"""Targets: each has its source, and JAX's device kinds find theirs."""

import pytest

from moegen.tune.target import KINDS, TARGETS, target_of


def test_every_target_names_its_source():
    for target in TARGETS.values():
        assert target.source, target.name
        assert target.rate("bf16") > 0


@pytest.mark.parametrize(
    "platform,kind,name",
    [
        ("tpu", "TPU v5 lite", "tpu_v5e"),
        ("tpu", "TPU v5", "tpu_v5p"),
        ("tpu", "TPU v5p", "tpu_v5p"),
        ("tpu", "TPU v6 lite", "tpu_v6e"),
        ("tpu", "TPU7x", "tpu7x"),
        ("gpu", "NVIDIA H100 80GB HBM3", "h100"),
        ("gpu", "NVIDIA H200", "h200"),
        ("gpu", "NVIDIA B200", "b200"),
        ("gpu", "something new", "h100"),
        ("cpu", "cpu", "cpu"),
    ],
)
def test_a_device_kind_finds_its_target(platform, kind, name):
    assert target_of(platform, kind).name == name


def test_kinds_are_of_known_targets():
    assert set(KINDS.values()) == set(TARGETS) - {"cpu"}


def test_rates_by_dtype():
    assert TARGETS["h100"].rate("f32") == TARGETS["h100"].rate("bf16") / 2
    assert TARGETS["tpu_v5e"].rate("i8") == 2 * TARGETS["tpu_v5e"].rate("bf16")
    assert TARGETS["tpu_v5e"].rate("f64") == TARGETS["tpu_v5e"].flops
