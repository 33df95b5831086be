"""Targets are read, spikes found, percentiles taken."""

import math
import tracemalloc

import numpy as np
import pytest

from lr_lightning.diagnosis import cost
from lr_lightning.diagnosis.cost import Reach, Target, median_time, parse_target, percentiles, spikes, time_to


@pytest.mark.parametrize(
    ("text", "value", "reached"),
    [
        ("val/acc>=0.97", 0.97, True),
        ("val/acc>0.97", 0.97, False),
        ("val/acc <= 1e0", 0.97, True),
        ("val/acc<.5", 0.97, False),
        ("val/other>=0", 0.97, False),
    ],
)
def test_targets(text: str, value: float, reached: bool) -> None:
    assert parse_target(text).reached({"val/acc": value}) is reached


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("val/acc>=0.97", Target("val/acc", ">=", 0.97)),
        (" val loss < 1e-1 ", Target("val loss", "<", 0.1)),
        ("val/loss<=.5", Target("val/loss", "<=", 0.5)),
        ("a>0", Target("a", ">", 0.0)),
    ],
)
def test_a_target_is_read_and_prints_as_it_is_written(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize("text", ["val/acc", "val/acc>=", ">=0.9", "val/acc=0.9", "val/acc>=fast", "val/acc>=nan", ""])
def test_a_bad_target_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match=r"one of >= <= > <, and a number, such as val/acc>=0\.97"):
        parse_target(text)


def test_spikes_of_a_long_run_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = np.random.default_rng(0).normal(2.0, 0.3, 30_000) ** 2
    losses[[5, 20_000]] = np.inf, np.nan
    tracemalloc.start()
    try:
        found = spikes(losses)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6  # all windows at once take 24 MB
    assert {5, 20_000} < set(found.tolist())
    for windows in (7, 30_000):
        monkeypatch.setattr(cost, "_WINDOWS", windows)
        assert np.array_equal(spikes(losses), found)


def test_spikes_are_found_where_they_were_put_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    curve = 2 * np.exp(-np.arange(1000) / 300) + 0.05 * rng.normal(size=1000)
    assert len(spikes(curve)) == 0
    curve[[200, 201, 202, 600]] += 2.0
    assert spikes(curve).tolist() == [200, 600]  # one that lasts is one
    curve[700:710] = np.nan
    assert spikes(curve).tolist() == [200, 600, 700]


def test_ripples_of_a_loss_near_zero_are_none() -> None:
    curve = np.concatenate([np.linspace(2, 0, 100), np.full(200, 1e-4)])
    curve[250] = 0.05
    assert len(spikes(curve)) == 0


def test_short_curves_have_none_unless_they_are_not_finite() -> None:
    assert spikes([]).tolist() == []
    assert spikes([1.0, 9.0]).tolist() == []
    assert spikes([1.0, np.inf]).tolist() == [1]


def test_percentiles_leave_out_what_is_not_finite() -> None:
    assert percentiles([1.0, 2.0, 3.0, np.nan], at=(50, 100)) == {"p50": 2.0, "p100": 3.0}
    assert percentiles([]) == {}


# -- the time to a target -----------------------------------------------------------------------------------------


def test_time_to_a_target() -> None:
    target = Target("val/acc", ">=", 0.9)
    assert time_to(target, [10, 20, 30], [0.5, 0.9, 0.8]) == Reach(20, True)
    assert time_to(target, [10, 20], [0.5, 0.6]) == Reach(20, False)
    assert time_to(target, [10, 20], [0.5, 0.6], diverged=True) == Reach(math.inf, False)
    assert time_to(target, [], []) is None
    assert time_to(Target("val/loss", "<", 0.3), [1, 2], [0.3, 0.29]) == Reach(2, True)


def test_the_median_counts_runs_that_were_stopped_only_for_as_long_as_they_ran() -> None:
    def reach(*times: float) -> list[Reach]:
        return [Reach(abs(t), t > 0) for t in times]  # a minus: stopped then

    assert median_time(reach(10, 20, 30)) == 20
    assert median_time(reach(10, 20, -30)) == 20
    assert median_time(reach(10, -20, -30)) == math.inf
    assert median_time(reach(-5, 20, 30)) == 20  # stopped too early to say anything
    assert median_time([*reach(10), Reach(math.inf, False), Reach(math.inf, False)]) == math.inf
    assert median_time(reach(10, -10)) == 10  # one reached it in the very moment the other was stopped: 1/2
    assert median_time(reach(-10)) == math.inf
    assert math.isnan(median_time([]))
