"""What one run comes down to: its group, its seed, its results, and why it does or does not count."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lr_lightning.diagnosis.cost import Target
from lr_lightning.diagnosis.targets import Reach, time_to
from lr_lightning.diagnosis.thinning import setback
from lr_lightning.reports import names
from lr_lightning.reports.axes import RunAxes
from lr_lightning.tracking.runs import Curve, Run

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
        curves: By this project's names.
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
    curves: dict[str, Curve]
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
    curves: dict[str, Curve] = {}
    for key in run.curves:
        name = names.canonical(key) if key not in names.READ else key
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
    more = [f"{key.rsplit('.', 1)[-1]}={names.rounded(value_of(run, key)) or '–'}" for key in rest]
    return ", ".join([names.rounded(value_of(run, first)) or f"(no {first})", *more])


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
    foreign = [key for key in m.run.curves if key not in names.READ and names.canonical(key) in names.READ]
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
    test = names.find(objective.replace("val", "test", 1), m.run.last)
    if test is not None:
        m.test = m.run.last[test]


def _measure_cost(m: Measured) -> None:
    last = m.run.last
    gap = m.curves.get(names.GAP)
    m.gap = float(gap.value[-1]) if gap is not None and gap.step.size else last.get("summary/gap_loss", NAN)
    m.steps = last.get("summary/steps", float(m.axes.last + 1) if m.axes.last >= 0 else NAN)
    end = np.array([m.axes.last])
    seconds, examples = m.axes.at("seconds", end), m.axes.at("examples", end)
    m.seconds = last.get("summary/seconds", float(seconds[0]) if seconds is not None else NAN)
    m.examples = float(examples[0]) if examples is not None and m.axes.last >= 0 else NAN
    try:
        m.peak = float(names.rounded(m.run.params.get("optimizer.lr") or m.run.params.get("lr") or "nan"))
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
