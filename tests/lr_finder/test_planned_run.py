"""The planned run: its words, which trials are made for it, and what they say."""

import doctest
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder import planned_run
from lr_lightning.lr_finder.planned_run import (
    FEWEST_LONG,
    FEWEST_SHORT,
    RATIO,
    PlannedRun,
    Trials,
    best_scale,
    first_lr,
    next_lr,
    read_trials,
    sampled_factors,
    transfer_lr,
    trial_steps,
)
from lr_lightning.schedules import WSD, Clock, Constant, Cosine, Linear, Warmup

START = 2.3


def test_docstring_examples() -> None:
    result = doctest.testmod(planned_run)
    assert (result.failed, result.attempted > 0) == (0, True)


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
    assert linear.equivalent_lr(0.1, constant) == pytest.approx(0.1 * linear.constant)
    assert 0.2 < linear.constant < 0.5
    assert constant.equivalent_lr(linear.equivalent_lr(0.1, constant), linear) == pytest.approx(0.1)


@pytest.mark.parametrize(("length", "total"), [(1, 1), (10, 40), (44, 1000), (44, 44)])
def test_a_trial_takes_the_middle_of_each_part_of_the_run(length: int, total: int) -> None:
    steps = trial_steps(length, total)
    assert len(steps) == length
    assert all(0 <= a < b < total for a, b in itertools.pairwise(steps))
    assert abs(sum(steps) / length - total / 2) <= 1


def grid_of_trials(best: float, first: float, fewest: int, width: float = 1.0) -> dict[float, float]:
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
    scores = grid_of_trials(0.1, 0.1 * off, fewest)
    assert fewest <= len(scores) <= fewest + 2
    if fewest == FEWEST_SHORT:
        assert min(scores) < min(scores, key=scores.__getitem__) < max(scores)


def test_when_all_diverge_the_ladder_goes_down() -> None:
    assert max(grid_of_trials(1e-6, 1.0, 3)) == pytest.approx(RATIO)
    assert min(grid_of_trials(1e-6, 1.0, 3)) == pytest.approx(RATIO**-3)


def read(best: float, run: PlannedRun, scale: float = 1.0, shift: float = 0.0) -> float | None:
    scores = grid_of_trials(best, best * 1.3, FEWEST_LONG)
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


FACTORS = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=20)


def by_hand(eta: list[float]) -> float:
    """The bound as the paper prints it, term by term; its best scale by search."""
    total, last = sum(eta), len(eta) - 1
    a = 1 / (2 * total)
    b = sum(x * x for x in eta) / (2 * total)
    for k in range(last):
        b += 0.5 * eta[k] / sum(eta[k + 1 :]) * sum(x * x for x in eta[k:]) / sum(eta[k:])
    return math.sqrt(a / b)


@given(FACTORS)
def test_it_is_the_minimum_of_the_bound(eta: list[float]) -> None:
    assert best_scale(eta) == pytest.approx(by_hand(eta), rel=1e-9)


@given(FACTORS, st.floats(0.1, 10))
def test_scaling_the_factors_divides_it_and_zeros_at_the_end_count_for_nothing(eta: list[float], c: float) -> None:
    assert best_scale([c * x for x in eta]) == pytest.approx(best_scale(eta) / c, rel=1e-9)
    assert best_scale([*eta, 0.0, 0.0]) == best_scale(eta)


@given(FACTORS, FACTORS, FACTORS)
def test_there_and_back_and_by_way_of_a_third(a: list[float], b: list[float], c: list[float]) -> None:
    assert transfer_lr(0.1, a, a) == 0.1
    assert transfer_lr(transfer_lr(0.1, a, b), b, a) == pytest.approx(0.1)
    assert transfer_lr(transfer_lr(0.1, a, b), b, c) == pytest.approx(transfer_lr(0.1, a, c))


def test_a_decay_bears_a_higher_peak_and_a_longer_run_a_lower_one() -> None:
    constant, linear, wsd = (best_scale(s.factors(1000)) for s in (Constant(), Linear(1, 0), WSD()))
    assert constant < wsd < linear
    assert best_scale([1.0] * 4000) / best_scale([1.0] * 1000) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("factors", [[], [0.0, 0.0], [1.0, -0.1], [1.0, math.nan], [math.inf]])
def test_wrong_factors(factors: list[float]) -> None:
    with pytest.raises(ArgumentError, match="factors must be finite numbers >= 0, of which one is above 0"):
        best_scale(factors)


def test_a_long_schedule_is_sampled() -> None:
    schedule = Warmup("5%", then=Cosine(1, 0))
    assert sampled_factors(schedule, Clock(200)) == schedule.factors(200)
    long = sampled_factors(schedule, Clock(1_000_000))
    assert (len(long), max(long)) == (10_000, pytest.approx(1.0))


def test_a_second_rule_counts_only_where_it_does_not_contradict_the_trials() -> None:
    trials, run = Trials([0.01, 0.02, 0.04], [1.0, 0.5, 1.0], noise=0.01, length=30), PlannedRun(30, "constant")
    assert read_trials(trials, 2.3, run, second=0.08).suggestion == pytest.approx(0.04)  # the geometric mean
    assert read_trials(trials, 2.3, run, second=1e-6).suggestion == pytest.approx(0.02)


def test_the_interval_reaches_further_down_the_longer_the_run() -> None:
    trials = Trials([0.01, 0.02, 0.04], [1.0, 0.5, 1.0], noise=0.01, length=30)
    same, longer = (read_trials(trials, 2.3, PlannedRun(steps, "constant", drift=0.0)) for steps in (30, 3000))
    assert same.suggestion is not None
    assert same.interval is not None
    assert longer.interval is not None
    (low, high), (longer_low, longer_high) = same.interval, longer.interval
    assert low * high == pytest.approx(same.suggestion**2)  # even
    assert longer_low < low
    assert longer_high > high
    assert math.log(longer_low * longer_high / same.suggestion**2) == pytest.approx(-0.25 * math.log(100))


def test_trials_that_hardly_learned_raise_the_answer_and_leave_the_upper_end_open() -> None:
    run, lrs = PlannedRun(30, "constant", drift=0.0), [0.01, 0.02, 0.04, 0.08]
    found = [
        read_trials(Trials(lrs, [1 - fall, 1 - fall, 1 - 0.6 * fall, 1.0], 0.001, 30), 1.0, run)
        for fall in (0.5, 0.04)  # by half, and by 4 %
    ]
    learned, hardly = (each.suggestion for each in found)
    assert learned == pytest.approx(math.sqrt(0.01 * 0.02), rel=0.01)
    assert hardly == pytest.approx(0.04)  # half of the best fall, and not the 0.08 that learned nothing
    assert found[0].interval is not None
    assert found[1].interval is not None
    ratios = [end / (each.suggestion or 1.0) for each in found for end in each.interval or ()]
    assert ratios[2:] == pytest.approx([ratios[0], 10 * ratios[1]])


def test_a_constant_that_is_added_to_all_values_changes_nothing_where_the_trials_learned() -> None:
    for shift in (-30.0, 5.0):
        assert read(0.1, PlannedRun(3000, "cosine"), shift=shift) == pytest.approx(
            read(0.1, PlannedRun(3000, "cosine"))
        )
