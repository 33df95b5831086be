import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning.diagnosis.stratify import stratified_split, stratified_subset

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
