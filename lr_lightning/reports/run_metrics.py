"""One run, measured: which of its metrics is which, its steps on other x axes, and its results."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_lightning.diagnosis.cost import Reach, Target, time_to
from lr_lightning.tracking.keys import name_values, short_number
from lr_lightning.tracking.query import MetricCurve, Run

LR, TRAIN_LOSS, VAL_LOSS, VAL_ACC = "lr/group0", "train/loss", "val/loss", "val/acc"
PROBE_LOSS, GAP_LOSS, TRAIN_LOSS_EPOCH, EPOCH = "probe/loss", "overfit/gap_loss", "train/loss_epoch", "epoch"
BATCH_SIZE, COST_SECONDS = "batch/size", "cost/seconds"  # by this project's names, as all of these
Floats = NDArray[np.float64]
_LOSSES = (TRAIN_LOSS, VAL_LOSS, PROBE_LOSS, TRAIN_LOSS_EPOCH)
VAL_LOSS_IF_COOLED = "val/loss_if_cooled"
REPORT_METRICS = (
    LR,
    *_LOSSES,
    VAL_LOSS_IF_COOLED,
    VAL_ACC,
    GAP_LOSS,
    EPOCH,
    BATCH_SIZE,
    COST_SECONDS,
)  # by this project's names
WORLD_SIZE_TAG = "env.world_size"  # holds the number of training processes

_SYNONYMS = {
    **dict.fromkeys(("valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("accuracy", "acc1", "top1"), "acc"),
    "training": "train",
}
_SEPARATORS = re.compile(r"[/_.\- ]+")
_LOWER_IS_BETTER = {
    *("loss", "losses", "nll", "ce", "bce", "xent", "crossentropy", "entropy", "hinge", "perplexity", "ppl", "bpc"),
    *("err", "errors", "error", "mse", "rmse", "mae", "mape", "msle", "deviance", "gap", "ece"),
    *("brier", "kl", "fid", "wer", "cer", "ter", "mer", "eer", "fpr", "fnr"),
}
_HIGHER_IS_BETTER = {
    *("acc", "accuracy", "top", "precision", "recall", "sensitivity", "specificity", "f1", "fbeta", "auc", "auroc"),
    *("auprc", "roc", "ap", "map", "iou", "miou", "dice", "jaccard", "kappa", "mcc", "r2", "ndcg", "mrr", "bleu"),
    *("rouge", "meteor", "psnr", "ssim", "tpr", "tnr"),
}
# The words of "MulticlassF1Score", "val/top5", "AUROC" and "val_cross_entropy".
_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")
_KEYS_LISTED = 40


@lru_cache(10_000)
def canonical_metric(name: str) -> str:
    """Return this project's name for another program's metric, or the name in a uniform spelling.

    Example:
        >>> [canonical_metric(name) for name in ("valid_accuracy", "val_loss", "lr-SGD", "train_loss_step")]
        ['val/acc', 'val/loss', 'lr/group0', 'train/loss']
    """
    words = [_SYNONYMS.get(word, word) for word in _SEPARATORS.split(name.lower()) if word]
    if words[:1] == ["lr"] or words[:2] == ["learning", "rate"]:
        return LR
    if words == ["loss"] or (words[:2] == ["train", "loss"] and words[2:] in ([], ["step"])):
        return TRAIN_LOSS
    if words[-1:] == ["epoch"] and words[:1] == ["val"]:
        words = words[:-1]
    return "/".join([words[0], "_".join(words[1:])]) if len(words) > 1 else "".join(words)


def find_metric(key: str, available: Iterable[str]) -> str | None:
    """Return the available metric that ``key``, of any program, means: the same name, else one of the same meaning."""
    names = sorted(available)
    if key in names:
        return key
    if key == LR and (lrs := [name for name in names if name.startswith("lr/")]):
        return lrs[0]
    return next((name for name in names if canonical_metric(name) == key), None)


def is_higher_better(metric: str) -> bool | None:
    """Judge from the words of a metric's name whether a higher value is better.

    Whole words count: ``val/recent_acc`` does not contain ``ce``. The answer is None if no word tells, or if two words
    contradict each other. A gap of any metric is better low.

    Example:
        >>> [is_higher_better(name) for name in ("val/acc", "val/wer", "MulticlassF1Score", "val/score")]
        [True, False, True, None]
    """
    words = {word.lower() for word in _WORD.findall(metric)}
    words |= {word.rstrip("0123456789") for word in words}
    lower, higher = bool(words & _LOWER_IS_BETTER), bool(words & _HIGHER_IS_BETTER)
    if lower == higher:
        return False if "gap" in words else None
    return higher


def tag_or_param(run: Run, key: str) -> str:
    """Return a run's tag, else its param of that name, else the choice of that group (``schedule.name``), else ""."""
    return run.tags.get(key) or run.params.get(key) or run.params.get(f"{key}.name") or ""


def unknown_key_message(runs: Sequence[Run], key: str) -> str:
    """Explain that no run has the tag or param ``key``, suggest a similar one and list what there is."""
    tags = {name for run in runs for name in run.tags if not name.startswith("mlflow.")}
    params = {name for run in runs for name in run.params}
    choices = {name.removesuffix(".name") for name in params}
    close = difflib.get_close_matches(key, sorted(tags | params | choices), n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""

    def listed(keys: set[str]) -> str:
        more = f" and {len(keys) - _KEYS_LISTED} more" if len(keys) > _KEYS_LISTED else ""
        return (", ".join(sorted(keys)[:_KEYS_LISTED]) or "none") + more

    return f"no run has a tag or param {key!r}.{meant} Tags: {listed(tags)}. Params: {listed(params)}."


def group_name(run: Run, by: Sequence[str], digits: int = 4) -> str:
    """Return the name of a run's group, such as ``cosine, lr=0.1``, with decimal numbers of ``digits`` digits."""
    return ", ".join(name_values({key: tag_or_param(run, key) for key in by}, digits))


def with_data_set(group: str, data_set: str) -> str:
    """Return the name of a group's runs on one of several data sets, such as ``cosine, digits``."""
    return ", ".join(part for part in (group, data_set) if part)


AXES = {  # name of an x axis to its title
    "step": "step",
    "epochs": "epochs",
    "examples": "examples seen",
    "seconds": "seconds since the first step",
    "fraction": "share of the budget",
}
_Knots = tuple[Floats, Floats]  # x and y of a piecewise linear function


class RunAxes:
    """Convert a run's steps to epochs, examples, seconds and the share of its budget.

    The budget of a finished run is the steps that it made, of any other run the steps that its params plan.
    """

    def __init__(self, run: Run, curves: dict[str, MetricCurve], finished: bool) -> None:
        dense = [curves[key] for key in (TRAIN_LOSS, LR) if key in curves] or [*curves.values()]
        self.last = max((int(c.step[-1]) for c in dense if c.step.size), default=-1)
        self._epochs = _epoch_knots(curves, self.last)
        self._examples = _examples_knots(run, curves, self.last)
        self._seconds = _seconds_knots(curves, dense)
        self._budget = self.last if finished else max(self.last, _planned_steps(run, self._epochs) - 1)

    def at(self, axis: str, step: NDArray[np.int64]) -> Floats | None:
        """Return the positions of steps on an axis, or None if the run did not record what it takes.

        A position is the end of the step; on the axis of seconds it is the moment at which the step was recorded.
        """
        if axis == "step":
            return step.astype(np.float64)
        if axis == "fraction":
            return np.asarray((step + 1.0) / (self._budget + 1.0), np.float64) if self._budget >= 0 else None
        if axis == "seconds":
            return None if self._seconds is None else np.interp(step, *self._seconds)
        knots = self._epochs if axis == "epochs" else self._examples
        if knots is None:
            return None
        x, (xs, ys) = step + 1.0, knots
        # The last piece is extended to the right: a test after the last epoch needs a position too.
        beyond = ys[-1] + (x - xs[-1]) * ((ys[-1] - ys[-2]) / (xs[-1] - xs[-2]))
        return np.asarray(np.where(x > xs[-1], beyond, np.interp(x, xs, ys)), np.float64)

    def end(self, axis: str) -> float:
        """Return the position of the last step; nan if it is not known."""
        found = self.at(axis, np.array([self.last])) if self.last >= 0 else None
        return math.nan if found is None else float(found[0])


def _epoch_knots(curves: dict[str, MetricCurve], last: int) -> _Knots | None:
    """Return steps made and epochs done, from the epochs' mean losses or from Lightning's ``epoch``."""
    mean, epoch = curves.get(TRAIN_LOSS_EPOCH), curves.get(EPOCH)
    if mean is not None and mean.step.size:
        ends, counts = mean.step + 1.0, np.arange(1.0, mean.step.size + 1)
    elif epoch is not None and (inside := epoch.step <= last).any():
        step, value = epoch.step[inside], epoch.value[inside]
        change = np.append(value[1:] != value[:-1], True)
        ends, counts = step[change] + 1.0, value[change] + 1.0
    else:
        return None
    return (np.insert(ends, 0, 0.0), np.insert(counts, 0, 0.0))


def _examples_knots(run: Run, curves: dict[str, MetricCurve], last: int) -> _Knots | None:
    """Return steps made and examples seen."""
    size = curves.get(BATCH_SIZE)
    if size is not None and size.step.size:  # logged at the end of each epoch, for all processes
        ends = np.insert(size.step + 1.0, 0, 0.0)
        return (ends, np.insert(np.cumsum(np.diff(ends) * size.value), 0, 0.0)) if ends[1] > 0 else None
    batch = _number(run.params.get("data.batch_size")) or _number(run.params.get("batch_size"))
    world = _world_size(run)
    if batch is None or world is None or last < 0:
        return None
    batch *= world * (_number(run.params.get("trainer.accumulate_grad_batches")) or 1.0)
    return np.array([0.0, last + 1.0]), np.array([0.0, batch * (last + 1.0)])


def _world_size(run: Run) -> float | None:
    """Return the number of training processes; None if the machine chose them (``auto``, -1) and recorded no number."""
    if (recorded := _number(run.tags.get(WORLD_SIZE_TAG)) or 0.0) >= 1:
        return recorded
    given = run.params.get("trainer.devices")
    if given is None:
        return 1.0  # another program's run, which mentions no devices
    listed = given.strip("[]() ")
    devices = float(len(listed.split(","))) if "," in listed or listed != given else _number(given)
    nodes = _number(run.params.get("trainer.num_nodes")) or 1.0
    return devices * nodes if devices is not None and devices >= 1 else None


def _seconds_knots(curves: dict[str, MetricCurve], dense: list[MetricCurve]) -> _Knots | None:
    """Return steps and seconds, as the run measured them (without the time between a stop and a resume) or by clock."""
    measured = curves.get(COST_SECONDS)
    if measured is not None and measured.step.size > 1:
        start = 0.0 if measured.step[0] > 0 else float(measured.value[0])
        return np.insert(measured.step.astype(np.float64), 0, 0.0), np.insert(measured.value, 0, start)
    longest = max(dense, key=lambda c: c.step.size, default=None)
    if longest is None or longest.step.size < 2:
        return None
    start_time = min(int(c.time.min()) for c in dense if c.time.size)
    return longest.step.astype(np.float64), np.maximum.accumulate((longest.time - start_time) / 1000.0)


def _planned_steps(run: Run, epochs: _Knots | None) -> int:
    """Return the steps that the run's params plan; 0 if they do not tell."""
    steps, max_epochs = (_number(run.params.get(f"trainer.max_{unit}")) or 0.0 for unit in ("steps", "epochs"))
    by_epochs = max_epochs * epochs[0][-1] / epochs[1][-1] if epochs is not None else 0.0
    return int(min((planned for planned in (steps, by_epochs) if 0 < planned < math.inf), default=0))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class RunState(StrEnum):
    """How a run ended; a pruned run was ended by a search."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    PRUNED = "pruned"
    FAILED = "failed"
    KILLED = "killed"
    RUNNING = "running"


_OF_STATUS = {"FINISHED": RunState.FINISHED, "FAILED": RunState.FAILED, "KILLED": RunState.KILLED}


@dataclass(eq=False)
class RunResult:
    """The measured results of one run; a number that is not known is nan."""

    run: Run
    group: str
    seed: str  # "" if it has none
    state: RunState
    curves: dict[str, MetricCurve]  # by this project's metric names
    axes: RunAxes
    best: float = math.nan  # of the objective
    last: float = math.nan  # of the objective
    test: float = math.nan  # the test metric that corresponds to the objective
    gap_loss: float = math.nan  # validation minus probe loss, at the end
    setback: float = math.nan  # largest fall of the objective below its best so far
    spikes: float = math.nan  # jumps of the training loss, if the run counted them
    steps: float = math.nan  # optimizer steps made
    seconds: float = math.nan  # of the whole fit
    examples: float = math.nan  # training examples seen
    peak_lr: float = math.nan  # as configured
    steps_to_target: Reach | None = None
    seconds_to_target: Reach | None = None
    notes: list[str] = field(default_factory=list)  # remarks for the reader
    data_set: str = ""  # label of its data set, if there are several

    @property
    def trunk(self) -> str:
        """The trunk: the first run of the line of forks to which this run belongs; "" if the run is no fork."""
        return self.run.tags.get("fork.trunk", "")

    @property
    def fork_step(self) -> int:
        """The steps that it shares with the run that it was forked from."""
        return int(_number(self.run.tags.get("fork.step")) or 0) if self.trunk else 0

    @property
    def counts(self) -> bool:
        """Whether the run is in its group's means: it finished and has the objective."""
        return self.state is RunState.FINISHED and not math.isnan(self.best)

    def summary(self, key: str) -> float:
        """Return a number that the run itself summarized; nan if it did not."""
        return self.run.last.get(f"summary/{key}", math.nan)

    def curve(self, metric: str) -> MetricCurve | None:
        """Return the curve of a metric, or None if it has no finite row."""
        curve = self.curves.get(metric)
        return curve if curve is not None and curve.step.size else None


def measure_run(
    run: Run, by: Sequence[str], objective: str | None, target: Target | None, *, higher_is_better: bool = True
) -> RunResult:
    """Measure a run whose curves have been read, by the ``objective`` and in the group that ``by`` names."""
    curves: dict[str, MetricCurve] = {}
    for key, curve in run.curves.items():
        name = key if key in REPORT_METRICS else canonical_metric(key)
        if curve.step.size or name not in curves:
            curves.setdefault(name, curve)
            if key == objective or (target and key == target.metric):
                curves[key] = curve
    axes = RunAxes(run, curves, (state := _state(run)) is RunState.FINISHED)
    result = RunResult(run, group_name(run, by), tag_or_param(run, "seed"), state, curves, axes)
    result.notes += _notes(result)
    if objective is not None:
        _measure_objective(result, objective, higher_is_better)
    _measure_cost(result)
    if target is not None and (met := result.curve(target.metric)) is not None:
        # A run that failed or was killed might still have reached the target: it is censored.
        diverged = state is RunState.DIVERGED
        result.steps_to_target = time_to(target, met.step + 1, met.value, diverged=diverged)  # steps count from 0
        if (seconds := axes.at("seconds", met.step)) is not None:
            result.seconds_to_target = time_to(target, seconds, met.value, diverged=diverged)
    return result


def _state(run: Run) -> RunState:
    if run.tags.get("diverged", "").lower() == "true":
        return RunState.DIVERGED
    return RunState.PRUNED if run.tags.get("pruned") else _OF_STATUS.get(run.status, RunState.RUNNING)


def _notes(result: RunResult) -> list[str]:
    notes, tags = [], result.run.tags
    if result.state is RunState.DIVERGED and "diverged_step" in tags:
        notes.append(f"diverged at step {tags['diverged_step']}")
    if result.state is RunState.PRUNED:
        notes.append(f"pruned: {tags['pruned']}")
    bad = {name: curve.nonfinite for name, curve in result.curves.items() if curve.nonfinite}
    if bad:
        notes.append("nan or infinite: " + ", ".join(f"{name} ({count})" for name, count in sorted(bad.items())))
    foreign = [key for key in result.run.curves if key not in REPORT_METRICS]
    if renamed := sorted(key for key in foreign if canonical_metric(key) in REPORT_METRICS):
        notes.append("read by other names: " + ", ".join(renamed))
    return notes


def _measure_objective(result: RunResult, objective: str, higher: bool) -> None:
    if (curve := result.curve(objective)) is None:
        result.notes.append(f"has no {objective}")
        return
    own = curve.value[curve.step >= result.fork_step]
    if not own.size:
        result.notes.append(f"has no {objective} since it was forked")
        return
    result.best = float(own.max() if higher else own.min())
    result.last = float(own[-1])
    result.setback = setback(own, higher_is_better=higher)
    if (test := find_metric(objective.replace("val", "test", 1), result.run.last)) is not None:
        result.test = result.run.last[test]


def _measure_cost(result: RunResult) -> None:
    last, params, axes = result.run.last, result.run.params, result.axes
    gap = result.curve(GAP_LOSS)
    result.gap_loss = float(gap.value[-1]) if gap is not None else result.summary("gap_loss")
    result.steps = last.get("summary/steps", axes.end("step") + 1)
    result.seconds = last.get("summary/seconds", axes.end("seconds"))
    result.examples = axes.end("examples")
    result.spikes = result.summary("spikes")
    peak_lr = _number(short_number(params.get("optimizer.lr") or params.get("lr") or "", 10))
    result.peak_lr = math.nan if peak_lr is None else peak_lr


def setback(values: ArrayLike, *, higher_is_better: bool) -> float:
    """Return the largest loss against the best value so far; 0 if the curve only improves.

    Example:
        >>> setback([0.1, 0.8, 0.5, 0.9], higher_is_better=True)
        0.30000000000000004
    """
    y = np.asarray(values, np.float64) * (1.0 if higher_is_better else -1.0)
    return float((np.maximum.accumulate(y) - y).max()) if y.size else 0.0
