"""A trial's training runs, one for each seed: what a worker is asked to do, its results, and the trial's outcome."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from lr_lightning._plotting import colour_ramp
from lr_lightning.app.config import Config
from lr_lightning.search.settings import Search
from lr_lightning.search.study import Trial
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import COLOUR_TAG, name_values

Call = Callable[..., Any]
"""Calls a function with arguments in a process that has imported what training needs; returns what that returns."""
LOG = "log.txt"
"""In the folder of a run: what it printed."""
_RESULT = "result.json"


class TaskStatus(StrEnum):
    """How a training run of a trial ended."""

    FINISHED = "finished"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CRASHED = "crashed"


_FINAL = (TaskStatus.FINISHED, TaskStatus.PRUNED, TaskStatus.DIVERGED)


@dataclass(frozen=True)
class Task:
    """A training run to do."""

    checkout: Path
    config: Config
    folder: Path  # of the output folder and the result
    monitor: str
    compared: str  # the metric that the search is told at each validation
    higher: bool
    tags: dict[str, str] = field(default_factory=dict)
    may_be_pruned: bool = False  # the search is asked after each validation
    stops_on_verdict: bool = False  # the run ends if it diverges or collapses by its own diagnosis
    patience: float = 1.0  # share of the run before which nothing ends it
    resume: tuple[str, ...] | None = None  # overrides to resume an interrupted attempt with; None for a new run


@dataclass
class TaskResult:
    """A run's result: its `summary` without prefix, metrics `logged` by the last validation, `best` monitored value."""

    status: TaskStatus
    reason: str | None = None
    summary: dict[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    epochs: float = 0.0
    seconds: float = 0.0
    run_id: str | None = None
    output_dir: str | None = None
    verdict: str | None = None

    def store(self, folder: Path) -> None:
        """Write the result where a later search finds it, in case this one is killed."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _RESULT, json.dumps(asdict(self), indent=1))


def stored_result(folder: Path) -> TaskResult | None:
    """Return the stored result of a run, if there is one."""
    try:
        fields = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
        return TaskResult(**{**fields, "status": TaskStatus(fields["status"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def objective_of(name: str, result: TaskResult) -> float | None:
    """Return the objective's value in a result, or None if it has none or that is not finite."""
    summary = name.startswith("summary/")
    value = result.summary.get(name.removeprefix("summary/")) if summary else result.best
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Answer:
    """A worker's answer to a job: its value, or the exception that it raised."""

    value: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        """Return the value, or raise the exception."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of a trial: its state, its objective (the mean over its runs), and what else is recorded with it."""

    state: TrialState
    value: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str | None:
        """Return why the trial is not complete."""
        return self.attributes.get("reason")


class TrialRuns:
    """The training runs of a trial, one after another, their results, and the worker that trains."""

    def __init__(self, search: Search, trial: Trial) -> None:
        self.search, self.trial = search, trial
        self.folder = search.folder / f"trial-{trial.number:04d}"
        self.config = search.composer.config(trial.point)
        self.results: list[TaskResult] = []
        self.worker: Any = None
        self._tasks = self._planned()

    def _planned(self) -> Iterator[Task]:
        search, node, trial = self.search, self.search.node, self.trial
        trust = [word for word in search.training if word.startswith("trust=")]
        for index, seed in enumerate(node.seeds or [None]):
            # other keys may refer to the seed, so it is set before the config is resolved
            config = self.config if seed is None else search.composer.config({**trial.point, "seed": seed})
            words = name_values({key: str(value) for key, value in trial.point.items()})
            config.tracking.run_name = config.tracking.run_name or " ".join(
                [*words, *[f"s{seed}"] * (seed is not None)]
            )
            yield Task(
                checkout=search.checkout,
                config=config,
                folder=self.folder if seed is None else self.folder / f"seed-{seed}",
                monitor=search.monitor,
                compared=search.compared,
                higher=search.monitor_higher,
                tags={"sweep": search.name, "trial": str(trial.number), "search": node.name, **self._colour()},
                may_be_pruned=index == 0 and bool(node.pruners),  # only the first run is compared with other trials
                stops_on_verdict="verdict" in node.pruners,
                patience=node.patience,
                resume=tuple(trust) if trial.resumes else None,
            )

    def _colour(self) -> dict[str, str]:
        """Return the tag of the trial's colour, by its place among the learning rates of the search."""
        for key, domain in self.search.space.keys.items():
            lr = self.trial.point.get(key)
            if key in ("optimizer.lr", "schedule.max_lr") and isinstance(lr, float | int) and lr > 0:
                lrs = [float(value) for value in domain.grid() if isinstance(value, float | int) and value > 0]
                low, high = min(lrs, default=lr), max(lrs, default=lr)
                return {COLOUR_TAG: colour_ramp(math.log(lr / low) / math.log(high / low) if low < high else 0.5)}
        return {}

    @property
    def phase(self) -> str:
        """Return what two trials must share to be compared while they run: the schedule and the length."""
        trainer = self.config.trainer
        return f"{self.config.schedule.name} {trainer.max_steps if trainer.max_steps > 0 else trainer.max_epochs}"

    def next_task(self) -> Task | None:
        """Return the next run to do, or None at the end of the trial; the results of earlier attempts count."""
        if self.results and self.results[-1].status != TaskStatus.FINISHED:
            return None
        for task in self._tasks:
            result = stored_result(task.folder) if self.trial.resumes else None
            if result is None or result.status not in _FINAL:
                (task.folder / _RESULT).unlink(missing_ok=True)
                return task
            self.results.append(result)
            if result.status != TaskStatus.FINISHED:
                return None
        return None

    @property
    def is_complete(self) -> bool:
        """Tell whether every run of the trial is done."""
        return len(self.results) >= max(1, len(self.search.node.seeds))

    @property
    def _last(self) -> TaskResult:
        return self.results[-1] if self.results else TaskResult(TaskStatus.FAILED, "nothing was trained")

    def _attributes(self) -> dict[str, Any]:
        return {
            "epochs": sum(r.epochs for r in self.results),
            "seconds": sum(r.seconds for r in self.results),
            "runs": [r.run_id for r in self.results if r.run_id],
            "verdict": self._last.verdict,
            "val_loss": _mean([r.summary.get("best_val_loss", math.nan) for r in self.results]),
            "reason": self._last.reason,
        }

    def incomplete_outcome(self, reason: str | None) -> TrialOutcome:
        """Return the outcome of a trial that ends before all its runs are done."""
        return TrialOutcome(TrialState.FAIL, None, {**self._attributes(), "reason": reason})

    def outcome(self) -> TrialOutcome:
        """Combine the results so far into the trial's outcome."""
        results, last, common = self.results, self._last, self._attributes()
        if last.status in (TaskStatus.PRUNED, TaskStatus.DIVERGED):
            reason = last.reason or str(last.status)
            return TrialOutcome(TrialState.PRUNED, None, {**common, "reason": reason, "best": last.best})
        if last.status != TaskStatus.FINISHED:
            return TrialOutcome(TrialState.FAIL, None, common)
        values = [value for r in results if (value := objective_of(self.search.node.objective, r)) is not None]
        if len(values) < len(results):
            logged = ", ".join(sorted(f"summary/{name}" for name in last.summary))
            reason = f"it has no finite {self.search.node.objective}; it has: {logged or 'nothing'}"
            return TrialOutcome(TrialState.FAIL, None, {**common, "reason": reason})
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return TrialOutcome(TrialState.COMPLETE, statistics.mean(values), {**common, "values": values, "error": error})


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values and all(map(math.isfinite, values)) else None
