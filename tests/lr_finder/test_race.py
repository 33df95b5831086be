"""The plan of a race and what it says, on made-up curves whose best learning rate is known."""

import math
from collections.abc import Callable

import pytest

from lr_lightning.lr_finder.planned_run import PlannedRun, Trials
from lr_lightning.lr_finder.race import RacePlan, next_trial, range_steps, read_race

Loss = Callable[[float, int], float]


def run_race(plan: RacePlan, loss: Loss, first: float = 0.1, drift: float = 0.0) -> list[dict[float, float]]:
    scores: list[dict[float, float]] = [{} for _ in plan.rungs]
    known = 0
    while (trial := next_trial(plan, scores[:known], first, 2.3, drift)) is not None:
        rung, lr = trial
        assert lr not in scores[rung]
        known = max(known, rung + 1)
        scores[rung][lr] = loss(lr, plan.rungs[rung].length)
    return scores


def bowl(best: float, drift: float = 0.0, at: int = 10) -> Loss:
    """A loss whose best lr is ``best`` after ``at`` updates, and moves with the length."""
    return lambda lr, length: 0.5 + 0.3 * math.log(lr / (best * (length / at) ** drift)) ** 2


def answer(plan: RacePlan, scores: list[dict[float, float]], run: PlannedRun) -> float:
    rungs = [
        Trials(sorted(own), [own[lr] for lr in sorted(own)], 0.0, rung.length)
        for own, rung in zip(scores, plan.rungs, strict=True)
        if own
    ]
    read = read_race(rungs, 2.3, run)
    assert read.suggestion is not None
    assert read.interval is not None
    assert read.interval[0] < read.suggestion < read.interval[1]
    return read.suggestion


@pytest.mark.parametrize("total", [100, 300, 1000, 3000, 100_000])
@pytest.mark.parametrize("share", [0.5, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("best", [0.1, 30.0, 1e-4])
def test_a_race_keeps_to_its_plan(total: int, share: float, best: float) -> None:
    budget = max(40, round(share * total))
    plan = RacePlan.of(budget, total)
    assert all(one.length < two.length <= total for one, two in zip(plan.rungs, plan.rungs[1:], strict=False))
    scores = run_race(plan, bowl(best))
    assert sum(len(own) * rung.length for own, rung in zip(scores, plan.rungs, strict=True)) <= budget
    assert all(rung.fewest <= len(own) <= 8 for own, rung in zip(scores, plan.rungs, strict=True))
    assert 5 <= len(scores[0]) <= 8


@pytest.mark.parametrize("best", [0.1, 1.0, 0.01, 5.0])
def test_an_optimum_outside_of_the_first_bracket_is_found(best: float) -> None:
    plan = RacePlan.of(400, 1000)
    found = answer(plan, run_race(plan, bowl(best)), PlannedRun(1000, "constant", drift=0.0))
    assert abs(math.log(found / best)) < 0.5


@pytest.mark.parametrize("drift", [-0.5, -0.2, 0.0])
def test_the_drift_that_was_measured_carries_the_answer_to_the_run(drift: float) -> None:
    plan, run = RacePlan.of(2000, 4000), PlannedRun(4000, "constant", drift=-0.2)
    found = answer(plan, run_race(plan, bowl(0.2, drift)), run)
    true, assumed = 0.2 * 400**drift, 0.2 * 400**-0.2
    assert abs(math.log(found / true)) < 0.6 * abs(math.log(assumed / true)) + 0.4


@pytest.mark.parametrize(("centres", "most"), [((0.01, 0.1), 0.0317), ((0.01, 0.02, 0.2), 0.0343), ((0.4, 0.02), 0.02)])
def test_the_answer_is_at_most_what_the_longest_trainings_found_best(centres: tuple[float, ...], most: float) -> None:
    for steps in (80, 1000, 100_000):
        rungs = [Trials([b / 2, b, b * 2], [1.0, 0.5, 1.0], 0.0, 5 * 4**k) for k, b in enumerate(centres)]
        read = read_race(rungs, 2.3, PlannedRun(steps, "constant", drift=-0.2))
        assert read.suggestion is not None
        assert read.suggestion <= most * 1.001


def test_rungs_that_contradict_each_other_widen_the_interval() -> None:
    run, widths = PlannedRun(1000, "constant", drift=0.0), []
    for other in (0.1, 10.0):
        rungs = [Trials([b / 2, b, b * 2], [1.0, 0.5, 1.0], 0.0, n) for b, n in ((0.1, 5), (other, 20), (0.1, 80))]
        low, high = read_race(rungs, 2.3, run).interval or (1.0, 1.0)
        widths.append(math.log(high / low))
    assert widths[1] > 2 * widths[0]


def test_a_race_in_which_nothing_learns_says_so() -> None:
    plan = RacePlan.of(400, 1000)
    scores = run_race(plan, lambda lr, length: math.nan if lr > 0.01 else 2.3)
    rungs = [Trials(sorted(own), [own[lr] for lr in sorted(own)], 0.0, 8) for own in scores if own]
    assert not read_race(rungs, 2.3, PlannedRun(1000, "constant")).learned


@pytest.mark.parametrize(("budget", "steps"), [(50, 20), (150, 30), (5000, 100)])
def test_the_range_test_takes_a_part_of_the_budget(budget: int, steps: int) -> None:
    assert range_steps(budget) == steps


def test_a_race_that_hardly_learned_answers_with_the_highest_lr_that_learned_as_well() -> None:
    rungs = [Trials([0.01, 0.1, 1.0], [0.985, 0.986, 1.2], 0.0, length) for length in (10, 40)]
    read = read_race(rungs, 1.0, PlannedRun(400, "constant"))
    assert read.suggestion == pytest.approx(0.1)  # and not far below the 0.01 to 0.1 that did best
    assert read.interval is not None
    assert read.interval[1] > 1.0


def test_a_race_of_a_network_that_needs_little_does_not_ruin_it() -> None:
    lrs, ends = [2.2e-5, 2.2e-4, 2.2e-3], [0.293, 0.288, 0.3012]  # pretrained: the highest ends above the start
    read = read_race([Trials(lrs, ends, 0.0, length) for length in (10, 40)], 0.3, PlannedRun(400, "constant"))
    assert read.suggestion is not None
    assert read.suggestion < 3e-4
