"""Over- or underfitting, or neither: a pure function of what a run measured at its validations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from lr_lightning.diagnosis.advice import advise, can_train_longer, sufficient_epochs
from lr_lightning.diagnosis.curves import (
    AT_CHANCE,
    RISE,
    Curves,
    finite,
    hardly_moved,
    jitter,
    reached,
    reference_loss,
    unstable,
)
from lr_lightning.diagnosis.history import History, Point

__all__ = ["LABELS", "Verdict", "diagnose", "in_words"]

# --- The numbers behind a verdict, in words.

Numbers = Mapping[str, float]


def in_words(numbers: Numbers) -> list[str]:
    """What was measured, a line for each quantity; "±" is one standard error.

    Args:
        numbers: A verdict's evidence, by name.
    """
    lines = [_validation(numbers), _probe(numbers), _gap(numbers), _chance(numbers)]
    lines += [_rate(numbers), _length(numbers)]
    return [line for line in lines if line]


def _validation(n: Numbers) -> str:
    said = [f"{n['val_loss']:.3g} at the end"] if "val_loss" in n else []
    if "best_val_loss" in n:
        at = f" (epoch {n['best_epoch']:.3g})" if "best_epoch" in n else ""
        said.append(f"{n['best_val_loss']:.3g} at its best{at}")
    if n.get("rise", 0.0) > 0:
        since = f"since epoch {n['rise_since_epoch']:.3g}" if "rise_since_epoch" in n else "since then"
        said.append(f"up by {_measured(n, 'rise')} {since}")
    if "val_fall" in n:
        said.append(f"{_moved(n, 'val_fall')} in the last quarter")
    return f"validation loss: {'; '.join(said)}" if said else ""


def _probe(n: Numbers) -> str:
    said = [f"{n['probe_loss']:.3g} at the end"] if "probe_loss" in n else []
    if "lowest_probe_loss" in n:
        said.append(f"{n['lowest_probe_loss']:.3g} at its lowest")
    if "probe_loss_at_best" in n:
        said.append(f"{n['probe_loss_at_best']:.3g} where the validation was best")
        said.append(f"{_moved(n, 'probe_fall')} since then")
    elif "probe_fall_since_epoch" in n:
        said.append(f"{_moved(n, 'probe_fall')} since epoch {n['probe_fall_since_epoch']:.3g}")
    return f"probe loss, of training images: {'; '.join(said)}" if said else ""


def _gap(n: Numbers) -> str:
    return f"gap, validation − probe loss: {n['gap']:.3g}" if "gap" in n else ""


def _chance(n: Numbers) -> str:
    return f"chance, the loss of a model that knows nothing: {n['chance_loss']:.3g}" if "chance_loss" in n else ""


def _rate(n: Numbers) -> str:
    return f"learning rate: {n['lr']:.3g} at the end; {n['peak_lr']:.3g} at its peak" if "lr" in n else ""


def _length(n: Numbers) -> str:
    if "epochs" not in n:
        return ""
    done = f", {n['planned']:.0%} of the run" if n.get("planned", 1.0) < 1 else ""
    return f"measured: {n['validations']:.0f} validations in {n['epochs']:.3g} epochs{done}"


def _moved(n: Numbers, fall: str) -> str:
    """The fall ``fall`` as a movement: down, or up."""
    return f"{'down' if n[fall] >= 0 else 'up'} by {_measured(n, fall)}"


def _measured(n: Numbers, key: str) -> str:
    return f"{abs(n[key]):.2g} ± {n[f'{key}_noise']:.2g}"


LABELS = ("diverged", "overfitting", "underfitting", "collapsed", "healthy", "inconclusive")

_FEWEST = 4  # validations; with fewer only a divergence can be told
_DIVERGED = 1.5  # times the larger of start and chance
_STILL = 0.1  # of all that was learnt: falling by less in the last quarter counts as having stopped
_BY_HEART = 0.02  # of chance: a probe loss below it is that of examples learnt by heart
_WIDE = 0.1  # of chance: a gap above it is wide


@dataclass(frozen=True)
class Verdict:
    """What a run's curves say.

    Attributes:
        label: One of :data:`LABELS`.
        detail: ``"under-trained"``, ``"limited"``, or empty where the noise hides which (underfitting);
            ``"memorised"``, ``"gap"`` or ``"receding"``, where the validation loss is falling again (overfitting);
            what diverged, or why nothing can be said; else empty.
        onset_epoch: Overfitting: the last epoch at which the validation loss was at its best but for its jitter, after
            which it rose, or, of a gap, the first; diverged: the first bad one. None otherwise.
        evidence: The numbers that decided, by name.
        advice: At most three lines.
    """

    label: str
    detail: str = ""
    onset_epoch: float | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)
    advice: tuple[str, ...] = ()

    @property
    def sufficient_epochs(self) -> float | None:
        """At which epoch a schedule had better end, where the advice is to shorten the run."""
        return sufficient_epochs(self.label, self.detail, self._numbers)

    @property
    def can_train_longer(self) -> bool:
        """Whether the advice leaves room for more epochs with the same settings."""
        return can_train_longer(self.label, self.detail, self._numbers)

    @property
    def _numbers(self) -> Mapping[str, float]:
        onset = {} if self.onset_epoch is None else {"onset_epoch": self.onset_epoch}
        return {**self.evidence, **onset}

    def text(self) -> str:
        """The verdict in a few lines of Markdown: label, numbers ("±" is one standard error) and advice."""
        head = f"verdict: {self.label}" + (f" ({self.detail})" if self.detail else "")
        if self.onset_epoch is not None:
            head += f", from epoch {self.onset_epoch:g}"
        lines = [head, "", *(f"- {line}" for line in in_words(self.evidence))]
        if self.advice:
            lines += ["", "What to try:", "", *(f"- {line}" for line in self.advice)]
        return "\n".join(lines)


def diagnose(history: History) -> Verdict:
    """The verdict on a run.

    Decided in this order. "Beyond its noise" is a one-sided bound of 95 % (see :class:`Difference`); levels are means
    of up to five validations, at equal phase of the schedule (see :func:`low_ends`); chance is the loss of a model that
    knows nothing but the classes' shares, or else the loss at the start.

    1. ``diverged``: a loss is not finite at the end; or both are above 1.5 times the larger of start and chance, at the
       last validations, or at any of the second half of a run that has never learnt.
    2. ``overfitting``: the validation loss is above its best, by 5 % of it and beyond its noise, and since the best the
       probe loss fell beyond its noise. ``memorised``: the validation is no better than chance, and the probe is.
       ``gap``: the probe is learnt by heart (2 % of chance), the validation loss is far above it (10 % of chance), and
       half the run or more brought the validation nothing.
    3. ``underfitting``: the probe loss is high, above 15 % of chance. ``under-trained`` if in the last quarter of the
       learning it fell beyond its noise, by 10 % or more of all it fell; near chance if it falls at all, or if single
       examples hardly change their losses. The learning is the sum of all steps' rates, so a rate that has gone to 0
       does not look like a loss that has stopped. ``limited`` if it has stopped, below chance; neither
       if it may have fallen by as much, within its noise.
    4. ``collapsed``: neither loss ever left chance, and they do not move.
    5. ``healthy``: the probe loss is low and the validation loss has not risen.
    6. ``inconclusive`` otherwise.

    Args:
        history: What was measured.

    Returns:
        The same verdict for the same history, always.
    """
    found = _diverged(history)
    if found is None and len(history.points) < _FEWEST:
        count = len(history.points)
        found = Verdict("inconclusive", f"{count} validations are too few, {_FEWEST} are needed")
    if found is None:
        curves = Curves.of(history)
        rules: tuple[Callable[[Curves], Verdict | None], ...] = (_overfitting, _underfitting, _collapsed, _healthy)
        found = next((v for rule in rules if (v := rule(curves)) is not None), _inconclusive(curves))
    evidence = {**_where(history), **found.evidence}
    found = replace(found, evidence=MappingProxyType(evidence))
    return replace(found, advice=advise(found.label, found.detail, found._numbers))


# -- diverged --------------------------------------------------------------------------------------------------------


def _diverged(history: History) -> Verdict | None:
    points = history.points
    bad = [p for p in points if not finite(p)]
    if history.diverged is not None:
        return Verdict("diverged", history.diverged, bad[0].epoch if bad else points[-1].epoch if points else 0.0)
    if not points:
        return None
    last = points[-1]
    if not finite(last):
        return Verdict("diverged", "a loss is not finite", bad[0].epoch, _levels(last))
    known = [v for v in (history.chance, history.start) if v is not None and math.isfinite(v)]
    # A first validation comes after an epoch, which is enough to diverge in: it is a start only where nothing else is.
    limit = _DIVERGED * max(known) if known else 3 * _DIVERGED * min(points[0].val_loss, points[0].probe_loss)
    above = [p.probe_loss > limit and p.val_loss > limit for p in points]
    late = above[-max(1, min(3, len(above) // 2)) :]
    learnt = min(p.probe_loss for p in points if finite(p)) < AT_CHANCE * limit / _DIVERGED
    # What has never learnt, and jumps far above chance in its second half, is not at rest at chance.
    jumps = not learnt and any(above[len(above) // 2 :])
    if limit > 0 and (all(late) or jumps) and _not_recovering(points):
        first = len(above) - next((i for i, a in enumerate(reversed(above)) if not a), len(above))
        first = first if all(late) else above.index(True)
        return Verdict("diverged", "far above chance", points[first].epoch, _levels(last))
    return None


def _not_recovering(points: tuple[Point, ...]) -> bool:
    """Whether the probe loss has not been falling all the way: a bad start that is being left is no divergence."""
    losses = [p.probe_loss for p in points]
    return len(losses) < _FEWEST or not all(b < a for a, b in pairwise(losses))


def _levels(point: Point) -> dict[str, float]:
    return {"val_loss": point.val_loss, "probe_loss": point.probe_loss}


# -- the other rules -------------------------------------------------------------------------------------------------


def _overfitting(c: Curves) -> Verdict | None:
    rise = c.rise
    fell = c.probe.difference(c.best, c.end)
    numbers = {
        "val_loss": c.val_end,
        "best_val_loss": float(c.val.smooth[c.best]),
        "best_epoch": c.points[c.best].epoch,
        "rise": rise.value,
        "rise_noise": rise.noise,
        "rise_since_epoch": c.points[rise.since].epoch,
        "probe_loss": c.probe_end,
        "probe_loss_at_best": float(c.probe.smooth[c.best]),
        "probe_fall": fell.value,
        "probe_fall_noise": fell.noise,
    }
    chance = c.reference
    learnt = chance is not None and c.probe_end < 0.8 * chance and c.probe.difference(0, c.end).above()
    useless = chance is not None and c.val_end > AT_CHANCE * chance
    if rise.risen and fell.above():
        return Verdict("overfitting", _detail(c, learnt and useless), _onset(c), numbers)
    if learnt and useless:
        return Verdict("overfitting", "memorised", _onset(c), numbers)
    numbers["gap"] = c.val_end - c.probe_end
    if (
        chance is not None
        and c.probe_end < _BY_HEART * chance
        and numbers["gap"] > _WIDE * chance
        and _only_by_heart(c)
    ):
        return Verdict("overfitting", "gap", c.points[reached(c)].epoch, numbers)
    return None


def _only_by_heart(c: Curves) -> bool:
    """Whether half the run and more brought the validation nothing."""
    falls = c.val.difference(c.at(0.75), c.end).above(RISE * c.val_end)
    return not falls and c.points[reached(c)].epoch <= c.points[c.end].epoch / 2


def _detail(c: Curves, memorised: bool) -> str:
    worst = c.best + int(np.argmax(c.val.smooth[c.best :]))
    receded = c.val.difference(worst, c.end)
    if receded.above(0.2 * float(c.val.smooth[worst] - c.val.smooth[c.best]) + c.val.search_bias(worst)):
        return "receding"
    return "memorised" if memorised else ""


def _onset(c: Curves) -> float:
    """The last epoch at which the validation loss was still at its best, but for the jitter of the curve."""
    levels = c.val.smooth
    best = float(levels[c.best])
    slack = min(0.05 * float(levels[c.best :].max() - best), 2 * math.sqrt(2) * c.val.level_noise(c.best))
    within = np.flatnonzero(levels[c.best :] <= best + slack)
    return c.points[c.best + int(within[-1])].epoch


def _underfitting(c: Curves) -> Verdict | None:
    if not c.high:
        return None
    near = c.reference is not None and c.probe_end > AT_CHANCE * c.reference
    since = c.at(0.5 if near else 0.75)
    fell, share, share_noise = c.fall(since)
    numbers = {
        "probe_loss": c.probe_end,
        "val_loss": c.val_end,
        "probe_fall": fell.value,
        "probe_fall_noise": fell.noise,
        "probe_fall_since_epoch": c.points[since].epoch,
        "probe_fall_share": share,
        "probe_jitter": jitter(c.probe.values),
    }
    if near:
        if fell.above(strictness=1.5) or hardly_moved(c, since):
            return Verdict("underfitting", "under-trained", None, numbers)
        return None
    if fell.above() and share >= _STILL:
        return Verdict("underfitting", "under-trained", None, numbers)
    if unstable(c) or c.reference is None:
        return None  # it had been lower: neither too short nor too small; or nothing says what is high
    # What is not shown to fall is not shown to have stopped either: the noise of few validations is wide.
    stopped = share + share_noise < _STILL
    return Verdict("underfitting", "limited" if stopped else "", None, numbers)


def _collapsed(c: Curves) -> Verdict | None:
    if c.reference is None:
        return None
    lowest = min(float(c.probe.smooth.min()), float(c.val.smooth.min()))
    if lowest <= AT_CHANCE * c.reference:
        return None
    numbers = {"probe_loss": c.probe_end, "val_loss": c.val_end, "lowest_loss": lowest}
    return Verdict("collapsed", "", None, numbers)


def _healthy(c: Curves) -> Verdict | None:
    rise = c.rise
    if rise.risen or c.high:
        return None
    fell = c.val.difference(c.at(0.75), c.end)
    numbers = {
        "val_loss": c.val_end,
        "best_val_loss": float(c.val.smooth[c.best]),
        "rise": rise.value,
        "rise_noise": rise.noise,
        "probe_loss": c.probe_end,
        "val_fall": fell.value,
        "val_fall_noise": fell.noise,
    }
    return Verdict("healthy", "", None, numbers)


def _inconclusive(c: Curves) -> Verdict:
    rise = c.rise
    numbers = {"val_loss": c.val_end, "probe_loss": c.probe_end, "rise": rise.value, "rise_noise": rise.noise}
    if unstable(c):
        numbers |= {"lowest_probe_loss": float(c.probe.smooth.min())}
        return Verdict("inconclusive", "the probe loss rose above its own best: unstable", None, numbers)
    if rise.risen:
        return Verdict("inconclusive", "the validation loss rose, but the probe did not go on falling", None, numbers)
    if c.reference is not None:
        return Verdict("inconclusive", "near chance, neither falling nor at rest", None, numbers)
    return Verdict("inconclusive", "neither chance nor the loss at the start is known", None, numbers)


def _where(history: History) -> dict[str, float]:
    """What advice needs besides the numbers that decided."""
    if not history.points:
        return {}
    last = history.points[-1]
    rates = [p.lr for p in history.points if p.lr is not None and math.isfinite(p.lr)]
    where: dict[str, float] = {"epochs": last.epoch, "validations": float(len(history.points))}
    if rates:
        where |= {"lr": rates[-1], "peak_lr": max(rates)}
    reference = reference_loss(history)
    if reference is not None:
        where["chance_loss"] = reference
        where["learnt_before"] = float(any(p.probe_loss < AT_CHANCE * reference for p in history.points))
    if history.total_steps:
        where["planned"] = last.step / history.total_steps
    if history.overconfident:
        where["overconfident"] = 1.0
    return where
