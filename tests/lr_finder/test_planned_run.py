"""The planned run: its words, which trials are made for it, and what they say."""

import itertools
import math

import pytest

from lr_lightning.lr_finder.planned_run import (
    FEWEST_LONG,
    FEWEST_SHORT,
    RATIO,
    PlannedRun,
    Trials,
    first_lr,
    next_lr,
    read_trials,
    trial_steps,
)
from lr_lightning.schedules import Clock, Constant, Cosine, Linear

START = 2.3


@pytest.mark.parametrize(
    ("schedule", "clock", "text"),
    [
        (Constant(), Clock(1000), "1,000 steps at a constant lr"),
        (Constant(), Clock(40, 40.0), "1 epoch (40 steps) at a constant lr"),
        (Cosine(), Clock(30, epoch_starts=(0, 20, 30)), "2 epochs (30 steps) of cosine 1 to 0 over 30 steps"),
    ],
)
def test_it_is_named(schedule: Constant | Cosine, clock: Clock, text: str) -> None:
    assert PlannedRun.of(schedule, clock).describe() == text


def test_a_peak_is_carried_to_another_schedule_and_back() -> None:
    clock = Clock(500)
    constant, linear = PlannedRun.of(Constant(), clock), PlannedRun.of(Linear(1, 0), clock)
    assert (constant.constant, constant.is_constant, linear.is_constant) == (1.0, True, False)
    assert linear.carried(0.1, constant) == pytest.approx(0.1 * linear.constant)
    assert 0.2 < linear.constant < 0.5
    assert constant.carried(linear.carried(0.1, constant), linear) == pytest.approx(0.1)


@pytest.mark.parametrize(("length", "total"), [(1, 1), (10, 40), (44, 1000), (44, 44)])
def test_a_trial_takes_the_middle_of_each_part_of_the_run(length: int, total: int) -> None:
    steps = trial_steps(length, total)
    assert len(steps) == length
    assert all(0 <= a < b < total for a, b in itertools.pairwise(steps))
    assert abs(sum(steps) / length - total / 2) <= 1


def ladder(best: float, first: float, fewest: int, width: float = 1.0) -> dict[float, float]:
    """Make all trials whose loss is a parabola over the logarithm of the lr; far above the best they diverge."""
    scores: dict[float, float] = {}
    while (lr := next_lr(scores, first, START, fewest)) is not None:
        assert lr not in scores
        loss = 0.5 + (math.log(lr / best) / width) ** 2
        scores[lr] = math.inf if lr > 100 * best else min(loss, START + 1)
    return scores


@pytest.mark.parametrize("fewest", [FEWEST_SHORT, FEWEST_LONG])
@pytest.mark.parametrize("off", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_ladder_holds_its_best_inside(fewest: int, off: float) -> None:
    scores = ladder(0.1, 0.1 * off, fewest)
    assert fewest <= len(scores) <= fewest + 2
    if fewest == FEWEST_SHORT:
        assert min(scores) < min(scores, key=scores.__getitem__) < max(scores)


def test_when_all_diverge_the_ladder_goes_down() -> None:
    assert max(ladder(1e-6, 1.0, 3)) == pytest.approx(RATIO)
    assert min(ladder(1e-6, 1.0, 3)) == pytest.approx(RATIO**-3)


def read(best: float, run: PlannedRun, scale: float = 1.0, shift: float = 0.0) -> float | None:
    scores = ladder(best, best * 1.3, FEWEST_LONG)
    trials = Trials(sorted(scores), [scale * scores[lr] + shift for lr in sorted(scores)], 0.01 * scale, 50)
    return read_trials(trials, scale * START + shift, run).suggestion


def test_the_centre_of_the_good_ones_is_carried_to_the_length_of_the_run() -> None:
    same, long = PlannedRun(50, "constant"), PlannedRun(5000, "constant", drift=-0.5)
    assert read(0.1, same) == pytest.approx(0.1, rel=0.3)
    assert read(0.1, long) == pytest.approx(read(0.1, same) / 10)  # type: ignore[operator]
    assert read(0.1, long, scale=7.0, shift=-30.0) == pytest.approx(read(0.1, long))


def test_the_interval_is_wider_for_a_longer_run_and_where_the_ladder_ends() -> None:
    def width(scores: list[float], steps: int) -> float:
        interval = read_trials(Trials([0.1, 0.2, 0.4], scores, 0.0, 50), START, PlannedRun(steps, "constant")).interval
        assert interval is not None
        return interval[1] / interval[0]

    inside = [1.0, 0.5, 1.0]
    assert width(inside, 50) < width(inside, 5000)
    assert width([1.0, 0.8, 0.5], 50) == pytest.approx(width(inside, 50) * RATIO)


@pytest.mark.parametrize("scores", [[math.nan] * 3, [2.3, 2.29, 2.4], [3.0, 4.0, math.inf]])
def test_trials_that_learn_nothing_say_nothing(scores: list[float]) -> None:
    found = read_trials(Trials([0.1, 0.2, 0.4], scores, 0.02, 50), START, PlannedRun(1000, "constant"))
    assert (found.suggestion, found.interval, found.learned) == (None, None, False)


def test_the_first_trial_is_the_suggestion_or_a_tenth_of_where_the_loss_rises() -> None:
    lrs = [10.0 ** (k / 10 - 5) for k in range(60)]
    curve = [2.3 + 0.001 * (-1) ** k + (1.0 if lr > 1 else 0.0) for k, lr in enumerate(lrs)]
    assert first_lr(lrs, curve, 0.02) == 0.02
    assert first_lr(lrs, curve, None) == pytest.approx(0.1, rel=0.3)
    assert first_lr(lrs, [], None) == pytest.approx(lrs[0] / 10)
