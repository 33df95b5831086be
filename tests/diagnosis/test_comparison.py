"""The statistics between runs, against scipy, brute force and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lr_lightning.diagnosis.comparison import compare_groups, pareto_front
from lr_lightning.diagnosis.statistics import bootstrap_ci, holm, mean_ci, permutation_p, seeds_needed, sign_flip_p

RNG = np.random.default_rng(3)
small = st.lists(st.integers(-50, 50).map(lambda i: i / 8), min_size=2, max_size=9)


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_the_t_interval_is_scipys(n: int) -> None:
    x = RNG.normal(size=n)
    ours = mean_ci(x)
    theirs = stats.ttest_1samp(x, 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.half == pytest.approx((theirs.high - theirs.low) / 2)


def test_of_one_or_no_value_there_is_no_interval() -> None:
    assert mean_ci([3.0]).mean == 3.0
    assert math.isnan(mean_ci([3.0]).low)
    assert mean_ci([]).n == 0
    assert math.isnan(mean_ci([]).mean)


@given(small)
def test_sign_flips_equal_brute_force(differences: list[float]) -> None:
    d = np.array(differences)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    means = np.abs((signs * d).mean(axis=1))
    assert sign_flip_p(d) == pytest.approx((means >= abs(d.mean()) - 1e-12).mean())


@given(st.one_of(small, st.tuples(st.integers(-9, 9).map(float)).map(list)), small)
def test_permutations_equal_brute_force(first: list[float], second: list[float]) -> None:
    first, second = first[:4], second[:4]
    pool, n = np.array(first + second), len(first)
    observed = np.mean(first) - np.mean(second)
    lower = higher = count = 0
    for chosen in itertools.combinations(range(len(pool)), n):
        mask = np.isin(np.arange(len(pool)), chosen)
        d = pool[mask].mean() - pool[~mask].mean()
        lower, higher, count = lower + (d <= observed + 1e-12), higher + (d >= observed - 1e-12), count + 1
    expected = 1.0 if np.ptp(pool) == 0 else min(1.0, 2 * min(lower, higher) / count)
    assert permutation_p(first, second) == pytest.approx(expected)


def test_many_pairs_are_sampled_and_repeatable() -> None:
    d = RNG.normal(0.3, 1, size=40)
    assert sign_flip_p(d) == sign_flip_p(d)
    assert sign_flip_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_degenerate_samples() -> None:
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.2]) == 1.0
    assert math.isnan(sign_flip_p([]))
    assert permutation_p([1.0, 1.0], [1.0]) == 1.0
    assert math.isnan(permutation_p([], [1.0]))
    assert bootstrap_ci([0.5] * 4) == (0.5, 0.5)
    assert bootstrap_ci([0.5] * 4, [0.25] * 3) == (0.25, 0.25)
    assert all(map(math.isnan, bootstrap_ci([1.0, 2.0])))
    low, high = bootstrap_ci([0.0, 0.0, 0.0, 1.0])
    assert 0 <= low <= 0.25 <= high <= 1


def test_the_bootstrap_interval_is_near_the_t_interval_of_many_values() -> None:
    x, y = RNG.normal(1, 1, 200), RNG.normal(0, 1, 200)
    t = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    assert bootstrap_ci(x, y) == pytest.approx((t.low, t.high), abs=0.03)
    assert bootstrap_ci(x, y) == bootstrap_ci(x, y)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(ps: list[float]) -> None:
    order = np.argsort(ps, kind="stable")
    expected = np.empty(len(ps))
    for rank in range(len(ps)):
        expected[order[rank]] = min(1, max((len(ps) - i) * ps[order[i]] for i in range(rank + 1)))
    assert holm(ps) == pytest.approx(expected)


def test_holm_leaves_out_what_was_not_computed() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == 0.02
    assert adjusted[2] == 0.04
    assert math.isnan(adjusted[1])


@pytest.mark.parametrize(("comparisons", "paired"), [(1, True), (3, True), (6, True), (1, False), (10, False)])
def test_seeds_needed_is_where_the_smallest_p_is_small_enough(comparisons: int, paired: bool) -> None:
    def smallest(n: int) -> float:
        clear = [float(i) for i in range(1, n + 1)]
        return sign_flip_p(clear) if paired else permutation_p(clear, [-v for v in clear])

    n = seeds_needed(comparisons, paired=paired)
    assert smallest(n) * comparisons <= 0.05 < smallest(n - 1) * comparisons


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
