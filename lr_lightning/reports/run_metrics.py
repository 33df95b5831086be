"""What one run comes down to: its group, its seed, its results, and why it does or does not count."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.cost import Reach, Target, time_to
from lr_lightning.reports.curves import setback
from lr_lightning.tracking.query import MetricCurve, Run

# --- Which of a run's metrics is which, also where another program named them.

LR, TRAIN_LOSS, VAL_LOSS, VAL_ACC = "lr/group0", "train/loss", "val/loss", "val/acc"
PROBE_LOSS, GAP, EPOCH_MEAN, EPOCH = "probe/loss", "overfit/gap_loss", "train/loss_epoch", "epoch"
BATCH_SIZE, COST_SECONDS = "batch/size", "cost/seconds"

WORLD_SIZE = "env.world_size"
"""The tag of a run that says how many processes trained it."""

READ = (LR, TRAIN_LOSS, VAL_LOSS, VAL_ACC, PROBE_LOSS, GAP, EPOCH_MEAN, EPOCH, BATCH_SIZE, COST_SECONDS)
"""The metrics that a report draws or measures, by this project's """

_WORDS = {
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "accuracy": "acc",
    "acc1": "acc",
    "top1": "acc",
    "training": "train",
}
_LONG = re.compile(r"-?\d*\.\d{12,}(e[+-]?\d+)?")  # no version, no date, no id
_SPLIT = re.compile(r"[/_.\- ]+")


def canonical(name: str) -> str:
    """This project's name for a metric of another program, or the name in one spelling.

    Example:
        >>> canonical("valid_accuracy"), canonical("val_loss"), canonical("lr-SGD"), canonical("train_loss_step")
        ('val/acc', 'val/loss', 'lr/group0', 'train/loss')
    """
    words = [_WORDS.get(word, word) for word in _SPLIT.split(name.lower()) if word]
    if words[:1] == ["lr"] or words[:2] == ["learning", "rate"]:
        return LR
    if words == ["loss"] or (words[:2] == ["train", "loss"] and words[2:] in ([], ["step"])):
        return TRAIN_LOSS
    if words[-1:] == ["epoch"] and words[:1] == ["val"]:
        words = words[:-1]
    return "/".join([words[0], "_".join(words[1:])]) if len(words) > 1 else "".join(words)


def rounded(value: str) -> str:
    """The value of a tag or param as it is shown: a number that arithmetic gave many digits, with those that count.

    Example:
        >>> rounded("0.010000000000000002"), rounded("3.0000000000000004e-05"), rounded("1.10"), rounded("cosine")
        ('0.01', '3e-05', '1.10', 'cosine')
    """
    return f"{float(value):.10g}" if _LONG.fullmatch(value) else value


def find(key: str, available: Iterable[str]) -> str | None:
    """The metric of a run that is meant by ``key``: that very name, or the first that reads as it.

    Args:
        key: This project's name, or any other.
        available: What the run has.
    """
    names = sorted(available)
    if key in names:
        return key
    if key == LR:
        own = [name for name in names if name.startswith("lr/")]
        if own:
            return own[0]
    return next((name for name in names if canonical(name) == key), None)


_LOWER = frozenset(
    (
        *("loss", "losses", "nll", "ce", "bce", "xent", "crossentropy", "entropy", "hinge", "perplexity", "ppl", "bpc"),
        *("err", "errors", "error", "mse", "rmse", "mae", "mape", "msle", "deviance", "gap", "ece"),
        *("brier", "kl", "fid", "wer", "cer", "ter", "mer", "eer", "fpr", "fnr"),
    )
)
_HIGHER = frozenset(
    (
        *("acc", "accuracy", "top", "precision", "recall", "sensitivity", "specificity", "f1", "fbeta", "auc", "auroc"),
        *("auprc", "roc", "ap", "map", "iou", "miou", "dice", "jaccard", "kappa", "mcc", "r2", "ndcg", "mrr", "bleu"),
        *("rouge", "meteor", "psnr", "ssim", "tpr", "tnr"),
    )
)
# of "MulticlassF1Score", "val/top5", "AUROC" and "val_cross_entropy"
_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")


def is_higher_better(metric: str) -> bool | None:
    """Whether more of a metric is better, as far as the words of its name tell.

    Args:
        metric: Its name. Whole words count: ``val/recent_acc`` has no ``ce`` in it.

    Returns:
        None where no word tells, or where two say the opposite. A gap is bad, whatever it is a gap of.

    Example:
        >>> [is_higher_better(name) for name in ("val/acc", "val/wer", "MulticlassF1Score", "val/score")]
        [True, False, True, None]
    """
    words = {word.lower() for word in _WORD.findall(metric)}
    words |= {word.rstrip("0123456789") for word in words}
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    if lower == higher:
        return False if "gap" in words else None
    return higher


# --- What a step is in epochs, examples, seconds and shares of the budget of its run.

AXES = {
    "step": "step",
    "epochs": "epochs",
    "examples": "examples seen",
    "seconds": "seconds since the first step",
    "fraction": "share of the budget",
}
"""Name of an axis to its title."""

Floats = NDArray[np.float64]


class RunAxes:
    """Converts the steps of one run.

    Args:
        run: The run, with its curves.
        curves: Its curves by this project's
        finished: Whether it has come to its end, so that what it did is its whole budget.
    """

    def __init__(self, run: Run, curves: dict[str, MetricCurve], finished: bool) -> None:
        dense = [curves[key] for key in (TRAIN_LOSS, LR) if key in curves]
        everything = dense or [*curves.values()]
        self.last = max((int(c.step[-1]) for c in everything if c.step.size), default=-1)
        self._epochs = _epoch_knots(curves, self.last)
        self._examples = _examples_knots(run, curves, self.last)
        self._seconds = _seconds_knots(curves, everything)
        self._budget = self.last if finished else max(self.last, _planned(run, self._epochs) - 1)

    def at(self, axis: str, step: NDArray[np.int64]) -> Floats | None:
        """Positions on ``axis`` of steps, at the end of each but for seconds; None where it is not known."""
        if axis == "step":
            return step.astype(np.float64)
        if axis == "fraction":
            return np.asarray((step + 1.0) / (self._budget + 1.0), np.float64) if self._budget >= 0 else None
        if axis == "seconds":
            return None if self._seconds is None else np.interp(step, *self._seconds)
        knots = self._epochs if axis == "epochs" else self._examples
        return None if knots is None else _extended(np.asarray(step + 1.0, np.float64), *knots)


def _extended(x: Floats, xs: Floats, ys: Floats) -> Floats:
    """Interpolate; go on in the direction of the last piece, so that what follows an epoch's end has a place."""
    inside = np.interp(x, xs, ys)
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return np.where(x > xs[-1], ys[-1] + (x - xs[-1]) * slope, inside)


def _epoch_knots(curves: dict[str, MetricCurve], last: int) -> tuple[Floats, Floats] | None:
    """Steps done, and epochs done by then: where an epoch's mean was logged, or where Lightning's `epoch` changed."""
    mean = curves.get(EPOCH_MEAN)
    if mean is not None and mean.step.size:
        ends, counts = mean.step + 1.0, np.arange(1.0, mean.step.size + 1)
    else:
        epoch = curves.get(EPOCH)
        if epoch is None or not epoch.step.size:
            return None
        inside = epoch.step <= last
        step, value = epoch.step[inside], epoch.value[inside]
        change = np.append(value[1:] != value[:-1], True) if step.size else np.zeros(0, bool)
        ends, counts = step[change] + 1.0, value[change] + 1.0
    if not ends.size:
        return None
    return np.insert(ends, 0, 0.0), np.insert(counts, 0, 0.0)


def _examples_knots(run: Run, curves: dict[str, MetricCurve], last: int) -> tuple[Floats, Floats] | None:
    """Steps done, and examples seen by then."""
    size = curves.get(BATCH_SIZE)
    if size is not None and size.step.size:  # logged at the end of an epoch, for that epoch
        ends = np.insert(size.step + 1.0, 0, 0.0)
        return (ends, np.insert(np.cumsum(np.diff(ends) * size.value), 0, 0.0)) if ends[1] > 0 else None
    batch = _number(run.params.get("data.batch_size")) or _number(run.params.get("batch_size"))
    if batch is None or last < 0:
        return None
    world = _world_size(run)
    if world is None:
        return None
    batch *= world * (_number(run.params.get("trainer.accumulate_grad_batches")) or 1.0)
    return np.array([0.0, last + 1.0]), np.array([0.0, batch * (last + 1.0)])


def _world_size(run: Run) -> float | None:
    """Processes that trained a run, each on batches of its own: as it recorded, else as its params tell.

    Returns:
        None where it had devices by choice of the machine (``auto``, -1) and did not record how many.
    """
    recorded = _number(run.tags.get(WORLD_SIZE))
    if recorded is not None and recorded >= 1:
        return recorded
    given = run.params.get("trainer.devices")
    if given is None:
        return 1.0  # another program's run: nothing speaks of several
    listed = given.strip("[]() ")
    devices = float(len(listed.split(","))) if "," in listed or listed != given else _number(given)
    nodes = _number(run.params.get("trainer.num_nodes")) or 1.0
    return devices * nodes if devices is not None and devices >= 1 else None


def _seconds_knots(curves: dict[str, MetricCurve], everything: list[MetricCurve]) -> tuple[Floats, Floats] | None:
    """Steps, and seconds by then: as the run measured them, which leaves out the time between a stop and a resume."""
    measured = curves.get(COST_SECONDS)
    if measured is not None and measured.step.size > 1:
        start = 0.0 if measured.step[0] > 0 else float(measured.value[0])
        return np.insert(measured.step.astype(np.float64), 0, 0.0), np.insert(measured.value, 0, start)
    longest = max(everything, key=lambda c: c.step.size, default=None)
    if longest is None or longest.step.size < 2:
        return None
    start_time = min(int(c.time.min()) for c in everything if c.time.size)
    seconds = np.maximum.accumulate((longest.time - start_time) / 1000.0)
    return longest.step.astype(np.float64), seconds


def _planned(run: Run, epochs: tuple[Floats, Floats] | None) -> int:
    """Steps the run was to make, as far as its params tell; 0 where they do not."""
    steps = _number(run.params.get("trainer.max_steps"))
    planned = math.inf if steps is None or steps <= 0 else steps
    most = _number(run.params.get("trainer.max_epochs"))
    if epochs is not None and most is not None and most > 0:
        planned = min(planned, most * epochs[0][-1] / epochs[1][-1])
    return int(planned) if math.isfinite(planned) else 0


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


NAN = math.nan
_MOST_KEYS = 40


@dataclass(eq=False)
class Measured:
    """One run, measured.

    Attributes:
        run: The run.
        group: Name of its group.
        seed: Its seed, or nothing.
        state: finished, diverged, pruned (ended by a search), failed, killed or running.
        curves: By this project's
        axes: Converts its steps.
        best: Best value of the objective.
        last: Its last value.
        test: The test metric that belongs to it.
        gap: Validation minus probe loss, at the end.
        setback: Largest loss of the objective against the best so far.
        steps: Optimizer steps made.
        seconds: Of the whole fit.
        examples: Training examples seen.
        peak: The peak rate that was configured.
        steps_to: When it reached the target, in steps.
        seconds_to: The same in seconds.
        notes: What a reader should know about it.
        data_set: Which one it is of, where the runs are of several.
    """

    run: Run
    group: str
    seed: str
    state: str
    curves: dict[str, MetricCurve]
    axes: RunAxes
    best: float = NAN
    last: float = NAN
    test: float = NAN
    gap: float = NAN
    setback: float = NAN
    steps: float = NAN
    seconds: float = NAN
    examples: float = NAN
    peak: float = NAN
    steps_to: Reach | None = None
    seconds_to: Reach | None = None
    notes: list[str] = field(default_factory=list)
    data_set: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is in its group's means: it came to its end and has the objective."""
        return self.state == "finished" and not math.isnan(self.best)

    @property
    def verdict(self) -> str:
        """Over- or underfitting, as the run's own diagnosis says."""
        return self.run.tags.get("verdict", "")

    @property
    def spikes(self) -> float:
        """Jumps of its training loss, where the run counted them."""
        return self.run.last.get("summary/spikes", NAN)


def measure(
    run: Run, by: Sequence[str], objective: str | None, target: Target | None, *, higher_is_better: bool = True
) -> Measured:
    """Measure a run whose curves were read.

    Args:
        run: The run.
        by: Tags, or params, whose values name its group.
        objective: The validation metric that decides, by this project's name; None where no run has one.
        target: What the time is taken to.
        higher_is_better: Which direction of the objective is better.
    """
    curves: dict[str, MetricCurve] = {}
    for key in run.curves:
        name = canonical(key) if key not in READ else key
        if run.curves[key].step.size or name not in curves:
            curves.setdefault(name, run.curves[key])
            if key == objective or (target and key == target.metric):
                curves[key] = run.curves[key]
    state = _state(run)
    m = Measured(run, group_of(run, by), seed_of(run), state, curves, RunAxes(run, curves, state == "finished"))
    m.notes += _notes(m)
    _measure_objective(m, objective, higher_is_better)
    _measure_cost(m)
    if target is not None:
        _measure_target(m, target)
    return m


def _state(run: Run) -> str:
    if run.tags.get("diverged", "").lower() == "true":
        return "diverged"
    if run.tags.get("pruned"):
        return "pruned"
    return {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}.get(run.status, "running")


def group_of(run: Run, by: Sequence[str]) -> str:
    """The name of a run's group, such as ``cosine, lr=0.1``; what it lacks is said in brackets."""
    if not by:
        return ""
    first, *rest = by
    more = [f"{key.rsplit('.', 1)[-1]}={rounded(value_of(run, key)) or '–'}" for key in rest]
    return ", ".join([rounded(value_of(run, first)) or f"(no {first})", *more])


def of_data_set(group: str, data_set: str) -> str:
    """The name of a group's runs of one of several data sets, such as ``cosine, digits``."""
    return ", ".join(part for part in (group, data_set) if part)


def value_of(run: Run, key: str) -> str:
    """A tag, else a param of that name, else a group's choice (`schedule` is the param `schedule.name`)."""
    for found in (run.tags.get(key), run.params.get(key), run.params.get(f"{key}.name")):
        if found:
            return found
    return ""


def unknown_key(runs: Sequence[Run], key: str) -> str:
    """That no run has a tag or param, which one may be meant, and which there are."""
    tags = {name for run in runs for name in run.tags if not name.startswith("mlflow.")}
    params = {name for run in runs for name in run.params}
    choices = {name.removesuffix(".name") for name in params}
    close = difflib.get_close_matches(key, sorted(tags | params | choices), n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"no run has a tag or param {key!r}.{meant} Tags: {_listed(tags)}. Params: {_listed(params)}."


def _listed(keys: set[str]) -> str:
    more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
    return (", ".join(sorted(keys)[:_MOST_KEYS]) or "none") + more


def seed_of(run: Run) -> str:
    """The seed as text, or nothing."""
    return value_of(run, "seed")


def _notes(m: Measured) -> list[str]:
    notes = []
    if m.state == "diverged" and "diverged_step" in m.run.tags:
        notes.append(f"diverged at step {m.run.tags['diverged_step']}")
    if m.state == "pruned":
        notes.append(f"pruned: {m.run.tags['pruned']}")
    bad = {name: curve.nonfinite for name, curve in m.curves.items() if curve.nonfinite}
    if bad:
        notes.append("nan or infinite: " + ", ".join(f"{name} ({count})" for name, count in sorted(bad.items())))
    foreign = [key for key in m.run.curves if key not in READ and canonical(key) in READ]
    if foreign:
        notes.append("read by other names: " + ", ".join(sorted(foreign)))
    return notes


def _measure_objective(m: Measured, objective: str | None, higher: bool) -> None:
    if objective is None:
        return
    curve = m.curves.get(objective)
    if curve is None or not curve.step.size:
        m.notes.append(f"has no {objective}")
        return
    m.best = float(curve.value.max() if higher else curve.value.min())
    m.last = float(curve.value[-1])
    m.setback = setback(curve.value, higher_is_better=higher)
    test = find(objective.replace("val", "test", 1), m.run.last)
    if test is not None:
        m.test = m.run.last[test]


def _measure_cost(m: Measured) -> None:
    last = m.run.last
    gap = m.curves.get(GAP)
    m.gap = float(gap.value[-1]) if gap is not None and gap.step.size else last.get("summary/gap_loss", NAN)
    m.steps = last.get("summary/steps", float(m.axes.last + 1) if m.axes.last >= 0 else NAN)
    end = np.array([m.axes.last])
    seconds, examples = m.axes.at("seconds", end), m.axes.at("examples", end)
    m.seconds = last.get("summary/seconds", float(seconds[0]) if seconds is not None else NAN)
    m.examples = float(examples[0]) if examples is not None and m.axes.last >= 0 else NAN
    try:
        m.peak = float(rounded(m.run.params.get("optimizer.lr") or m.run.params.get("lr") or "nan"))
    except ValueError:
        m.peak = NAN


def _measure_target(m: Measured, target: Target) -> None:
    curve = m.curves.get(target.metric)
    if curve is None or not curve.step.size:
        return
    hopeless = m.state == "diverged"  # one that failed or was killed might have reached it: it is censored
    m.steps_to = time_to(target, curve.step + 1, curve.value, hopeless=hopeless)  # the first step is number 0
    seconds = m.axes.at("seconds", curve.step)
    if seconds is not None:
        m.seconds_to = time_to(target, seconds, curve.value, hopeless=hopeless)
