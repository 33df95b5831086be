"""The rules that turn a run's history into a verdict, and a verdict into advice: pure functions of numbers."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from lr_lightning.diagnosis.curves import AT_CHANCE, RISE, Curves, finite, reference_of
from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.verdict import Advice, Label, Numbers, Reason, Verdict, lr_is_high

_FEWEST = 4  # validations; fewer show only a divergence
_DIVERGED = 1.5  # times the larger of start and chance
_STILL = 0.1  # share of all that was learned: a smaller fall in the last quarter of the learning has stopped
_MEMORIZED = 0.02  # share of chance: a probe loss below it means that the network has memorized the examples
_WIDE = 0.1  # share of chance: a gap above it is wide
_FITS = 0.55  # share of the validation loss: a run whose probe loss lies below it would memorize with more training
_LOST = 0.03  # of the validation accuracy: a run that ended that far below its best is not healthy
_SLOW = 0.35  # share of chance: while a loss above it falls at every validation, a higher learning rate is faster
_CALM, _STEADY = 0.005, 0.02  # roughness of curves that fall at every validation, and of those that fall on the whole
_AT_BEST = 1.02  # a loss below this many times its best value, or its best preview, still counts as its best
_AT_ITS_END = 0.98  # share of the planned steps: a run that made as many counts as complete
_MOST_ADVICE = 3
_BORDER = 0.1  # another seed may change the losses by this share; a label that this would give is near


def diagnose(history: History) -> Verdict:
    """Judge a run.

    The labels are tried in this order. "Beyond its noise" is a one-sided bound of 95 % (see
    :class:`~lr_lightning.diagnosis.curves.Difference`); levels are means of up to five validations at equal phases of
    the schedule (see :func:`~lr_lightning.diagnosis.curves.same_phase`); chance is the loss of a model that knows only
    the shares of the classes, or the mean of a regression's targets, or else the loss at the start.

    1. ``diverged``: a loss is not finite at the end; or both losses are above a limit, at the last validations (up to
       three), or, if the run has never learned, at any in its second half. The limit is 1.5 times the larger of start
       and chance; if neither is known, 4.5 times the lower of the two losses at the first validation. A probe loss that
       fell at every one of at least four validations has not diverged.
    2. ``overfitting``: the validation loss is above its best, by 5 % of it and beyond its noise, and the probe loss
       fell beyond its noise since then. ``memorised``: the validation is no better than chance, and the probe is.
       ``receding``: the validation loss is falling again. Also where the hump of a high learning rate hides the
       minimum (see :attr:`~lr_lightning.diagnosis.curves.Curves.hidden_minimum`). ``gap``: the probe is known by heart
       (below 2 % of chance), the validation loss is far above it (by 10 % of chance), and at least half the run brought
       the validation nothing.
    3. ``underfitting``: the probe loss is high, above 15 % of chance. ``under-trained`` if in the last quarter of the
       learning it fell beyond its noise, and by at least 10 % of its whole fall. Near chance, it counts as falling if
       in the last half it fell by more than 1.5 times the bound, or if single examples hardly changed their losses.
       The learning is the sum of the learning rates of all steps, so a learning rate that has gone to 0 does not look
       like a loss that has stopped. ``limited`` if the loss has stopped below chance; neither if its noise may hide a
       fall. ``the learning rate is high``, unless it is under-trained, if a cooldown would lower the validation loss by
       5 %.
    4. ``collapsed``: neither loss ever left chance.
    5. ``healthy``: the probe loss is low, the validation loss has not risen, and the validation accuracy is less than 3
       points below its best, or not beyond its error.
    6. ``inconclusive``: anything else.

    The verdict is always the same for the same history. It names the labels that it is ``near``: those that the run
    would have if its losses were a tenth higher or lower.
    """
    found = _judged(history)
    if found.divergence is None and found.reason is not Reason.TOO_FEW:
        near = {_judged(_scaled(history, 1 + share)).label for share in (-_BORDER, _BORDER)} - {found.label}
        found = replace(found, near=tuple(sorted(near)))
    reference, _ = reference_of(history) or (found.reference, None)
    found = replace(found, reference=reference, evidence=MappingProxyType({**_background(history), **found.evidence}))
    underfitting = found.label is Label.UNDERFITTING and found.reason is not Reason.UNDER_TRAINED
    if underfitting and _gains_by_cooling(found.evidence):
        found = replace(found, reason=Reason.LR_IS_HIGH)
    return replace(found, advice=tuple(_ADVICE[found.label](found, found.evidence))[:_MOST_ADVICE])


def _judged(history: History) -> Verdict:
    """Return the verdict with the numbers that decided, without advice."""
    found = _diverged(history)
    if found is None and len(history.points) < _FEWEST:
        numbers = {"validations": float(len(history.points)), "needed": float(_FEWEST)}
        found = Verdict(Label.INCONCLUSIVE, Reason.TOO_FEW, evidence=numbers)
    if found is None:
        curves = Curves.of(history)
        rules: tuple[Callable[[Curves], Verdict | None], ...] = (_overfitting, _underfitting, _collapsed, _healthy)
        found = next((verdict for rule in rules if (verdict := rule(curves)) is not None), _inconclusive(curves))
    return found


def _scaled(history: History, factor: float) -> History:
    """Return the history with all validation and probe losses multiplied; chance and the start stay."""

    def times(point: Point) -> Point:
        val, probe = (None if rows is None else rows * factor for rows in (point.val_losses, point.probe_losses))
        val_loss, probe_loss = point.val_loss * factor, point.probe_loss * factor
        return replace(point, val_loss=val_loss, probe_loss=probe_loss, val_losses=val, probe_losses=probe)

    return replace(history, points=tuple(map(times, history.points)))


def _background(history: History) -> dict[str, float]:
    """Return the numbers that advice needs besides those that decided."""
    points = history.points
    if not points:
        return {}
    numbers: dict[str, float] = {"epochs": points[-1].epoch, "validations": float(len(points))}
    if lrs := [point.lr for point in points if point.lr is not None and math.isfinite(point.lr)]:
        numbers |= {"lr": lrs[-1], "peak_lr": max(lrs) if history.peak_lr is None else history.peak_lr}
    if (reference := reference_of(history)) is not None:
        learned = any(point.probe_loss < AT_CHANCE * reference[1] for point in points)
        numbers |= {"chance_loss": reference[1], "learnt_before": float(learned)}
    if history.total_steps:
        numbers["planned"] = points[-1].step / history.total_steps
    numbers |= _previewed(points)
    if history.overconfident:
        numbers["overconfident"] = 1.0
    return numbers


def _previewed(points: tuple[Point, ...]) -> dict[str, float]:
    """Return what a cooldown would reach now, and the lowest that it would have reached if that has risen since."""
    known = [(p.cooled_loss, p.epoch) for p in points if p.cooled_loss is not None and math.isfinite(p.cooled_loss)]
    if not known or points[-1].cooled_loss != known[-1][0]:
        return {}
    (lowest, epoch), now = min(known), known[-1][0]
    risen = now > _AT_BEST * lowest and lowest < points[-1].val_loss
    return {"if_cooled": now} | ({"cooled_best": lowest, "cooled_best_epoch": epoch} if risen else {})


def _diverged(history: History) -> Verdict | None:
    points = history.points
    bad = [point for point in points if not finite(point)]
    if history.diverged is not None:
        onset = bad[0].epoch if bad else points[-1].epoch if points else 0.0
        return Verdict(Label.DIVERGED, Reason.NOT_FINITE, onset, divergence=history.diverged)
    if not points:
        return None
    last = points[-1]
    levels = {"val_loss": last.val_loss, "probe_loss": last.probe_loss}
    if not finite(last):
        return Verdict(Label.DIVERGED, Reason.NOT_FINITE, bad[0].epoch, levels)
    known = [loss for loss in (history.chance, history.start) if loss is not None and math.isfinite(loss)]
    # A run can diverge in its first epoch, so the first validation stands for the start only if nothing else does.
    limit = _DIVERGED * max(known) if known else 3 * _DIVERGED * min(points[0].val_loss, points[0].probe_loss)
    above = [point.probe_loss > limit and point.val_loss > limit for point in points]
    at_the_end = all(above[-max(1, min(3, len(above) // 2)) :])
    learned = min(point.probe_loss for point in points if finite(point)) < AT_CHANCE * limit / _DIVERGED
    # A run that has never learned, and exceeds the limit anywhere in its second half, is not at rest at chance.
    jumps = not learned and any(above[len(above) // 2 :])
    # A run that leaves a bad start, so that its probe loss fell at every validation, has not diverged.
    recovers = len(points) >= _FEWEST and all(b.probe_loss < a.probe_loss for a, b in pairwise(points))
    has_limit = limit > 0  # False for NaN as well, which the first validation may hold
    if not has_limit or recovers or not (at_the_end or jumps):
        return None
    if at_the_end:
        first = max((index for index, is_above in enumerate(above) if not is_above), default=-1) + 1
    else:
        first = above.index(True)
    return Verdict(Label.DIVERGED, Reason.FAR_ABOVE_CHANCE, points[first].epoch, levels)


# -- the other labels ------------------------------------------------------------------------------------------------


def _recorded(curves: Curves) -> dict[str, float]:
    """Return the losses as they were logged: at the end, and where the validation loss was lowest.

    The rules compare levels, which are means; the numbers that are shown are those that a reader finds in the log.
    """
    last, best = curves.every[-1], min(curves.every, key=lambda point: point.val_loss)
    return {
        "val_loss": last.val_loss,
        "best_val_loss": best.val_loss,
        "best_epoch": best.epoch,
        "rise": last.val_loss - best.val_loss,
        "rise_noise": curves.val.difference(curves.end, curves.best).noise,
        "probe_loss": last.probe_loss,
        "probe_loss_at_best": best.probe_loss,
    }


def _overfitting(curves: Curves) -> Verdict | None:
    rise, fell = curves.rise, curves.probe.difference(curves.best, curves.end)
    numbers = _recorded(curves)
    numbers |= {"probe_fall": numbers["probe_loss_at_best"] - numbers["probe_loss"], "probe_fall_noise": fell.noise}
    chance = curves.reference
    learned = chance is not None and curves.probe_end < 0.8 * chance and curves.probe.difference(0, curves.end).above()
    memorized = learned and curves.guesses
    if rise.risen and fell.above():
        reason = Reason.RECEDING if _recedes(curves) else Reason.MEMORISED if memorized else None
        return Verdict(Label.OVERFITTING, reason, _onset(curves), numbers)
    if memorized:
        numbers["risen"] = float(rise.risen)
        return Verdict(Label.OVERFITTING, Reason.MEMORISED, _onset(curves), numbers)
    if (lowest := curves.hidden_minimum) is not None:
        return Verdict(Label.OVERFITTING, None, curves.points[lowest].epoch, numbers)
    gap = curves.val_end - curves.probe_end
    if chance is None or curves.probe_end >= _MEMORIZED * chance or gap <= _WIDE * chance:
        return None
    onset = curves.points[curves.first_at_best].epoch
    falls = curves.val.difference(curves.at(0.75), curves.end).above(RISE * curves.val_end)
    if falls or onset > curves.points[curves.end].epoch / 2:
        return None
    numbers["gap"] = numbers["val_loss"] - numbers["probe_loss"]
    return Verdict(Label.OVERFITTING, Reason.GAP, onset, numbers)  # half the run or more brought the validation nothing


def _recedes(curves: Curves) -> bool:
    """Return whether the validation loss has fallen from its worst after its best."""
    worst = curves.best + int(np.argmax(curves.val.smooth[curves.best :]))
    least = 0.2 * float(curves.val.smooth[worst] - curves.val.smooth[curves.best]) + curves.val.search_bias(worst)
    return curves.val.difference(worst, curves.end).above(least)


def _onset(curves: Curves) -> float:
    """Return the last epoch at which the validation loss was still at its best, within the jitter of the curve."""
    levels = curves.val.smooth
    best = float(levels[curves.best])
    noise = curves.val.level_noise(curves.best)
    slack = min(0.05 * float(levels[curves.best :].max() - best), 2 * math.sqrt(2) * noise)
    within = np.flatnonzero(levels[curves.best :] <= best + slack)
    return curves.points[curves.best + int(within[-1])].epoch


def _underfitting(curves: Curves) -> Verdict | None:
    if not curves.high or curves.rise.risen:
        return None
    near_chance = curves.reference is not None and curves.probe_end > AT_CHANCE * curves.reference
    since = curves.at(0.5 if near_chance else 0.75)
    fall, last = curves.fall(since), curves.every[-1]
    still = near_chance and curves.hardly_moved(since)
    if near_chance:
        falls = not curves.above_chance and (fall.size.above(strictness=1.5) or still)
    else:
        falls = fall.size.above() and fall.share >= _STILL
    numbers = {
        "probe_loss": last.probe_loss,
        "val_loss": last.val_loss,
        "probe_fall": curves.points[since].probe_loss - last.probe_loss,
        "probe_fall_noise": fall.size.noise,
        "probe_fall_since_epoch": curves.points[since].epoch,
        "lowest_probe_loss": float(curves.probe.values.min()),
        "best_val_loss": min(point.val_loss for point in curves.every),
        "val_at_half": next(p.val_loss for p in curves.every if p.epoch >= last.epoch / 2),
        "roughness": curves.roughness,
        "too_slow": float(not curves.above_chance and (curves.roughness < _CALM or still)),
    }
    if falls:
        return Verdict(Label.UNDERFITTING, Reason.UNDER_TRAINED, None, numbers)
    if near_chance or curves.unstable or curves.reference is None:
        return None  # the loss had been lower, so neither the run nor the network was too small; or "high" is unknown
    return Verdict(Label.UNDERFITTING, Reason.LIMITED if curves.standstill else None, None, numbers)


def _collapsed(curves: Curves) -> Verdict | None:
    if curves.reference is None:
        return None
    lowest = min(float(curves.probe.smooth.min()), float(curves.val.smooth.min()))
    if lowest <= AT_CHANCE * curves.reference:
        return None
    last = curves.every[-1]
    numbers = {"probe_loss": last.probe_loss, "val_loss": last.val_loss, "lowest_loss": lowest}
    return Verdict(Label.COLLAPSED, evidence=numbers)


def _healthy(curves: Curves) -> Verdict | None:
    rise, since = curves.rise, curves.at(0.75)
    if rise.risen or curves.high or curves.accuracy_lost >= _LOST:
        return None
    fall = curves.val.difference(since, curves.end)
    numbers = _recorded(curves) | {
        "val_fall": curves.points[since].val_loss - curves.every[-1].val_loss,
        "val_fall_noise": fall.noise,
        "val_fall_since_epoch": curves.points[since].epoch,
    }
    del numbers["probe_loss_at_best"]
    return Verdict(Label.HEALTHY, evidence=numbers)


def _inconclusive(curves: Curves) -> Verdict:
    rise = curves.rise
    numbers = _recorded(curves)
    del numbers["probe_loss_at_best"]
    if curves.unstable:
        reason = Reason.UNSTABLE
        numbers["lowest_probe_loss"] = float(curves.probe.values.min())
    elif rise.risen:
        reason = Reason.PROBE_NOT_FALLING
    elif curves.accuracy_lost >= _LOST:
        reason = Reason.ACCURACY_FELL
        numbers["accuracy_lost"] = 100 * curves.accuracy_lost
    else:
        reason = Reason.NO_REFERENCE if curves.reference is None else Reason.RESTLESS_AT_CHANCE
    return Verdict(Label.INCONCLUSIVE, reason, None, numbers)


# -- advice: for each label, what the numbers support ----------------------------------------------------------------


def _if_diverged(verdict: Verdict, numbers: Numbers) -> list[Advice]:
    advice = [Advice.LOWER_LR_TENFOLD if "peak_lr" in numbers else Advice.LOWER_LR]
    return [*advice, Advice.WARM_UP_OR_CLIP] if numbers.get("learnt_before") else advice


def _if_overfitting(verdict: Verdict, numbers: Numbers) -> list[Advice]:
    advice = [Advice.CHECK_LABELS] if verdict.reason is Reason.MEMORISED else []
    if _gains_by_cooling(numbers) and "cooled_best" not in numbers:
        return [*advice, Advice.COOL_DOWN]  # the validation loss rose, but what a cooldown would reach did not
    risen = verdict.reason is not Reason.GAP and bool(numbers.get("risen", 1.0))
    if risen and lr_is_high(numbers):
        advice.append(Advice.COOL_DOWN_EARLIER)  # and nothing else: at a high lr, dropout often made it worse
    elif risen and verdict.reason is not Reason.RECEDING and verdict.useful_epochs < numbers["epochs"]:
        advice.append(Advice.SHORTEN_OR_REGULARISE)
    elif verdict.reason is not Reason.GAP:  # a gap without a rise: dropout only slows the learning
        advice.append(Advice.REGULARISE)
    return [*advice, *([Advice.SCALE_LOGITS] if numbers.get("overconfident") else [])]


def _if_underfitting(verdict: Verdict, numbers: Numbers) -> list[Advice]:
    if numbers.get("planned", 1.0) < _AT_ITS_END:
        return [Advice.FINISH]
    chance = numbers.get("chance_loss", math.inf)
    lowest = min(numbers["lowest_probe_loss"], numbers["best_val_loss"])
    if verdict.reason is Reason.LR_IS_HIGH:
        return [Advice.COOL_DOWN]
    limited = verdict.reason is Reason.LIMITED
    if "peak_lr" in numbers and numbers["too_slow"] and lowest > _SLOW * chance and not limited:
        return [Advice.RAISE_LR_BY_TENS if lowest > AT_CHANCE * chance else Advice.RAISE_CALM_LR]
    if limited:
        return [Advice.AT_ITS_LIMIT]
    if _gains_by_cooling(numbers):
        return [Advice.COOL_DOWN]
    learns = numbers["val_loss"] < min(_AT_BEST * numbers["best_val_loss"], numbers["val_at_half"] / (1 + RISE))
    falls = verdict.reason is Reason.UNDER_TRAINED and numbers["probe_fall"] > 0
    if numbers["probe_loss"] < _FITS * numbers["val_loss"]:
        return []  # it fits its own examples best, so a larger or longer run would memorize them
    if numbers["roughness"] > _STEADY or not learns or (lr_is_high(numbers) and not falls):
        return []  # a longer run may do worse
    return [Advice.LARGER_OR_LONGER]


def _if_healthy(verdict: Verdict, numbers: Numbers) -> list[Advice]:
    if numbers.get("planned", 1.0) < _AT_ITS_END:
        return [Advice.FINISH]
    return [Advice.COOL_DOWN] if _may_gain_by_cooling(numbers) else []


def _if_inconclusive(verdict: Verdict, numbers: Numbers) -> list[Advice]:
    if verdict.reason is Reason.TOO_FEW:
        return [Advice.MEASURE_MORE]
    swings = verdict.reason in (Reason.UNSTABLE, Reason.PROBE_NOT_FALLING)
    if swings and _may_gain_by_cooling(numbers):
        return [Advice.LOWER_OR_COOL_DOWN]
    return [Advice.GIVE_CHANCE] if verdict.reason is Reason.NO_REFERENCE else []


def _gains_by_cooling(numbers: Numbers) -> bool:
    """Return whether the learning rate is high, and CooldownPreview says that a cooldown would lower the loss."""
    lower = numbers.get("if_cooled", math.inf) < (1 - RISE) * numbers.get("val_loss", 0.0)
    return lower and lr_is_high(numbers)


def _may_gain_by_cooling(numbers: Numbers) -> bool:
    """Return whether the learning rate is high, and a cooldown may lower the loss, as far as is known."""
    return lr_is_high(numbers) and ("if_cooled" not in numbers or _gains_by_cooling(numbers))


_ADVICE: dict[Label, Callable[[Verdict, Numbers], list[Advice]]] = {
    Label.DIVERGED: _if_diverged,
    Label.OVERFITTING: _if_overfitting,
    Label.UNDERFITTING: _if_underfitting,
    Label.COLLAPSED: lambda verdict, numbers: [Advice.LOWER_LR_AND_WARM_UP, Advice.INSPECT_NETWORK],
    Label.HEALTHY: _if_healthy,
    Label.INCONCLUSIVE: _if_inconclusive,
}
