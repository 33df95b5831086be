"""Prechelt's criteria stop where they should, and only where the schedule lets them ask."""

import math

import pytest

from lr_lightning.diagnosis.early_stopping import (
    Phases,
    dominated,
    generalization_loss,
    out_of_reach,
    progress_quotient,
    stop_reason,
    successive_rises,
    training_progress,
)
from lr_lightning.schedules import (
    WSD,
    Clock,
    Constant,
    Cosine,
    InverseSqrt,
    OneCycle,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)


def _first(criterion: str, validation: list[float], training: list[float], threshold: float, strip: int) -> int | None:
    """After how many validations it stops."""
    for n in range(1, len(validation) + 1):
        if stop_reason(criterion, validation[:n], training[:n], threshold, strip):
            return n
    return None


def test_each_criterion_stops_after_the_rise_and_none_without_one() -> None:
    validation = [1.0, 0.8, 0.6, 0.5, 0.52, 0.55, 0.6, 0.65, 0.7, 0.8]
    training = [1.0, 0.8, 0.6, 0.4, 0.3, 0.25, 0.22, 0.21, 0.2, 0.2]
    assert _first("gl", validation, training, 5.0, 5) == 6  # 10 % above the best
    assert _first("gl", validation, training, 50.0, 5) == 10
    assert _first("up", validation, training, 2, 2) == 8  # ends of strips: .8 .5 .55 .65
    assert _first("pq", validation, training, 0.2, 5) == 10
    falling = sorted(validation, reverse=True)
    assert [_first(c, falling, training, t, 2) for c, t in (("gl", 5.0), ("up", 1), ("pq", 0.1))] == [None] * 3


CLOCK = Clock(200, steps_per_epoch=10)


@pytest.mark.parametrize(
    ("schedule", "counting"),
    [
        (Constant(), "xxxxxxxxxxxxxxxxxxxx"),
        (Warmup("10%", Cosine()), "..xxxxxxxxxxxxxxxxxx"),
        (InverseSqrt("5%"), "xxxxxxxxxxxxxxxxxxxx"),
        (WSD(), "................xxxx"),  # the cooldown is its last fifth
        (Step("34%"), ".............xxxxxxx"),  # after the last drop
        (Triangular(0.1, "10%"), "...x...x...x...x...x"),  # the low ends
        (Restarts(Cosine(), "14.3%", 2), ".x.....x...........x"),
        (OneCycle(), "......xxxxxxxxxxxxxx"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Schedule) else "",
)
def test_which_validations_count(schedule: Schedule, counting: str) -> None:
    phases = Phases(lambda step: schedule(step, CLOCK), 200)
    assert "".join("x" if phases.counts(10 * n, 10 * (n - 1)) else "." for n in range(1, 21)) == counting


def test_a_schedule_without_a_known_end() -> None:
    clock = Clock(None)
    cycles = Triangular(0.1, 20)
    phases = Phases(lambda step: cycles(step, clock))
    assert [n for n in range(1, 13) if phases.counts(10 * n, 10 * (n - 1))] == [4, 8, 12]
    flat = Phases(lambda step: 1.0)
    assert all(flat.counts(10 * n, 10 * (n - 1)) for n in range(1, 13))


# -- Prechelt's measures ---------------------------------------------------------------------------------------------


def test_generalization_loss_is_percent_above_the_lowest() -> None:
    assert generalization_loss([3.0, 2.0, 2.5]) == pytest.approx(25.0)
    assert generalization_loss([3.0, 2.0]) == 0.0
    assert math.isnan(generalization_loss([1.0, math.nan]))
    assert generalization_loss([math.nan, 2.0, 2.5]) == pytest.approx(25.0)  # of a first validation, say
    assert math.isnan(generalization_loss([math.nan]))
    assert math.isnan(generalization_loss([0.0, 1.0]))  # a ratio to nothing
    assert math.isnan(generalization_loss([-1.0, 1.0]))


def test_progress_compares_a_strips_mean_with_its_minimum() -> None:
    assert training_progress([9.0, 2.0, 1.0, 1.5], strip=3) == pytest.approx(1000 * (1.5 / 1.0 - 1))
    assert training_progress([1.0] * 5) == 0.0
    assert math.isnan(training_progress([1.0] * 4))
    assert math.isnan(training_progress([1.0, 2.0, 3.0, 4.0, math.inf]))


def test_progress_quotient() -> None:
    validation, training = [2.0, 1.0, 1.2], [3.0, 2.0, 1.0]
    assert progress_quotient(validation, training, strip=3) == pytest.approx(20.0 / 1000.0)
    assert progress_quotient([1.0, 1.1, 1.2], [1.0, 1.0, 1.0], strip=3) == math.inf  # no progress, but a loss
    assert math.isnan(progress_quotient([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], strip=3))


@pytest.mark.parametrize(
    ("validation", "strip", "rises"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1, 3),
        ([1.0, 2.0, 2.0, 4.0], 1, 1),
        ([1.0, 9.0, 2.0, 0.0, 3.0, 9.0], 2, 1),  # the ends of the strips are 9, 0, 9
        ([5.0, 1.0, 5.0, 2.0, 5.0, 3.0, 0.0], 2, 2),  # the incomplete strip does not count
        ([1.0], 1, 0),
        ([], 5, 0),
    ],
)
def test_successive_rises_at_the_ends_of_strips(validation: list[float], strip: int, rises: int) -> None:
    assert successive_rises(validation, strip) == rises


# -- a run against its peers -----------------------------------------------------------------------------------------

PEERS = [[0.3, 0.5, 0.90], [0.3, 0.5, 0.88], [0.3, 0.5, 0.91], [0.1, 0.1, 0.86]]


@pytest.mark.parametrize(
    ("own", "peers", "ends"),
    [
        ([0.1, 0.1, 0.1], PEERS, True),
        ([0.3, 0.5, 0.885], PEERS, False),  # a little below the median
        ([0.95, 0.1, 0.1], PEERS, False),  # its best so far counts
        ([0.1, 0.1, 0.1], PEERS[:3], False),  # too few to tell
        ([0.1], [[0.9]] * 4, True),
        ([], PEERS, False),
        ([0.1, 0.1, 0.1, 0.1], PEERS, False),  # no peer has come as far
        ([float("nan")] * 3, PEERS, True),
        ([0.2, 0.7, 0.2, 0.7, 0.2, 0.7], [[0.9] * 6] * 4, False),  # jitters more than it is behind
    ],
)
def test_dominated(own: list[float], peers: list[list[float]], ends: bool) -> None:
    assert (dominated(own, peers, higher=True) is not None) is ends
    flipped = [[-v for v in peer] for peer in peers]
    assert (dominated([-v for v in own], flipped, higher=False) is not None) is ends


@pytest.mark.parametrize(
    ("previews", "best", "progress", "ends"),
    [
        ([1.0, 1.0, 1.0], 0.5, 0.25, True),  # 1.0 - 2 * (0.7 - 0.5) = 0.6 > 0.525
        ([0.9, 0.9, 0.9], 0.5, 0.25, False),  # 0.9 - 2 * (0.7 - 0.5) = 0.5
        ([1.0, 1.0], 0.65, 0.5, False),  # too few
        ([1.0, math.nan, 1.0, 1.0], 0.65, 0.25, True),
        ([1.2, 1.0, 0.9], 0.69, 0.5, False),  # 0.9 - 2 * 0.3 / log 3 * log 2 = 0.52: its own fall may go on
        ([1.2, 1.0, 0.9], 0.69, 0.9, True),  # 0.9 - 2 * 0.3 / log 3 * log 1.11 = 0.84: less of the run is left
        ([0.5, 0.4, 0.4], 0.69, 0.9, False),
    ],
)
def test_out_of_reach(previews: list[float], best: float, progress: float, ends: bool) -> None:
    assert (out_of_reach(previews, [0.9, 0.7, math.inf], best, progress, higher=False) is not None) is ends


def test_an_accuracy_counts_as_its_error_and_may_be_half_a_point_further_away() -> None:
    said = "a cooldown would have reached 0.98, and hardly more than 0.98 at the end, where the best run has 0.99"
    assert out_of_reach([0.98] * 4, [0.99], 0.985, 0.5, higher=True) is None
    assert out_of_reach([0.98] * 4, [0.99], 0.99, 0.5, higher=True) == said
    assert out_of_reach([0.98] * 4, [], 0.99, 0.5, higher=True) is None
