"""One trial: a ticket, the runs it asks for (one a seed), and what they come to together."""

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from lr_lightning.search.judge import StudyJudge
from lr_lightning.search.process import RunProcess
from lr_lightning.search.run import RESULT, Result, Task, earlier_result, objective_of, run, write_result
from lr_lightning.search.settings import Search
from lr_lightning.search.storage import patient
from lr_lightning.search.study import Ticket

__all__ = ["Ending", "TrialRuns"]


@dataclass(frozen=True)
class Ending:
    """What a trial came to.

    Attributes:
        state: Optuna's.
        value: The objective: the mean over its runs; None if it has none.
        attributes: What else is recorded with it.
    """

    state: TrialState
    value: float | None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str | None:
        """Why it is not complete."""
        return self.attributes.get("reason")


class TrialRuns:
    """The runs of a ticket, one after another; each in a process of its own, or in this one.

    Args:
        search: The search.
        ticket: The ticket.
        environment: Variables for its processes.
    """

    def __init__(self, search: Search, ticket: Ticket, environment: dict[str, str] | None = None) -> None:
        self.search, self.ticket = search, ticket
        self.environment = environment or {}
        self.folder = search.folder / f"trial-{ticket.number:04d}"
        self.again = "run" in ticket.trial.user_attrs  # taken up before, by a worker that is gone or was stopped
        self.results: list[Result] = []
        self._config = search.composer.config(ticket.point)
        self._tasks = self._planned()
        self.process: RunProcess | None = None

    def _planned(self) -> Iterator[Task]:
        seeds: Sequence[int | None] = self.search.node.seeds or [None]
        for index, seed in enumerate(seeds):
            yield self._task(seed, first=index == 0)

    def _task(self, seed: int | None, *, first: bool) -> Task:
        search, node = self.search, self.search.node
        tags = {"sweep": search.name, "trial": str(self.ticket.number), "search": node.name}
        return Task(
            root=str(search.root),
            # the seed is composed with the rest, since other keys may name it
            overrides=[*search.composer.overrides(self.ticket.point), *([] if seed is None else [f"seed={seed}"])],
            tags=tags,
            folder=str(self.folder if seed is None else self.folder / f"seed-{seed}"),
            study=search.name,
            trial=self.ticket.trial._trial_id if first else None,
            monitor=search.monitor,
            higher=search.monitor_higher,
            pruners=list(node.pruners) if first else [name for name in node.pruners if name == "verdict"],
            patience=node.patience,
            validations=search.validations,
            resume=self.again,
            parent=os.getpid(),
        )

    def _next(self) -> Task | None:
        """The next run that is needed; what an earlier attempt has done already is taken from there."""
        if self.results and self.results[-1].status != "finished":
            return None
        for task in self._tasks:
            done = earlier_result(Path(task.folder)) if self.again else None
            if done is None or done.status not in ("finished", "pruned", "diverged"):
                (Path(task.folder) / RESULT).unlink(missing_ok=True)
                return task
            self.results.append(done)
            if done.status != "finished":
                return None
        return None

    def describe(self) -> None:
        """Record with the trial what can be known before it runs: its peers are those of the same phase."""
        trainer = self._config.trainer
        total = trainer.max_steps if trainer.max_steps > 0 else trainer.max_epochs
        phase = f"{self._config.schedule.name} {total}"
        self._note("run", {"phase": phase, "folder": str(self.folder)})

    def _note(self, name: str, value: Any) -> None:
        patient(self.ticket.trial.set_user_attr)(name, value)

    # -- in this process ---------------------------------------------------------------------------------------------

    def run_here(self) -> Ending:
        """Make all runs in this process.

        Raises:
            Interrupted: On SIGTERM or Ctrl-C.
        """
        while (task := self._next()) is not None:
            judge = None
            if task.trial is not None and task.pruners:
                judge = partial(StudyJudge.of, self.ticket.trial, task)
            result = run(task, None if self.search.node.seeds else deepcopy(self._config), judge)
            write_result(Path(task.folder), result)
            self.results.append(result)
        return self.ending()

    # -- in processes ------------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start the next run; whether there is one."""
        task = self._next()
        if task is None:
            return False
        self.process = RunProcess.start(task, self.search.storage, self.environment)
        self._note("child", self.process.child)
        return True

    def poll(self, *, stopping: bool = False) -> Ending | None:
        """What the trial came to, or None while it runs; while the search stops, no further run is started."""
        if self.process is None:
            return None if self.start() else self.ending()
        result = self.process.result()
        if result is None:
            return None
        self.results.append(result)
        self.process = None
        if stopping and result.status == "finished" and len(self.results) < len(self.search.node.seeds):
            self.results.append(Result("interrupted", "stopped between two of its runs"))
        return None if self.start() else self.ending()

    @property
    def was_interrupted(self) -> bool:
        """Whether its last run was stopped from outside."""
        return bool(self.results) and self.results[-1].status == "interrupted"

    # -- together ----------------------------------------------------------------------------------------------------

    def ending(self) -> Ending:
        """What the runs so far come to together."""
        results = self.results
        last = results[-1] if results else Result("failed", "no run was made")
        common: dict[str, Any] = {
            "epochs": sum(r.epochs for r in results),
            "seconds": sum(r.seconds for r in results),
            "runs": [r.run_id for r in results if r.run_id],
            "verdict": last.verdict,
            "val_loss": _mean([r.summary.get("best_val_loss", math.nan) for r in results]),
            "reason": last.reason,
        }
        if last.status in ("pruned", "diverged"):
            reason = last.reason or last.status
            return Ending(TrialState.PRUNED, None, {**common, "reason": reason, "best": last.best})
        if last.status != "finished":
            return Ending(TrialState.FAIL, None, common)
        values = [value for r in results if (value := objective_of(self.search.node.objective, r)) is not None]
        if len(values) < len(results):
            logged = ", ".join(sorted(f"summary/{name}" for name in last.summary))
            reason = f"it has no finite {self.search.node.objective}; it has: {logged or 'nothing'}"
            return Ending(TrialState.FAIL, None, {**common, "reason": reason})
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return Ending(TrialState.COMPLETE, statistics.mean(values), {**common, "values": values, "error": error})


def _mean(values: Sequence[float]) -> float | None:
    """The mean, or None where a value is missing."""
    return statistics.mean(values) if values and all(map(math.isfinite, values)) else None
