"""Every rule of a verdict, on real recorded curves (record_curves.py) and on curves with a planted outcome."""

import math

import numpy as np
import pytest

from lr_lightning.diagnosis import Advice, History, Label, Reason, Verdict, diagnose
from tests.diagnosis.recorded import load, names

CHANCE = math.log(10)
RECORDED = {
    "true_60_mlp": ("overfitting", "", (15, 40)),
    "true_60_cosine": ("overfitting", "receding", (50, 130)),
    "random_60": ("overfitting", "memorised", (1, 8)),
    "random_300_cosine": ("overfitting", "memorised", (1, 5)),
    "noisy_300": ("overfitting", "", (9, 16)),
    "tiny_lr": ("underfitting", "under-trained", None),
    "tiny_lr_cosine": ("underfitting", "under-trained", None),
    "tiny_lr_mlp": ("underfitting", "under-trained", None),
    "small_lr": ("underfitting", "under-trained", None),
    "short_adam": ("underfitting", "under-trained", None),
    "tiny_net_2": ("underfitting", "limited", None),
    "tiny_net_cnn": ("underfitting", "limited", None),
    "tiny_net": ("collapsed", "", None),  # its one hidden unit is dead
    "lr_1_mlp": ("collapsed", "", None),
    "lr_1e3": ("diverged", "a loss is not finite", (1, 2)),
    "lr_10_mlp": ("diverged", "far above chance", (1, 4)),
    "good_cosine": ("healthy", "", None),
    "good_constant": ("healthy", "", None),
    "good_wsd": ("healthy", "", None),
    "good_triangular": ("healthy", "", None),
    "good_long": ("healthy", "", None),
}


def test_every_recorded_curve_has_an_outcome() -> None:
    assert set(names()) == set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_curves(name: str) -> None:
    label, detail, onset = RECORDED[name]
    verdict = diagnose(load(name))
    assert (verdict.label, verdict.detail) == (label, detail), verdict.text()
    if onset is None:
        assert verdict.onset_epoch is None
    else:
        assert verdict.onset_epoch is not None
        assert onset[0] <= verdict.onset_epoch <= onset[1]


@pytest.mark.parametrize("name", RECORDED)
def test_the_same_inputs_give_the_same_verdict_with_at_most_three_lines_that_never_say_stop(name: str) -> None:
    verdict = diagnose(load(name))
    assert verdict == diagnose(load(name))
    assert verdict.label in Label
    assert len(verdict.advice) <= 3
    assert not any("stop " in line.lower() or line.lower().startswith("stop") for line in verdict.sentences())
    assert verdict.text().startswith(f"verdict: {verdict.label}")


# -- planted outcomes ------------------------------------------------------------------------------------------------


def _overfit(onset: int, epochs: int, noise: float, slope: float = 0.02, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    t = np.arange(1, epochs + 1)
    probe = 0.005 + 2.2 * np.exp(-t / (onset / 2))
    val = 0.4 + 1.8 * np.exp(-np.minimum(t, onset) / (onset / 4)) + slope * np.maximum(t - onset, 0)
    val = val + noise * rng.normal(size=epochs)
    return History.of_curves(val.tolist(), probe.tolist(), chance=CHANCE, lr=[0.1] * epochs)


@pytest.mark.parametrize("onset", [10, 20, 50])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_a_planted_onset_is_found(onset: int, noise: float) -> None:
    for seed in range(5):
        verdict = diagnose(_overfit(onset, 100, noise, seed=seed))
        assert verdict.label == "overfitting"
        assert abs(verdict.onset_epoch - onset) <= 3 + 200 * noise, (verdict.onset_epoch, seed)  # type: ignore[operator]


def test_noise_alone_is_no_overfitting() -> None:
    wrong = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        t = np.arange(1, 61)
        val = 0.5 + 1.8 * np.exp(-t / 6) + 0.03 * rng.normal(size=60)
        probe = 0.05 + 2 * np.exp(-t / 8)
        verdict = diagnose(History.of_curves(val.tolist(), probe.tolist(), chance=CHANCE))
        wrong += verdict.label == "overfitting"
    assert wrong <= 2


@pytest.mark.parametrize(("swing", "detail"), [(0.0, "under-trained"), (0.02, ""), (0.08, "")])
def test_a_slow_fall_that_the_noise_hides_is_not_said_to_have_stopped(swing: float, detail: str) -> None:
    probe = 2.2 - 0.02 * np.arange(8) + swing * np.array([0, 1, -1, 1, -1, 1, -1, 0])
    verdict = diagnose(History.of_curves((probe + 0.01).tolist(), probe.tolist(), chance=CHANCE, lr=[0.001] * 8))
    assert (verdict.label, verdict.detail, verdict.can_train_longer) == ("underfitting", detail, True)
    assert any("Raise the learning rate from 0.001 to 0.003" in line for line in verdict.sentences())
    assert not any("larger network" in line for line in verdict.sentences())


def test_a_high_loss_that_is_at_rest_is_limited() -> None:
    probe = (1.2 + np.exp(-np.arange(1, 31) / 2)).tolist()
    verdict = diagnose(History.of_curves(probe, probe, chance=CHANCE, lr=[0.1] * 29 + [0.001]))
    assert (verdict.label, verdict.detail, verdict.can_train_longer) == ("underfitting", "limited", False)


def test_a_rise_of_both_losses_is_no_overfitting() -> None:
    curve = [2.0, 1.0, 0.4, 0.2, 0.15, 0.3, 0.5, 0.8, 1.0, 1.1]
    verdict = diagnose(History.of_curves(curve, curve, chance=CHANCE, lr=[0.3] * 10))
    assert verdict.label == "inconclusive"
    assert "unstable" in verdict.detail
    assert verdict.reason is Reason.UNSTABLE
    assert verdict.sentences() == ["Lower the learning rate from 0.3 to 0.1, or cool it down: the loss swings."]


def test_a_cycles_rising_half_is_no_overfitting_and_its_low_ends_are_compared() -> None:
    epochs = 80
    lr = [0.01 + 0.09 * (1 - abs((t % 8) - 4) / 4) for t in range(1, epochs + 1)]
    learnt = [2 * math.exp(-t / 10) for t in range(1, epochs + 1)]
    val = [0.2 + a + 3 * x for a, x in zip(learnt, lr, strict=True)]
    probe = [0.02 + a + 1.5 * x for a, x in zip(learnt, lr, strict=True)]
    for end in (76, 78, 80):  # on the rise, at a peak's other side, at a low end
        history = History.of_curves(val[:end], probe[:end], chance=CHANCE, lr=lr[:end])
        assert diagnose(history).label == "healthy"
    rising = [v + 0.02 * max(0, t - 32) for t, v in enumerate(val)]
    verdict = diagnose(History.of_curves(rising, probe, chance=CHANCE, lr=lr))
    assert verdict.label == "overfitting"
    assert verdict.onset_epoch in (32, 40)


def test_a_run_made_longer_once_its_learning_rate_was_zero_is_judged_as_a_whole() -> None:
    epochs = range(1, 21)
    lr = [0.03 * (1 + math.cos(math.pi * t / (15 if t <= 15 else 20))) / 2 for t in epochs]
    val = [0.19 + 0.9 * math.exp(-t) + 0.0005 * t for t in epochs]
    probe = [0.002 + 0.9 * math.exp(-t) for t in epochs]
    for end in (15, 17, 20):  # before, at the learning rate that it got again, at the end of both
        verdict = diagnose(History.of_curves(val[:end], probe[:end], chance=math.log(3), lr=lr[:end]))
        assert (verdict.label, verdict.detail) == ("overfitting", "gap")


def test_a_learning_rate_that_went_to_zero_does_not_hide_that_it_was_too_small() -> None:
    epochs = 30
    lr = [1e-4 * (1 + math.cos(math.pi * t / epochs)) / 2 for t in range(epochs)]
    learnt = np.cumsum(lr) / 1e-3
    loss = (2.3 - 0.6 * learnt).tolist()
    verdict = diagnose(History.of_curves(loss, loss, chance=CHANCE, lr=lr))
    assert (verdict.label, verdict.detail) == ("underfitting", "under-trained")


def test_a_gap_to_a_probe_learnt_by_heart_is_overfitting_even_where_the_validation_only_stays() -> None:
    t = np.arange(1, 101)
    val = 0.8 + 1.5 * np.exp(-t / 8)
    probe = 0.001 + 2.3 * np.exp(-t / 8)
    verdict = diagnose(History.of_curves(val.tolist(), probe.tolist(), chance=CHANCE))
    assert (verdict.label, verdict.detail) == ("overfitting", "gap")
    assert 20 <= verdict.onset_epoch <= 50  # type: ignore[operator]


def test_a_double_descent_is_told_and_answered_with_a_longer_run() -> None:
    t = np.arange(1, 101)
    val = 0.5 + 1.8 * np.exp(-t / 5) + 0.6 * np.exp(-(((t - 50) / 15) ** 2))
    probe = 0.001 + 2 * np.exp(-t / 8)
    verdict = diagnose(History.of_curves(val[:70].tolist(), probe[:70].tolist(), chance=CHANCE))
    assert (verdict.label, verdict.detail) == ("overfitting", "receding")
    assert verdict.advice[0] is Advice.LENGTHEN_FIRST
    assert diagnose(History.of_curves(val.tolist(), probe.tolist(), chance=CHANCE)).label == "healthy"


def test_rates_still_high_are_cooled_down_first() -> None:
    verdict = diagnose(_overfit(10, 60, 0.0))
    assert verdict.sentences()[0].startswith("Cool down: the learning rate is still 100% of its peak.")


@pytest.mark.parametrize("name", RECORDED)
def test_more_epochs_and_fewer_are_named_where_the_advice_is_about_them(name: str) -> None:
    verdict = diagnose(load(name))
    lines = " ".join(verdict.sentences()).lower()
    assert verdict.can_train_longer == (verdict.label == "healthy" or "lengthen the run" in lines)
    assert ("shorten the run: " in lines) == (verdict.sufficient_epochs is not None)
    assert verdict.sufficient_epochs is None or f"at about epoch {verdict.sufficient_epochs:.0f} is enough" in lines


def test_a_start_above_chance_that_is_being_left_is_no_divergence() -> None:
    loss = [9.0, 8.0, 7.0, 6.0, 5.0, 4.5]
    verdict = diagnose(History.of_curves(loss, loss, chance=CHANCE, start=2.3))
    assert (verdict.label, verdict.detail) == ("underfitting", "under-trained")


@pytest.mark.parametrize(
    ("history", "label"),
    [
        (History(()), "inconclusive"),
        (History.of_curves([2.0, 1.0], [2.0, 1.0], chance=CHANCE), "inconclusive"),
        (History.of_curves([2.0, 1.0, math.nan], [2.0, 1.0, 0.5], chance=CHANCE), "diverged"),
        (History.of_curves([2.4, 9.0, 9.0], [2.4, 9.0, 9.0], chance=CHANCE), "diverged"),
        (History((), diverged="train/loss became nan at step 3"), "diverged"),
        (History.of_curves([2.3] * 8, [2.3] * 8, chance=CHANCE), "collapsed"),
        (History.of_curves([1.1, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]), "inconclusive"),
    ],
)
def test_edges(history: History, label: str) -> None:
    verdict = diagnose(history)
    assert verdict.label == label
    assert isinstance(verdict, Verdict)


def test_regression_losses_need_only_a_start() -> None:
    t = np.arange(1, 41)
    loss = (0.01 + 0.9 * np.exp(-t / 5)).tolist()
    assert diagnose(History.of_curves(loss, loss, start=1.0)).label == "healthy"


def test_a_mid_run_verdict_says_go_on() -> None:
    loss = [2.2, 2.0, 1.8, 1.6, 1.4]
    history = History.of_curves(loss, loss, chance=CHANCE, steps=[10, 20, 30, 40, 50])
    verdict = diagnose(History(history.points, chance=CHANCE, total_steps=100))
    assert verdict.sentences()[-1].startswith("Train to the end of the planned run, of which 50% are done")


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lr must have one value for each of the 2 of val_loss, got 1"):
        History.of_curves([1.0, 1.0], [1.0, 1.0], lr=[0.1])
