"""Intervals, exact tests and their correction, against scipy, brute force and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lr_lightning.diagnosis.statistics import (
    bootstrap_ci,
    difference_seen,
    equivalence_p,
    holm,
    mean_ci,
    permutation_p,
    seeds_needed,
    seeds_to_see,
    sign_flip_p,
    stratified_split,
    stratified_subset,
)

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


LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(lambda labels: np.array(labels, np.int64))
FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**32)


@given(LABELS, FRACTIONS, SEEDS)
def test_split_is_a_partition(labels, fraction, seed):
    keep, held_out = stratified_split(labels, fraction, seed)
    assert sorted([*keep, *held_out]) == list(range(len(labels)))
    assert (np.diff(keep) > 0).all()
    assert (np.diff(held_out) > 0).all()


@given(LABELS, FRACTIONS, SEEDS)
def test_each_class_of_two_is_on_both_sides_and_a_single_example_is_kept(labels, fraction, seed):
    keep, held_out = stratified_split(labels, fraction, seed)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert (labels[keep] == label).sum() >= 1
        assert (labels[held_out] == label).sum() >= (1 if count >= 2 else 0)


def test_split_keeps_the_proportions_and_the_total():
    labels = np.repeat([0, 1, 2], [100, 200, 57])
    keep, held_out = stratified_split(labels, 0.1, seed=3)
    assert len(held_out) == 36
    assert np.bincount(labels[held_out]).tolist() == [10, 20, 6]
    assert np.bincount(labels[keep]).tolist() == [90, 180, 51]


def test_split_depends_on_its_seed_and_on_nothing_else():
    labels = np.arange(1000) % 10
    np.random.seed(1)
    first = stratified_split(labels, 0.2, seed=5)[1]
    np.random.seed(2)
    np.random.random(7)
    assert np.array_equal(first, stratified_split(labels, 0.2, seed=5)[1])
    assert not np.array_equal(first, stratified_split(labels, 0.2, seed=6)[1])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_a_fraction_outside_0_1(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\), got"):
        stratified_split(np.zeros(4, np.int64), fraction, 0)


@given(LABELS, st.integers(0, 250), SEEDS)
def test_subset_has_the_size_asked_for_and_near_proportions(labels, size, seed):
    subset = stratified_subset(labels, size, seed)
    assert len(np.unique(subset)) == len(subset) == min(size, len(labels))
    share = len(subset) / len(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs((labels[subset] == label).sum() - count * share) <= 1


def test_subset_refuses_a_negative_size():
    with pytest.raises(ValueError, match="size must be >= 0, got -1"):
        stratified_subset(np.zeros(4, np.int64), -1, 0)


def two_one_sided(groups: tuple[np.ndarray, ...], margin: float) -> float:
    """SciPy's permutation tests, one-sided, of the first group moved by the margin to either side; the larger p."""
    kind = "samples" if len(groups) == 1 else "independent"

    def lead(*data: np.ndarray, axis: int) -> np.ndarray:
        means = [group.mean(axis=axis) for group in data]
        return means[0] if len(means) == 1 else means[0] - means[1]

    def p(shift: float, side: str) -> float:
        moved = groups[0] + shift, *groups[1:]
        exact = {"n_resamples": 10**6, "permutation_type": kind, "vectorized": True}
        return float(stats.permutation_test(moved, lead, alternative=side, **exact).pvalue)

    return max(p(-margin, "less"), p(margin, "greater"))


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("sizes", [(2,), (5,), (8,), (2, 2), (4, 6), (5, 5)])
def test_equality_is_tested_as_scipys_two_one_sided_tests(sizes: tuple[int, ...], margin: float) -> None:
    rng = np.random.default_rng(len(sizes) * 100 + sizes[0])
    groups = tuple(rng.normal(0.3, 1.0, size) for size in sizes)
    assert equivalence_p(*groups, *[None] * (2 - len(groups)), margin) == pytest.approx(two_one_sided(groups, margin))


def test_equality_of_many_values_is_tested_by_a_sample_near_a_t_test() -> None:
    rng = np.random.default_rng(5)
    d = rng.normal(0.1, 1.0, 40)
    sides = stats.ttest_1samp(d - 0.5, 0, alternative="less"), stats.ttest_1samp(d + 0.5, 0, alternative="greater")
    assert equivalence_p(d, None, 0.5) == pytest.approx(max(side.pvalue for side in sides), abs=0.01)
    x, y = rng.normal(0.0, 1.0, 30), rng.normal(0.1, 1.0, 30)
    by_t = max(stats.ttest_ind(x - 0.7, y, alternative="less").pvalue, stats.ttest_ind(x + 0.7, y).pvalue / 2)
    assert equivalence_p(x, y, 0.7) == pytest.approx(by_t, abs=0.01)
    assert equivalence_p(x, y, 0.7) == equivalence_p(x, y, 0.7)


def test_one_value_says_nothing_about_equality() -> None:
    assert math.isnan(equivalence_p([0.0], None, 1.0))
    assert math.isnan(equivalence_p([0.0, 0.1], [0.0], 1.0))


@pytest.mark.parametrize("effect", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_seeds_it_takes_have_the_power_that_a_t_test_has(effect: float, sides: int) -> None:
    def power(n: int) -> float:
        return float(1 - stats.nct.cdf(stats.t.ppf(1 - 0.05 / sides, n - 1), n - 1, effect * math.sqrt(n)))

    n = seeds_to_see(effect, 1.0, sides=sides)
    assert 0.76 < power(n) < 0.94
    assert power(n - 1) < 0.85
    assert difference_seen(n, 1.0) <= effect if sides == 2 else True
    assert seeds_to_see(0.0, 1.0) == 1000
    assert seeds_to_see(1.0, 0.0) == 2


def test_equality_takes_one_seed_less_than_a_difference() -> None:
    assert (seeds_needed(), seeds_needed(sides=1), seeds_needed(6, sides=1)) == (6, 5, 7)
