"""Comparisons of groups of runs, whose truth is known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lr_lightning.diagnosis.comparison import Outcome, Ranking, compare_groups, good_band, pareto_front, rank_groups
from lr_lightning.diagnosis.statistics import permutation_p

RNG = np.random.default_rng(3)
small = st.lists(st.integers(-50, 50).map(lambda i: i / 8), min_size=2, max_size=9)


def groups(**values: list[float]) -> dict[str, dict[str, float]]:
    return {name: {str(seed): value for seed, value in enumerate(found)} for name, found in values.items()}


def test_six_clear_pairs_are_significant_and_five_are_not() -> None:
    a, b = [0.9, 0.92, 0.91, 0.93, 0.9, 0.92], [0.8, 0.83, 0.8, 0.82, 0.8, 0.81]
    (six,) = compare_groups(groups(a=b, b=a), higher_is_better=True)
    assert (six.better, six.worse, six.n, six.wins, six.paired) == ("b", "a", 6, 6, True)
    assert six.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert six.low < six.difference < six.high
    assert (six.p, six.adjusted, six.seeds_needed) == (0.03125, 0.03125, 6)
    assert six.significant
    (five,) = compare_groups(groups(a=a[:5], b=b[:5]), higher_is_better=True)
    assert not five.enough_seeds
    assert not five.significant


def test_lower_is_better_turns_it_round() -> None:
    (found,) = compare_groups(groups(a=[1.0, 1.1], b=[0.5, 0.7]), higher_is_better=False)
    assert (found.better, found.difference) == ("b", pytest.approx(0.45))


def test_every_pair_is_corrected_for_or_only_those_with_the_baseline() -> None:
    values = groups(a=[0.9, 0.92, 0.94], b=[0.8, 0.81, 0.82], c=[0.7, 0.71, 0.72], d=[0.1, 0.2, 0.3])
    found = compare_groups(values, higher_is_better=True)
    assert [(c.better, c.worse) for c in found] == [
        ("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d"),
    ]  # fmt: skip
    assert {c.seeds_needed for c in found} == {8}
    planned = compare_groups(values, higher_is_better=True, against="b")
    assert [(c.better, c.worse) for c in planned] == [("a", "b"), ("b", "c"), ("b", "d")]
    assert {c.seeds_needed for c in planned} == {7}
    assert planned[0].adjusted == pytest.approx(3 * planned[0].p)


def test_seeds_that_do_not_match_are_independent_samples() -> None:
    values = {"a": {"0": 0.9, "1": 0.91, "2": 0.92, "3": 0.93}, "b": {"7": 0.8, "8": 0.81, "9": 0.82, "10": 0.8}}
    (found,) = compare_groups(values, higher_is_better=True)
    assert (found.paired, found.n, found.seeds_needed, found.wins) == (False, 4, 4, -1)
    assert found.p == pytest.approx(2 / 70)
    assert found.significant


def test_only_shared_seeds_are_paired_and_they_decide_who_is_better() -> None:
    values = {"a": {"0": 0.5, "1": 0.5, "9": 1.0}, "b": {"0": 0.6, "1": 0.7}}
    (found,) = compare_groups(values, higher_is_better=True)
    assert (found.better, found.n, found.wins) == ("b", 2, 2)
    assert found.difference == pytest.approx(0.15)


LOST = -math.inf
A, B = [0.9, 0.92, 0.91, 0.93, 0.9, 0.92], [0.8, 0.83, 0.8, 0.82, 0.8, 0.81]


@pytest.mark.parametrize(
    ("a", "b", "better", "told", "wins", "diverged"),
    [
        ([LOST, *A[1:]], B, "a", False, 5, (1, 0)),  # one loss of six pairs, the largest: no longer told apart
        ([LOST] * 4 + A[4:], B, "b", False, 4, (0, 4)),  # the survivors' mean is the best, the group is not
        (A, [LOST] * 6, "a", True, 6, (0, 6)),  # it never came to its end: no number, and yet beaten
        (A, [LOST, *B[1:]], "a", True, 6, (0, 1)),
        ([LOST, *A[1:]], [LOST, *B[1:]], "a", False, 5, (1, 1)),  # five pairs and a tie
        ([LOST] * 6, [LOST] * 6, "a", False, 0, (6, 6)),
    ],
)
def test_a_run_that_diverged_loses_its_pair(
    a: list[float], b: list[float], better: str, told: bool, wins: int, diverged: tuple[int, int]
) -> None:
    (found,) = compare_groups(groups(a=a, b=b), higher_is_better=True)
    assert (found.better, found.significant, found.wins, found.diverged) == (better, told, wins, diverged)
    assert (found.n, found.sizes) == (6, (6, 6))
    assert math.isnan(found.low)
    d = np.array([0.0 if x == y else x - y for x, y in zip(a, b, strict=True)])
    ranks = np.sign(d) * stats.rankdata(np.abs(d))
    flipped = [abs((np.array(signs) * ranks).sum()) for signs in itertools.product((1, -1), repeat=6)]
    assert found.p == pytest.approx(np.mean(np.array(flipped) >= abs(ranks.sum()) - 1e-9))
    (mirrored,) = compare_groups(
        {name: {k: -v for k, v in seeds.items()} for name, seeds in groups(a=a, b=b).items()}, higher_is_better=False
    )
    assert (mirrored.better, mirrored.p, mirrored.diverged) == (found.better, found.p, found.diverged)


def test_without_shared_seeds_the_ranks_of_all_runs_are_compared() -> None:
    values = {"a": {"0": 0.9, "1": 0.91, "2": LOST, "3": LOST}, "b": {"7": 0.8, "8": 0.81, "9": 0.82, "10": 0.8}}
    (found,) = compare_groups(values, higher_is_better=True)
    assert (found.paired, found.significant, found.sizes) == (False, False, (4, 4))
    assert found.diverged == ((2, 0) if found.better == "a" else (0, 2))
    ranks = stats.rankdata([0.9, 0.91, LOST, LOST, 0.8, 0.81, 0.82, 0.8])
    assert found.p == pytest.approx(permutation_p(ranks[:4], ranks[4:]))


def test_equal_groups_are_found_equal_within_what_matters() -> None:
    near = groups(a=[0.950, 0.951, 0.949, 0.950, 0.952], b=[0.951, 0.950, 0.950, 0.949, 0.951])
    (c,) = compare_groups(near, higher_is_better=True, same_within=0.003)
    assert (c.same, c.significant, c.p_same) == (True, False, 1 / 2**5)
    (strict,) = compare_groups(near, higher_is_better=True, same_within=0.0003)
    assert not strict.same
    (unasked,) = compare_groups(near, higher_is_better=True)
    assert math.isnan(unasked.p_same)
    assert not unasked.same
    three = {**near, "c": near["a"]}
    assert [c.p_same for c in compare_groups(three, higher_is_better=True, same_within=0.003)] == [3 / 2**5] * 3


def test_a_diverged_run_makes_no_groups_equal() -> None:
    lost = groups(a=[0.95] * 5 + [-math.inf], b=[0.95] * 6)
    (c,) = compare_groups(lost, higher_is_better=True, same_within=0.01)
    assert not c.same
    assert math.isnan(c.more_seeds)


def test_more_seeds_are_those_of_the_sooner_answer() -> None:
    clear = groups(a=[0.96, 0.975, 0.963], b=[0.70, 0.72, 0.689])
    (c,) = compare_groups(clear, higher_is_better=True)
    assert (c.wins, c.n, c.seeds_needed, c.more_seeds) == (3, 3, 6, 3)
    close = groups(a=[0.950, 0.952, 0.949, 0.951], b=[0.951, 0.950, 0.950, 0.950])
    (apart,) = compare_groups(close, higher_is_better=True)
    (same,) = compare_groups(close, higher_is_better=True, same_within=0.005)
    assert same.more_seeds == 1  # five pairs can show it
    assert apart.more_seeds > 20
    (two,) = compare_groups(groups(a=[0.9, 0.95], b=[0.8, 0.85]), higher_is_better=True)
    assert math.isnan(two.more_seeds)  # two values are no spread


def test_empty_and_single_groups() -> None:
    assert compare_groups({}, higher_is_better=True) == []
    assert compare_groups(groups(a=[1.0], b=[]), higher_is_better=True) == []
    (found,) = compare_groups(groups(a=[1.0], b=[0.5]), higher_is_better=True)
    assert (found.n, found.p) == (1, 1.0)
    assert not found.significant


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    cost, value = zip(*points, strict=True)
    expected = {
        i
        for i, (c, v) in enumerate(points)
        if not any((c2 <= c and v2 > v) or (c2 < c and v2 >= v) for c2, v2 in points)
    }
    front = pareto_front(cost, value)
    assert set(front) == expected
    assert [cost[i] for i in front] == sorted(cost[i] for i in front)


# -- the band of good learning rates ----------------------------------------------------------------------------------


def test_the_band_ends_where_a_learning_rate_is_worse_than_the_tolerance() -> None:
    band = good_band([1, 0.01, 0.1, 0.001], [0.5, 0.965, 0.97, 0.2], higher=True, tolerance=0.01)
    assert band is not None
    assert (band.low, band.high, band.best_lr) == (0.01, 0.1, 0.1)
    assert not band.open_low
    assert not band.open_high


def test_a_band_that_reaches_the_end_of_what_was_tried_is_open() -> None:
    band = good_band([0.01, 0.1, 1, 10], [0.1, 0.96, 0.97, 0.969], higher=True, tolerance=0.02)
    assert band is not None
    assert band.open_high
    assert not band.open_low


def test_a_loss_is_the_accuracy_upside_down() -> None:
    lrs, results = [0.001, 0.01, 0.1, 1.0], [0.2, 0.9, 0.95, 0.3]
    up = good_band(lrs, results, higher=True, tolerance=0.1)
    down = good_band(lrs, [-r for r in results], higher=False, tolerance=0.1)
    assert up is not None
    assert down is not None
    assert (up.low, up.high, up.best, up.limit) == (down.low, down.high, -down.best, -down.limit)


def test_of_many_learning_rates_one_unlucky_run_ends_no_band_and_one_lucky_one_makes_no_best() -> None:
    lrs = np.geomspace(1e-3, 1, 13)
    results = np.where((lrs > 5e-3) & (lrs < 0.3), 0.9, 0.3)
    results[6] = 0.1
    results[1] = 0.99
    band = good_band(lrs, results, higher=True, tolerance=0.01)
    assert band is not None
    assert band.best == 0.9
    assert band.low < 0.01
    assert band.high > 0.17


def test_what_diverged_is_bad_and_too_few_learning_rates_tell_nothing() -> None:
    band = good_band([0.01, 0.1, 1, 10], [0.9, 0.9, -math.inf, math.nan], higher=True, tolerance=0.01)
    assert band is not None
    assert band.high == 0.1
    assert good_band([0.1, 1, 10], [0.9, 0.9, 0.9], higher=True, tolerance=0.01) is None
    assert good_band([0.1, 0.2, 1, 10], [-math.inf] * 4, higher=True, tolerance=0.01) is None


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="lrs must be > 0"):
        good_band([0.0, 0.1, 1, 10], [1] * 4, higher=True, tolerance=0.1)
    with pytest.raises(ValueError, match="one value for each of the 2 lrs"):
        good_band([0.1, 1], [1], higher=True, tolerance=0.1)


WORSE = dict.fromkeys("012345", 0.8)


@pytest.mark.parametrize(
    ("values", "against", "expected"),
    [
        ({}, None, Ranking(Outcome.NO_VALUES)),
        ({"a": WORSE}, None, Ranking(Outcome.ALONE, "a")),
        ({"a": WORSE, "b": WORSE}, "c", Ranking(Outcome.REFERENCE_MISSING, "a")),
    ],
)
def test_nothing_to_rank(values: dict[str, dict[str, float]], against: str | None, expected: Ranking) -> None:
    assert rank_groups([*values], compare_groups(values, higher_is_better=True, against=against)) == expected


def test_a_winner_beats_every_other_group_and_need_not_have_the_best_mean() -> None:
    good = {seed: 0.9 + 0.001 * int(seed) for seed in WORSE}
    won = rank_groups(["a", "b"], compare_groups({"a": good, "b": WORSE}, higher_is_better=True))
    assert (won.outcome, won.leader, [d.worse for d in won.wins], won.lead) == (Outcome.WON, "a", ["b"], won.wins[0])
    # The mean of a's only survivor is the best one, and b is better in all six pairs.
    few = {seed: -math.inf if int(seed) < 5 else 0.99 for seed in WORSE}
    better = {seed: 0.9 if int(seed) < 5 else 0.995 for seed in WORSE}
    found = rank_groups(["a", "b"], compare_groups({"a": few, "b": better}, higher_is_better=True))
    assert (found.outcome, found.leader) == (Outcome.WON, "b")


def test_without_a_winner_the_group_with_the_best_mean_leads() -> None:
    seeds = [str(seed) for seed in range(7)]
    values = {
        "a": dict.fromkeys(seeds, 0.9),
        "b": {seed: 0.9 + (0.01 if int(seed) % 2 else -0.0101) for seed in seeds},
        "c": {seed: 0.8 + 0.001 * int(seed) for seed in seeds},
    }
    found = rank_groups(["a", "b", "c"], compare_groups(values, higher_is_better=True))
    assert (found.outcome, found.leader) == (Outcome.UNDECIDED, "a")
    assert [d.worse for d in found.wins] == ["c"]
    assert found.lead is not None
    assert found.lead.worse == "b"
