"""Every rule of a verdict, on real recorded curves (record_curves.py) and on curves with a planted outcome."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lr_lightning.diagnosis import Advice, History, Label, Reason, Verdict, diagnose
from lr_lightning.diagnosis.verdict import Change
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
    "tiny_net_2": ("underfitting", "", None),
    "tiny_net_cnn": ("underfitting", "", None),
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


@pytest.mark.parametrize(("swing", "calm"), [(0.0, True), (0.02, True), (0.08, False)])
def test_a_raise_needs_curves_that_fall_at_every_validation(swing: float, calm: bool) -> None:
    probe = 2.2 - 0.06 * np.arange(8) + swing * np.array([0, 1, -1, 1, -1, 1, -1, 0])
    verdict = diagnose(History.of_curves((probe + 0.01).tolist(), probe.tolist(), chance=CHANCE, lr=[0.001] * 8))
    assert verdict.label == "underfitting"
    assert (Advice.RAISE_CALM_LR in verdict.advice) is calm
    assert not calm or verdict.advice == (Advice.RAISE_CALM_LR,)  # and not to lengthen it as well
    assert Advice.AT_ITS_LIMIT not in verdict.advice


def test_a_high_loss_that_stopped_at_a_high_learning_rate_is_limited() -> None:
    probe = (1.2 + np.exp(-np.arange(1, 31) / 2)).tolist()
    verdict = diagnose(History.of_curves(probe, probe, chance=CHANCE, lr=[0.1] * 29 + [0.001]))
    assert (verdict.label, verdict.detail) == ("underfitting", "limited")
    assert verdict.advice == (Advice.AT_ITS_LIMIT,)


def _cooled(history: History, *cooled: float) -> History:
    """The history, with what a cooldown would reach at its last validations."""
    first = len(history.points) - len(cooled)
    later = [replace(p, cooled_loss=loss) for p, loss in zip(history.points[first:], cooled, strict=True)]
    return replace(history, points=(*history.points[:first], *later))


@pytest.mark.parametrize(
    ("cooled", "last_lr", "detail"),
    [(0.9, 0.1, "the learning rate is high"), (1.19, 0.1, "limited"), (0.9, 0.001, "limited")],
)
def test_a_run_that_a_cooldown_would_bring_further_is_not_limited(cooled: float, last_lr: float, detail: str) -> None:
    probe = (1.2 + np.exp(-np.arange(1, 31) / 2)).tolist()
    history = History.of_curves(probe, probe, chance=CHANCE, lr=[0.1] * 29 + [last_lr])
    verdict = diagnose(_cooled(history, cooled))
    assert (verdict.label, verdict.detail) == ("underfitting", detail)
    if detail != "limited":
        assert verdict.advice == (Advice.COOL_DOWN,)
        assert verdict.sentences() == [
            "Cool down: the learning rate is still 100% of its peak, and cooled now it would reach a validation loss "
            "of 0.9 instead of 1.2. Let it fall to 0 at the end, with the schedule wsd for instance."
        ]


def test_a_loss_has_not_stopped_while_the_preview_of_a_cooldown_falls() -> None:
    probe = (1.2 + np.exp(-np.arange(1, 31) / 2)).tolist()
    history = History.of_curves(probe, probe, chance=CHANCE, lr=[0.1] * 30)
    for fall, limited in ((0.0, True), (0.03, False)):
        cooled = [1.19 * (1 - fall * i / 8) for i in range(9)]  # over the last quarter and one validation more
        verdict = diagnose(_cooled(history, *cooled))
        assert (verdict.reason is Reason.LIMITED) is limited
        assert (Advice.AT_ITS_LIMIT in verdict.advice) is limited


@pytest.mark.parametrize(
    ("cooled", "advice"),
    [((), (Advice.COOL_DOWN,)), ((0.09,), (Advice.COOL_DOWN,)), ((0.1,), ()), ((0.12,), ())],
)
def test_a_healthy_run_is_cooled_down_unless_that_is_known_to_bring_nothing(
    cooled: tuple[float, ...], advice: tuple[Advice, ...]
) -> None:
    loss = [2.0 * 0.5**t + 0.1 for t in range(20)]
    verdict = diagnose(_cooled(History.of_curves(loss, loss, chance=CHANCE, lr=[0.1] * 20), *cooled))
    assert (verdict.label, verdict.advice) == ("healthy", advice)
    said = "cooled now it would reach a validation loss of 0.09 instead of 0.1" in verdict.text()
    assert said is (cooled == (0.09,))


@pytest.mark.parametrize("gain", [True, False])
def test_a_run_that_still_learns_at_a_high_learning_rate_is_cooled_down_or_lengthened_with_a_cooldown(
    gain: bool,
) -> None:
    probe = [0.4 + 1.8 * 0.95**t for t in range(20)]
    probe[10] += 0.07  # not so calm that a higher learning rate helps
    history = History.of_curves(probe, probe, chance=CHANCE, lr=[0.1] * 20)
    verdict = diagnose(_cooled(history, probe[-1] * (0.9 if gain else 1.1)))
    assert (verdict.label, verdict.reason) == ("underfitting", Reason.UNDER_TRAINED)
    (advice,) = verdict.advice
    either = (Change(width=2, schedule="wsd"), Change(epochs=40, schedule="wsd"))
    assert verdict.changes(advice) == ((Change(schedule="wsd"),) if gain else either)
    said = "Two runs to try: a network twice as wide, or 40 epochs, each with the schedule wsd. The probe loss is high"
    assert gain or verdict.sentences()[0].startswith(said)


def test_an_overfitting_run_is_cooled_down_where_the_preview_of_that_was_lowest() -> None:
    history = _overfit(10, 60, 0.0)
    val, last = [p.val_loss for p in history.points], history.points[-1].val_loss
    risen = _cooled(history, *(0.3 + 0.01 * abs(epoch - 20) for epoch in range(1, 61)))
    verdict = diagnose(risen)
    assert verdict.sentences()[0] == (
        "Cool down: the learning rate is still 100% of its peak, and cooled by epoch 20 it would have reached a "
        f"validation loss of 0.3 instead of {last:.3g}. Let it fall to 0 by about epoch 20."
    )
    assert verdict.changes(verdict.advice[0]) == (Change(schedule="wsd", epochs=20),)
    falling = diagnose(_cooled(history, *(min(val) + 0.1 / epoch for epoch in range(1, 61))))
    assert (falling.label, falling.advice) == ("overfitting", (Advice.COOL_DOWN,))  # only the high lr raised the loss


def test_a_loss_that_stops_as_the_learning_rate_goes_to_zero_may_need_a_longer_run_or_a_larger_network() -> None:
    t = np.arange(1, 31)
    lr = (0.05 * (1 + np.cos(np.pi * t / 30))).tolist()
    probe = (0.7 + 1.5 * np.exp(-np.minimum(t, 20 + (t - 20) / 8) / 8)).tolist()
    verdict = diagnose(History.of_curves(probe, probe, chance=CHANCE, lr=lr))
    assert verdict.label == "underfitting"
    assert verdict.reason is not Reason.LIMITED
    assert verdict.advice == (Advice.LARGER_OR_LONGER,)
    memorizes = diagnose(History.of_curves([1 + 0.6 * loss for loss in probe], probe, chance=CHANCE, lr=lr))
    assert (memorizes.label, memorizes.advice) == ("underfitting", ())  # its gap says that it would overfit


@pytest.mark.parametrize("blown", [9.0, 4.0])
def test_coming_down_to_chance_after_a_blow_up_is_no_learning(blown: float) -> None:
    curve = [2.25, blown, *(2.3 + (blown - 2.3) * 0.6**k for k in range(1, 9))]
    verdict = diagnose(History.of_curves(curve, curve, chance=CHANCE, start=2.3, lr=[10.0] * 10))
    assert not {Advice.RAISE_LR_BY_TENS, Advice.RAISE_CALM_LR} & set(verdict.advice)
    assert verdict.reason is not Reason.UNDER_TRAINED


def test_a_run_that_began_far_above_chance_does_not_need_more_epochs_or_a_wider_network() -> None:
    curve = [119.0, 47.0, 46.5, 2.64, 1.85, 1.15, 1.06, 1.04]  # with a cosine decay from a learning rate of 3
    lr = [1.5 * (1 + math.cos(math.pi * t / 8)) for t in range(1, 9)]
    history = History.of_curves(curve, curve, chance=CHANCE, start=2.4, lr=lr)
    verdict = diagnose(replace(history, peak_lr=3.0))
    assert verdict.label == "underfitting"
    assert verdict.advice == ()


def test_one_spike_does_not_raise_a_learning_rate_that_is_too_high() -> None:
    probe = [2.0, 1.2, 0.6, 0.3, 0.2, 0.12, 0.15, 1.9]  # it had been at 5 % of chance
    verdict = diagnose(History.of_curves(probe, probe, chance=CHANCE, lr=[1.0] * 8))
    assert not {Advice.RAISE_LR_BY_TENS, Advice.RAISE_CALM_LR} & set(verdict.advice)


def test_the_hump_of_a_high_learning_rate_does_not_hide_overfitting() -> None:
    lr = [0.05 * (1 + math.cos(math.pi * t / 30)) for t in range(1, 31)]
    val = [0.6, 0.5, 0.42, 0.38, 0.354] + [0.354 + 0.6 * math.sin(math.pi * k / 30) for k in range(1, 20)]
    val += [0.50, 0.48, 0.46, 0.45, 0.445, 0.445]
    probe = [0.5 * 0.8**t for t in range(30)]
    acc = [0.90, 0.93, 0.95, 0.97, 0.979, *([0.9] * 19), 0.83, 0.84, 0.845, 0.847, 0.847, 0.847]
    history = History.of_curves(val, probe, chance=CHANCE, lr=lr, val_acc=acc)
    points = tuple(replace(point, val_size=500) for point in history.points)
    verdict = diagnose(replace(history, points=points))
    assert (verdict.label, verdict.onset_epoch) == ("overfitting", 5.0)


def test_a_verdict_that_a_tenth_of_the_losses_would_change_names_the_other_label() -> None:
    t = np.arange(1, 31)
    for level, near in ((0.1, ()), (0.94, ("underfitting",)), (1.06, ("healthy",)), (1.5, ())):
        loss = (0.15 * CHANCE * level + 1.5 * np.exp(-t / 2)).tolist()  # 15 % of chance is the border
        verdict = diagnose(History.of_curves(loss, loss, chance=CHANCE))
        assert verdict.label == ("healthy" if level < 1 else "underfitting")
        assert verdict.near == near
        assert verdict.title == verdict.headline + (f", near the border of {near[0]}" if near else "")
    assert "near the border" not in diagnose(History.of_curves([math.nan] * 5, [1.0] * 5, chance=CHANCE)).text()


def test_a_run_that_lost_accuracy_is_not_healthy() -> None:
    t = np.arange(1, 31)
    loss = (0.2 + 1.5 * np.exp(-t / 3)).tolist()
    acc = np.where(t < 20, 0.97, 0.91).tolist()
    history = History.of_curves(loss, loss, chance=CHANCE, val_acc=acc)
    # of 40 examples, 6 points are within the error; of an unknown number, the curve's own jitter is the error
    for size, label in ((1000, "inconclusive"), (40, "healthy"), (None, "inconclusive")):
        verdict = diagnose(replace(history, points=tuple(replace(p, val_size=size) for p in history.points)))
        assert verdict.label == label
    assert (
        "6.0 points below its best"
        in diagnose(replace(history, points=tuple(replace(p, val_size=1000) for p in history.points))).headline
    )


def test_no_better_than_chance_is_not_said_of_an_accuracy_that_is() -> None:
    t = np.arange(1, 31)
    val, probe = (2.3 + 0.1 * t).tolist(), (2.0 * np.exp(-t / 5)).tolist()
    for acc, memorised in ((0.47, False), (0.12, True), (None, True)):
        curves = {} if acc is None else {"val_acc": [acc] * 30}
        verdict = diagnose(History.of_curves(val, probe, chance=CHANCE, **curves))
        assert verdict.label == "overfitting"
        assert (Advice.CHECK_LABELS in verdict.advice) is memorised


def test_a_curved_fall_of_few_validations_is_no_noise() -> None:
    curve = [2.2, 1.75, 1.42, 1.18, 1.0, 0.86]
    verdict = diagnose(History.of_curves(curve, curve, chance=CHANCE, lr=[0.01] * 6))
    assert (verdict.label, verdict.detail) == ("underfitting", "under-trained")


def test_the_peak_is_the_schedules_own() -> None:
    loss = [2.29, 2.28, 2.27, 2.26, 2.25, 2.24]
    lr = [9.47e-6, 8e-6, 5e-6, 3e-6, 1e-6, 1e-9]
    history = replace(History.of_curves(loss, loss, chance=CHANCE, lr=lr), peak_lr=1e-5)
    assert "0.0001 or 0.001 instead of 1e-05" in diagnose(history).sentences()[0]


def test_an_uncooled_run_is_told_to_cool_down_and_not_to_go_on_as_it_is() -> None:
    loss = [2.0 * 0.7**t + 0.1 for t in range(20)]
    verdict = diagnose(History.of_curves(loss, loss, chance=CHANCE, lr=[0.1] * 20))
    assert (verdict.label, verdict.advice) == ("healthy", (Advice.COOL_DOWN,))
    assert [change.schedule for change in verdict.changes(Advice.COOL_DOWN)] == ["wsd"]


def test_a_rise_of_both_losses_is_no_overfitting() -> None:
    curve = [2.0, 1.0, 0.4, 0.2, 0.15, 0.3, 0.5, 0.8, 1.0, 1.1]
    verdict = diagnose(History.of_curves(curve, curve, chance=CHANCE, lr=[0.3] * 10))
    assert verdict.label == "inconclusive"
    assert "unstable" in verdict.detail
    assert verdict.reason is Reason.UNSTABLE
    assert verdict.sentences() == [
        "Two runs to try: the learning rate 0.1 instead of 0.3, or the schedule wsd, which lets it fall to 0 at the "
        "end. The loss swings."
    ]
    assert verdict.changes(verdict.advice[0]) == (Change(lr=1 / 3), Change(schedule="wsd"))
    cooled = diagnose(History.of_curves(curve, curve, chance=CHANCE, lr=[0.3] * 9 + [0.0]))
    assert cooled.sentences() == []  # a third of the learning rate made such runs worse


def test_a_cycles_rising_half_is_no_overfitting_and_its_low_ends_are_compared() -> None:
    epochs = 80
    lr = [0.01 + 0.09 * (1 - abs((t % 8) - 4) / 4) for t in range(1, epochs + 1)]
    learned = [2 * math.exp(-t / 10) for t in range(1, epochs + 1)]
    val = [0.2 + a + 3 * x for a, x in zip(learned, lr, strict=True)]
    probe = [0.02 + a + 1.5 * x for a, x in zip(learned, lr, strict=True)]
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
    learned = np.cumsum(lr) / 1e-3
    loss = (2.3 - 0.6 * learned).tolist()
    verdict = diagnose(History.of_curves(loss, loss, chance=CHANCE, lr=lr))
    assert (verdict.label, verdict.detail) == ("underfitting", "under-trained")


def test_a_gap_to_a_probe_learned_by_heart_is_overfitting_even_where_the_validation_only_stays() -> None:
    t = np.arange(1, 101)
    val = 0.8 + 1.5 * np.exp(-t / 8)
    probe = 0.001 + 2.3 * np.exp(-t / 8)
    verdict = diagnose(History.of_curves(val.tolist(), probe.tolist(), chance=CHANCE))
    assert (verdict.label, verdict.detail) == ("overfitting", "gap")
    assert 20 <= verdict.onset_epoch <= 50  # type: ignore[operator]


def test_a_double_descent_is_told_and_not_answered_with_a_shorter_run() -> None:
    t = np.arange(1, 101)
    val = 0.5 + 1.8 * np.exp(-t / 5) + 0.6 * np.exp(-(((t - 50) / 15) ** 2))
    probe = 0.001 + 2 * np.exp(-t / 8)
    verdict = diagnose(History.of_curves(val[:70].tolist(), probe[:70].tolist(), chance=CHANCE))
    assert (verdict.label, verdict.detail) == ("overfitting", "receding")
    assert Advice.SHORTEN_OR_REGULARISE not in verdict.advice
    assert diagnose(History.of_curves(val.tolist(), probe.tolist(), chance=CHANCE)).label == "healthy"


def test_rates_still_high_are_cooled_down_first() -> None:
    verdict = diagnose(_overfit(10, 60, 0.0))
    assert verdict.sentences()[0].startswith("Cool down: the learning rate is still 100% of its peak.")


@pytest.mark.parametrize("name", RECORDED)
def test_every_number_of_a_sentence_is_what_a_reader_finds_in_the_curve(name: str) -> None:
    history = load(name)
    known = [p for p in history.points if math.isfinite(p.val_loss) and math.isfinite(p.probe_loss)]
    verdict, at = diagnose(history), {p.epoch: p for p in known}
    n, last = verdict.evidence, history.points[-1]
    if "val_loss" in n and math.isfinite(last.val_loss):
        assert n["val_loss"] == last.val_loss
        assert n["probe_loss"] == last.probe_loss
    if "best_val_loss" in n:
        assert n["best_val_loss"] == min(p.val_loss for p in known)
    if "best_epoch" in n:
        assert at[n["best_epoch"]].val_loss == n["best_val_loss"]
        assert n["rise"] == last.val_loss - n["best_val_loss"]
    if "probe_loss_at_best" in n:
        assert n["probe_loss_at_best"] == at[n["best_epoch"]].probe_loss
        assert n["probe_fall"] == n["probe_loss_at_best"] - last.probe_loss
    for which in ("val", "probe"):
        if f"{which}_fall_since_epoch" in n:
            then = getattr(at[n[f"{which}_fall_since_epoch"]], f"{which}_loss")
            assert n[f"{which}_fall"] == then - getattr(last, f"{which}_loss")
    assert n["epochs"] == last.epoch
    assert verdict.useful_epochs <= last.epoch


@pytest.mark.parametrize("name", RECORDED)
def test_no_verdict_sends_to_and_fro(name: str) -> None:
    history = load(name)
    verdict = diagnose(history)
    changes = [change for advice in verdict.advice for change in verdict.changes(advice)]
    about_lr = [advice for advice in verdict.advice if any(c.lr is not None for c in verdict.changes(advice))]
    assert len(about_lr) <= 1  # one advice for one divergence
    lengths = {change.epochs > verdict.evidence["epochs"] for change in changes if change.epochs is not None}
    assert len(lengths) <= 1
    if verdict.label is Label.OVERFITTING:  # a run that ended where this one was best is not told to go on
        kept = tuple(p for p in history.points if p.epoch <= verdict.useful_epochs)
        shorter = diagnose(replace(history, points=kept, total_steps=kept[-1].step))
        assert Advice.LARGER_OR_LONGER not in shorter.advice, shorter.text()


def test_a_high_start_that_is_being_left_is_no_divergence() -> None:
    loss = [9.0, 8.0, 7.0, 6.0, 5.0, 4.5]
    verdict = diagnose(History.of_curves(loss, loss, chance=CHANCE, start=9.5))
    assert (verdict.label, verdict.detail) == ("underfitting", "under-trained")
    assert diagnose(History.of_curves(loss, loss, chance=CHANCE, start=2.3)).label != "diverged"


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
    assert verdict.sentences() == ["Train to the end of the planned run, of which 50% are done."]


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lr must have one value for each of the 2 of val_loss, got 1"):
        History.of_curves([1.0, 1.0], [1.0, 1.0], lr=[0.1])


@pytest.mark.parametrize("last_lr", [0.1, 0.001])
def test_memorized_labels_without_a_rise_are_no_reason_to_shorten(last_lr: float) -> None:
    probe = (2.3 * 0.6 ** np.arange(30)).tolist()
    val = (2.31 + 0.005 * np.cos(np.arange(30))).tolist()
    verdict = diagnose(History.of_curves(val, probe, chance=CHANCE, lr=[0.1] * 29 + [last_lr]))
    assert (verdict.label, verdict.reason) == ("overfitting", Reason.MEMORISED)
    assert verdict.advice == (Advice.CHECK_LABELS, Advice.REGULARISE)
