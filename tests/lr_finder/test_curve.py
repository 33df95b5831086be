import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lr_lightning.lr_finder import curve as module
from lr_lightning.lr_finder.curve import RULES, Cause, DivergenceStop, Reading, read_curve

Curve = NDArray[np.float64]


def grid(n: int = 100, low: float = 1e-6, high: float = 10.0) -> list[float]:
    return np.geomspace(low, high, n).tolist()


def sweep(lrs: list[float], seed: int = 0, *, edge: float = 0.3, noise: float = 0.05, growth: float = 4.0) -> Curve:
    """A loss that falls from 2.3 to 0.3 around 1e-2 and, above the edge, grows by a factor a step."""
    x = np.asarray(lrs)
    values = 2.3 - 2.0 / (1 + (1e-2 / x) ** 1.5) + noise * np.random.default_rng(seed).normal(size=len(x))
    steps_over = np.maximum(np.arange(len(x)) - np.searchsorted(x, edge), 0)
    return values + np.minimum(0.05 * (growth**steps_over - 1), 1e6)


def by_hand(lrs: list[float], clean: Curve, edge: int) -> float:
    """The suggestion, from a curve without noise and the step of its edge; nothing is smoothed.

    Half the lr of the update that the value at the edge shows, moved by two fifths of the way, on the logarithm, to
    half the lr at which the curve is halfway down from the median of its first ten values.
    """
    middle = int(np.argmax(clean <= (np.median(clean[:10]) + clean[: edge + 1].min()) / 2))
    return float((lrs[edge - 1] / 2) ** 0.6 * (lrs[middle] / 2) ** 0.4)


# ------------------------------------------------------------------------------------------------ what it suggests


@pytest.mark.parametrize("n", [40, 100, 300])
@pytest.mark.parametrize("edge", [0.03, 0.3])
def test_suggests_an_lr_below_the_edge_and_above_the_fall(n: int, edge: float) -> None:
    found = read_curve(grid(n), [sweep(grid(n), edge=edge).tolist()])
    assert found.abstention is None
    assert found.suggestion is not None
    assert edge / 15 < found.suggestion < edge


def test_all_fields_fit_together() -> None:
    lrs = grid()
    found = read_curve(lrs, [sweep(lrs).tolist()])
    assert found.suggestion is not None
    assert found.interval is not None
    assert found.cycle_base_lr is not None
    assert found.cycle_max_lr is not None
    assert found.interval[0] < found.suggestion < found.interval[1]
    assert lrs[0] <= found.cycle_base_lr <= found.cycle_max_lr / 3
    assert found.cycle_base_lr < found.suggestion < found.cycle_max_lr <= lrs[-1] / 2
    assert found.smoothed.shape == (100,)
    assert set(found.rules) == set(RULES)
    assert all(lr is not None and lrs[0] / 10 <= lr <= lrs[-1] for lr in found.rules.values())


def test_the_smoothed_curve_follows_the_loss_in_its_units_and_is_capped() -> None:
    lrs = grid()
    clean, smoothed = sweep(lrs, noise=0.0), read_curve(lrs, [sweep(lrs).tolist()]).smoothed
    below = np.asarray(lrs) < 0.05
    assert np.abs(smoothed - clean)[below].max() < 0.15
    assert smoothed.max() < 2.3 + 2.0 + 0.5


@pytest.mark.parametrize("shape", [(300,), (4, 301), (1500,)])
def test_a_long_test_is_smoothed_as_a_short_one(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=shape).cumsum(-1)
    monkeypatch.setattr(module, "_MATRIX", 10_000)
    by_matrix = module._smooth(values)
    monkeypatch.setattr(module, "_MATRIX", 0)
    assert np.allclose(module._smooth(values), by_matrix, rtol=0, atol=1e-9)


def test_a_long_test_takes_little_memory() -> None:
    lrs = grid(6000)
    tracemalloc.start()
    try:
        found = read_curve(lrs, [sweep(lrs, growth=1.01).tolist()])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150e6  # a matrix of weights alone would have 288 MB
    assert found.suggestion is not None


def test_a_linear_grid() -> None:
    lrs = np.linspace(1e-3, 1.0, 200).tolist()
    found = read_curve(lrs, [sweep(lrs, edge=0.5).tolist()])
    # 0.05 x (4^k - 1) is more than a fifth of the fall from k = 2 on; a step of the grid is 1 % of the edge here
    edge = int(np.searchsorted(lrs, 0.5)) + 1
    assert found.suggestion == pytest.approx(by_hand(lrs, sweep(lrs, edge=0.5, noise=0.0), edge), rel=0.15)


def test_an_accuracy() -> None:
    lrs = grid()
    loss = sweep(lrs)
    accuracy = np.clip(1 - loss / 2.6, 0, 1)
    found = read_curve(lrs, [accuracy.tolist()], higher_is_better=True)
    assert found.suggestion is not None
    assert 0.02 < found.suggestion < 0.3
    assert found.smoothed.max() == pytest.approx(1 - 0.3 / 2.6, abs=0.1)  # its own units, not turned over
    assert found.rules["valley"] is None  # fastai's rules are for losses


def test_negative_losses() -> None:
    lrs = grid()
    expected, found = read_curve(lrs, [sweep(lrs).tolist()]), read_curve(lrs, [(sweep(lrs) - 2.0).tolist()])
    assert found.suggestion == pytest.approx(expected.suggestion)


def test_a_run_ends_at_its_first_value_that_is_not_finite() -> None:
    lrs = grid()
    values = sweep(lrs)
    end = int(np.searchsorted(lrs, 0.3)) + 4
    cut = [*values[:end].tolist(), math.nan, *values[end + 1 :].tolist()]
    found = read_curve(lrs, [cut])
    assert len(found.smoothed) == end
    assert np.isfinite(found.smoothed).all()
    assert found.suggestion == read_curve(lrs, [values[:end].tolist()]).suggestion


def test_a_curve_that_falls_until_it_blows_up_has_its_edge_there() -> None:
    lrs = grid()
    falling = sweep(lrs, edge=100.0)
    found = read_curve(lrs, [[*falling[:80].tolist(), math.inf]])
    # step 79 is the last with a finite value, which shows the update with the lr of step 78
    assert found.cycle_max_lr == pytest.approx(lrs[78] / 2)
    one_step = (lrs[1] / lrs[0]) ** 0.4  # smoothing may move the middle of the fall by one
    assert found.suggestion == pytest.approx(by_hand(lrs, sweep(lrs, edge=100.0, noise=0.0), 79), rel=one_step - 1)


def test_the_edge_is_where_a_fifth_of_the_fall_is_lost() -> None:
    lrs = grid(300)
    x = np.log10(lrs)
    values = 2.3 - np.clip((x + 5) * 2 / 3, 0, 2) + np.maximum(x + 2, 0) * 2 / 3  # 2.0 down in 3 decades, then up again
    found = read_curve(lrs, [values.tolist()])
    edge = 10 ** (-2 + 3 / 5)  # a fifth of three decades above the lowest
    assert found.cycle_max_lr == pytest.approx(edge / 2, rel=0.25)
    assert found.suggestion == pytest.approx((edge / 2) ** 0.6 * (10**-3.5 / 2) ** 0.4, rel=0.25)


def test_an_earlier_fall_before_the_same_edge_lowers_the_suggestion_by_two_fifths_of_the_distance() -> None:
    lrs = grid()
    x = np.asarray(lrs)
    blown_up = 1e3 * (x > 0.3)
    early, late = (read_curve(lrs, [(2.3 - 2 / (1 + (at / x) ** 2) + blown_up).tolist()]) for at in (1e-4, 1e-2))
    assert early.suggestion is not None
    assert late.suggestion is not None
    assert early.cycle_max_lr == pytest.approx(late.cycle_max_lr, rel=0.2)
    assert late.suggestion / early.suggestion == pytest.approx(100**0.4, rel=0.15)


def test_huge_finite_values_do_no_harm() -> None:
    lrs = grid()
    values = np.where(np.asarray(lrs) > 1.0, 1e300, sweep(lrs))
    with np.errstate(over="raise", invalid="raise"):
        found = read_curve(lrs, [values.tolist()] * 3)
    assert found.suggestion is not None
    assert found.suggestion < 1.0


def test_after_a_sustained_rise_nothing_counts() -> None:
    """Ragged losses may come down again: the first instability is the edge."""
    lrs = grid()
    values = sweep(lrs, edge=100.0)
    over = int(np.searchsorted(lrs, 0.1))
    values[over : over + 5] += 1.6
    values[-10:] -= 0.4
    found = read_curve(lrs, [values.tolist()])
    assert found.cycle_max_lr is not None
    assert found.cycle_max_lr < 0.1


def test_one_outlier_is_no_sustained_rise() -> None:
    lrs = grid()
    values = sweep(lrs)
    expected = read_curve(lrs, [values.tolist()])
    values[int(np.searchsorted(lrs, 0.05))] += 50.0
    assert expected.suggestion is not None
    assert read_curve(lrs, [values.tolist()]).suggestion == pytest.approx(expected.suggestion, rel=0.5)


def test_repeats_use_the_mean_of_the_steps_all_of_them_reached() -> None:
    lrs = grid()
    runs = [sweep(lrs, seed, noise=0.2).tolist() for seed in range(3)]
    runs[1] = runs[1][:85]
    found = read_curve(lrs, runs)
    assert len(found.smoothed) == 85
    assert found.suggestion is not None
    assert 0.02 < found.suggestion < 0.3


def test_repeats_that_disagree_widen_the_interval() -> None:
    lrs = grid()
    alike = read_curve(lrs, [sweep(lrs, seed, edge=0.1).tolist() for seed in range(3)])
    apart = read_curve(lrs, [sweep(lrs, seed, edge=edge).tolist() for seed, edge in enumerate((0.03, 0.1, 1.0))])
    assert alike.interval is not None
    assert apart.interval is not None
    assert apart.interval[1] / apart.interval[0] > 1.5 * alike.interval[1] / alike.interval[0]


def test_the_interval_depends_on_the_seed_alone() -> None:
    lrs = grid()
    run = sweep(lrs, noise=0.3).tolist()
    assert read_curve(lrs, [run], seed=1).interval == read_curve(lrs, [run], seed=1).interval
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    read_curve(lrs, [run])
    assert (np.random.get_state()[1] == state).all()  # the global generator is not used


# ----------------------------------------------------------------------------------------------- where it abstains


def assert_silent(found: Reading, cause: Cause, reason: str, advice: str) -> None:
    assert found.suggestion is None
    assert found.interval is None
    assert found.cycle_base_lr is None
    assert found.cycle_max_lr is None
    assert found.abstention is not None
    assert found.abstention.cause is cause
    assert reason in found.abstention.reason
    assert advice in found.abstention.advice


def noise_of(kind: str, n: int, rng: np.random.Generator) -> Curve:
    if kind == "normal":
        return rng.normal(size=n)
    if kind == "heavy tails":
        return rng.standard_t(3, size=n)
    if kind == "skewed":
        return np.exp(0.7 * rng.normal(size=n))
    values = rng.normal(size=n)  # flat, then it blows up
    values[int(0.8 * n) :] += np.geomspace(1, 1e3, n - int(0.8 * n))
    return values


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "skewed", "blows up"])
@pytest.mark.parametrize("n", [40, 100, 300])
def test_pure_noise_gets_no_suggestion(kind: str, n: int) -> None:
    rng = np.random.default_rng(0)
    silent = [read_curve(grid(n), [noise_of(kind, n, rng).tolist()]).suggestion is None for _ in range(100)]
    assert np.mean(silent) >= 0.95


@pytest.mark.parametrize("n", [40, 300])
def test_a_falling_curve_has_no_upper_edge(n: int) -> None:
    lrs = grid(n)
    found = read_curve(lrs, [sweep(lrs, edge=1e9).tolist()])
    assert_silent(found, Cause.NO_UPPER_EDGE, "no upper edge found in this range", "Raise max_lr.")
    assert found.rules["smith"] is None or found.rules["smith"] > 0.1


def test_a_rising_curve() -> None:
    lrs = grid(100, 1.0, 10.0)
    rng = np.random.default_rng(0)
    values = 2.3 + 0.02 * np.arange(100) ** 1.2 + 0.01 * rng.normal(size=100)
    assert_silent(read_curve(lrs, [values.tolist()]), Cause.RISES_AT_ONCE, "from the start", "Lower min_lr.")


def test_a_constant_curve() -> None:
    assert_silent(read_curve(grid(), [[2.3] * 100]), Cause.FLAT, "flat", "Raise max_lr")


def test_a_fall_that_drowns_in_noise() -> None:
    lrs = grid()
    values = sweep(lrs, noise=0.0) * 0.2 + np.random.default_rng(0).normal(size=100)
    found = read_curve(lrs, [values.tolist()])
    assert_silent(found, Cause.WITHIN_NOISE, "noise", "repeats=3")


def test_repeats_bring_a_fall_out_of_the_noise() -> None:
    lrs = grid(40)
    runs = [sweep(lrs, seed, noise=2.5).tolist() for seed in range(24)]
    assert read_curve(lrs, runs[:1]).suggestion is None
    assert read_curve(lrs, runs).suggestion is not None


@pytest.mark.parametrize("n", [0, 1, 5, 9])
def test_too_few_points(n: int) -> None:
    found = read_curve(grid(), [sweep(grid())[:n].tolist()])
    assert_silent(found, Cause.TOO_FEW_POINTS, f"too few points: {n}", "num_steps=100")
    assert len(found.smoothed) == n
    assert found.rules == dict.fromkeys(RULES)


@pytest.mark.parametrize("n", range(10, 20))
def test_short_curves_are_read_without_error(n: int) -> None:
    assert len(read_curve(grid(n), [sweep(grid(n)).tolist()]).smoothed) == n


def test_too_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_resampled", lambda *_: np.array([-9.0, -3.0] * 50))
    found = read_curve(grid(), [sweep(grid()).tolist()])
    assert_silent(found, Cause.TOO_NOISY, "too noisy", "repeats=3")


def test_a_few_resamples_that_lose_the_fall_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    steady = [-3.1, -3.0, -2.9, -3.0]
    found = []
    for stray in (-3.0, -13.0):
        samples = np.array([*steady * 20, *[stray] * 20])
        monkeypatch.setattr(module, "_resampled", lambda *_, samples=samples: samples)
        found.append(read_curve(grid(), [sweep(grid()).tolist()]))
    usual, strayed = found
    assert usual.interval is not None
    assert strayed.interval is not None
    assert strayed.interval[1] / strayed.interval[0] < 1.1 * usual.interval[1] / usual.interval[0]


@pytest.mark.parametrize(
    ("lrs", "curves", "message"),
    [
        ([], [[1.0]], "lrs must be finite, > 0 and strictly rising"),
        ([1e-3, 1e-3], [[1.0]], "lrs must be finite, > 0 and strictly rising"),
        ([0.0, 1e-3], [[1.0]], "lrs must be finite, > 0 and strictly rising"),
        ([1e-3, math.nan], [[1.0]], "lrs must be finite, > 0 and strictly rising"),
        ([1e-3, 1e-2], [], "curves must hold at least one curve"),
        ([1e-3, 1e-2], [[1.0], [1.0, 2.0, 3.0]], r"curves\[1\] must have at most 2 values"),
    ],
)
def test_bad_input(lrs: list[float], curves: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_curve(lrs, curves)


# ------------------------------------------------------------------------------------------------------ invariance


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    noise=st.sampled_from([0.01, 0.1, 0.5, 1.5]),
    shift=st.floats(-1e3, 1e3),
    scale=st.floats(1e-3, 1e3),
    edge=st.sampled_from([0.03, 0.3, 1e9]),
)
def test_a_shift_or_a_positive_factor_changes_nothing(
    seed: int, noise: float, shift: float, scale: float, edge: float
) -> None:
    lrs = grid(60)
    values = sweep(lrs, seed, noise=noise, edge=edge, growth=2.0)
    before = read_curve(lrs, [values.tolist()])
    after = read_curve(lrs, [(scale * values + shift).tolist()])
    assert before.abstention == after.abstention
    assert before.suggestion == (None if after.suggestion is None else pytest.approx(after.suggestion))
    assert before.cycle_max_lr == (None if after.cycle_max_lr is None else pytest.approx(after.cycle_max_lr))
    assert before.cycle_base_lr == (None if after.cycle_base_lr is None else pytest.approx(after.cycle_base_lr))
    assert np.allclose(scale * before.smoothed + shift, after.smoothed, atol=1e-6 * scale + 1e-9)
    assert stop_index((scale * values + shift).tolist()) == stop_index(values.tolist())


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=60))
def test_any_finite_curve_gets_an_answer_or_a_reason(values: list[float]) -> None:
    found = read_curve(grid(60), [values])
    assert (found.suggestion is None) == (found.abstention is not None)
    if found.suggestion is not None:
        assert found.interval is not None
        assert found.cycle_max_lr is not None
        assert 0 < found.interval[0] <= found.suggestion <= found.interval[1]
        assert found.suggestion <= found.cycle_max_lr * (1 + 1e-12)


# ------------------------------------------------------------------------------------------------ the end of a sweep


def stop_index(values: list[float], *, higher_is_better: bool = False) -> int | None:
    stop = DivergenceStop(higher_is_better=higher_is_better)
    return next((k for k, value in enumerate(values) if stop(value)), None)


def test_a_diverged_sweep_stops_after_its_edge() -> None:
    lrs = grid()
    at = stop_index(sweep(lrs).tolist())
    assert at is not None
    assert int(np.searchsorted(lrs, 0.3)) + 5 < at < 99


def test_the_reading_is_the_same_with_and_without_the_stop() -> None:
    lrs = grid(300)
    for seed in range(5):
        values = sweep(lrs, seed).tolist()
        at = stop_index(values)
        assert at is not None
        expected = read_curve(lrs, [values]).suggestion
        assert expected is not None
        assert read_curve(lrs, [values[: at + 1]]).suggestion == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize("huge", [5.0, 1e3, 1e12])
@pytest.mark.parametrize("at", [3, 12, 50])
def test_outliers_do_not_stop_it(huge: float, at: int) -> None:
    values = sweep(grid(), edge=1e9)
    values[[at, at + 2]] += huge
    assert stop_index(values.tolist()) is None


@pytest.mark.parametrize("make", [lambda rng: rng.normal(size=300), lambda rng: rng.standard_t(2, size=300)])
def test_noise_does_not_stop_it(make: Callable[[np.random.Generator], Curve]) -> None:
    assert all(stop_index(make(np.random.default_rng(seed)).tolist()) is None for seed in range(20))


def test_noise_that_grows_does_not_stop_it() -> None:
    for seed in range(20):
        values = np.geomspace(1e-3, 1.0, 100) * np.random.default_rng(seed).normal(size=100)
        assert stop_index((2.3 + values).tolist()) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops_it(bad: float) -> None:
    assert stop_index([2.3, 2.2, bad]) == 2


def test_an_accuracy_that_collapses_stops_it() -> None:
    values = (-sweep(grid())).tolist()
    assert stop_index(values, higher_is_better=True) == stop_index(sweep(grid()).tolist())
    assert stop_index(values) is None or stop_index(values) != stop_index(values, higher_is_better=True)


# ------------------------------------------------------------------------------------------------- the unimodal fit


def brute_force(values: list[float]) -> Curve:
    """Errors of all splits from sklearn's isotonic regression."""
    IsotonicRegression = pytest.importorskip("sklearn.isotonic").IsotonicRegression

    def error(part: list[float], increasing: bool) -> float:
        if not part:
            return 0.0
        fitted = IsotonicRegression(increasing=increasing).fit_transform(np.arange(len(part)), part)
        return float(((np.asarray(part) - fitted) ** 2).sum())

    return np.array([error(values[:k], False) + error(values[k:], True) for k in range(len(values) + 1)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=15))
def test_the_profile_is_that_of_isotonic_regression(values: list[float]) -> None:
    curve = np.asarray(values)
    errors = module.fit_errors(curve)
    assert np.allclose(errors, brute_force(values), atol=1e-6)


def test_evidence_depends_on_ranks_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert module.evidence(values) == module.evidence(np.exp(values))
    assert module.evidence(np.full(20, 3.0)) == (0.0, 0.0)
    fall, rise = module.evidence(np.abs(np.arange(41.0) - 20))
    assert fall == pytest.approx(rise)
    assert fall > 15
