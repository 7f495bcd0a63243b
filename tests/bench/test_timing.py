"""bench/timing.py: pairs, ratios and the refusal of too few rounds."""

from collections.abc import Callable

import pytest

from bench import timing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock in seconds that moves only when a test's function moves it."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def taking(clock: list[float], *seconds: float) -> Callable[[], None]:
    """A function whose n-th call takes the n-th time; after the last, the last again."""
    left = list(seconds)

    def run() -> None:
        clock[0] += left.pop(0) if len(left) > 1 else left[0]

    return run


def test_ratios_are_to_the_baseline(clock: list[float]) -> None:
    baseline = taking(clock, 0.002)
    rows = timing.compare(
        baseline, {"twice": taking(clock, 0.004), "half": taking(clock, 0.001)}, 5
    )
    assert [row.name for row in rows] == ["dense", "twice", "half"]
    assert [row.ratio for row in rows] == pytest.approx([1, 2, 0.5])
    assert [row.median_ms for row in rows] == pytest.approx([2, 4, 1])


def test_a_slow_phase_of_the_machine_divides_out(clock: list[float]) -> None:
    # Two warm-up calls each, then five pairs; in the last three everything is ten times slower.
    baseline = taking(clock, 1, 1, 1, 1, 10, 10, 10)
    candidate = taking(clock, 1, 1, 1.5, 1.5, 15, 15, 15)
    row = timing.compare(baseline, {"candidate": candidate}, 5)[1]
    assert (row.ratio_low, row.ratio, row.ratio_high) == pytest.approx((1.5, 1.5, 1.5))


def test_warm_up_is_not_counted(clock: list[float]) -> None:
    candidate = taking(clock, 100, 100, 1)  # the first two calls compile and touch memory
    row = timing.compare(taking(clock, 1), {"candidate": candidate}, 3)[1]
    assert row.ratio_high == pytest.approx(1)


def test_too_few_rounds_are_refused(clock: list[float]) -> None:
    with pytest.raises(ValueError, match="rounds=2: quartiles need at least 3"):
        timing.compare(taking(clock, 1), {"a": taking(clock, 1)}, 2)
