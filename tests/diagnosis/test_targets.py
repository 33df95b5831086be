"""The time to a target, over runs of which some never reached it."""

import math

from lr_lightning.diagnosis.cost import Reach, Target, median_time, time_to


def test_time_to_a_target() -> None:
    target = Target("val/acc", ">=", 0.9)
    assert time_to(target, [10, 20, 30], [0.5, 0.9, 0.8]) == Reach(20, True)
    assert time_to(target, [10, 20], [0.5, 0.6]) == Reach(20, False)
    assert time_to(target, [10, 20], [0.5, 0.6], hopeless=True) == Reach(math.inf, False)
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
