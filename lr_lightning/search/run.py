"""One run of a trial, in this process or as the main module of its own: `python -m lr_lightning.search.run TASK`."""

import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lr_lightning.app.composition import compose_config, load_config, prepare
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import is_out_of_memory
from lr_lightning.app.run.output import LAST
from lr_lightning.app.run.signals import ParentWatch
from lr_lightning.errors import ConfigError, Diverged, RunFailed
from lr_lightning.search.watch import Judge, TrialWatch
from lr_lightning.tracking.files import write_atomically

__all__ = ["RESULT", "STORAGE", "Result", "Task", "earlier_result", "objective_of", "run", "write_result"]

RESULT = "result.json"
"""In the folder of a trial's run: what it came to."""
STORAGE = "LR_LIGHTNING_SEARCH_STORAGE"
"""Variable of the environment that holds the storage's address, whose password belongs into no file."""


@dataclass(frozen=True)
class Task:
    """A run that is to be made.

    Attributes:
        root: The checkout.
        overrides: Its command line.
        folder: Where its output folder and result go.
        monitor: The metric that is reported.
        higher: Whether a higher value of it is better.
        tags: Its tags in MLflow, besides its own.
        study: Name of the study.
        trial: Id of the trial in the storage; None for a run that is not reported there.
        pruners: Which may end it.
        patience: Share of the run before which none does.
        validations: In the whole run, where that is known.
        resume: Whether a run that was interrupted there is gone on with.
        parent: Process that it must not outlive; None for none.
    """

    root: str
    overrides: list[str]
    folder: str
    monitor: str
    higher: bool
    tags: dict[str, str] = field(default_factory=dict)
    study: str = ""
    trial: int | None = None
    pruners: list[str] = field(default_factory=list)
    patience: float = 1.0
    validations: int | None = None
    resume: bool = False
    parent: int | None = None


@dataclass
class Result:
    """What a run came to.

    Attributes:
        status: ``finished``, ``pruned``, ``diverged``, ``failed`` or ``interrupted``.
        reason: Why it is not finished.
        summary: Its ``summary/*``.
        logged: Its metrics at the last validation.
        best: The best value of the metric that is reported.
        epochs: Epochs trained.
        seconds: Wall time.
        run_id: Its MLflow id.
        output_dir: Its output folder.
        verdict: The verdict's label.
    """

    status: str
    reason: str | None = None
    summary: dict[str, float] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    epochs: float = 0.0
    seconds: float = 0.0
    run_id: str | None = None
    output_dir: str | None = None
    verdict: str | None = None


def objective_of(name: str, result: Result) -> float | None:
    """The objective's value in a result, or None where it has none that is finite."""
    summary = name.startswith("summary/")
    value = result.summary.get(name.removeprefix("summary/")) if summary else result.best
    return value if value is not None and math.isfinite(value) else None


def run(task: Task, config: Config | None = None, judge: Callable[[], Judge] | None = None) -> Result:
    """Train, whatever comes of it; only an interruption is raised.

    Args:
        task: What is to be run.
        config: Its config, where it is known already.
        judge: Asked after each validation; None for none.

    Raises:
        Interrupted: On SIGTERM or Ctrl-C, after a checkpoint.
    """
    from lr_lightning.app.run.train import train

    began = time.monotonic()
    watch = TrialWatch(task.monitor, task.higher, judge, verdict="verdict" in task.pruners, patience=task.patience)
    try:
        config, previous = _prepared(task, config)
        config.tracking.tags = {**task.tags, **config.tracking.tags}
        config.output_root = task.folder
        if _in_the_driver(task):
            config.trainer.progress = "none"  # the search has its own
        done = train(config, previous, report=False, watching=[watch])
    except Diverged as e:
        outcome = e.outcome
        result = Result("diverged", e.headline, dict(outcome.summary) if outcome else {})
    except ConfigError as e:
        result = Result("failed", str(e))
    except Exception as e:  # a trial's failure is a result, and the search goes on
        traceback.print_exc()
        result = Result("failed", _reason(e))
        _let_go()
    else:
        status = "pruned" if watch.reason else "finished"
        label = done.verdict.label if done.verdict is not None else None
        folder = str(done.output_dir) if done.output_dir else None
        result = Result(status, watch.reason, done.summary, run_id=done.run_id, output_dir=folder, verdict=label)
    result.logged, result.best = watch.logged, watch.best
    result.epochs, result.seconds = watch.epochs, time.monotonic() - began
    return result


def _in_the_driver(task: Task) -> bool:
    """Whether the run is made in the driver's own process."""
    return task.parent == os.getpid()


def _prepared(task: Task, config: Config | None) -> tuple[Config, Any]:
    """The config; of a run that was interrupted, its own, with its last checkpoint."""
    folder = _interrupted_folder(Path(task.folder)) if task.resume else None
    if folder is not None:
        from lr_lightning.app.run.resume import stored_config

        trust = [word for word in task.overrides if word.startswith("trust=")]
        words = [f"resume={folder}", *trust]
        try:
            return stored_config(compose_config(Path(task.root), words)[0], words)
        except ConfigError as e:
            print(f"cannot go on with {folder}, so it is started anew: {e}", file=sys.stderr)
    return config or load_config(Path(task.root), task.overrides), None


def _interrupted_folder(folder: Path) -> Path | None:
    """The output folder in there of a run that did not come to its end, where it left a checkpoint."""
    if (folder / RESULT).is_file():
        return None
    found = [path.parent.parent for path in folder.glob(f"*/checkpoints/{LAST}")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def earlier_result(folder: Path) -> Result | None:
    """The result that lies there, if there is one."""
    try:
        return Result(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_result(folder: Path, result: Result) -> None:
    """Leave a result where the driver finds it, also a later one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESULT, json.dumps(asdict(result), indent=1))


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    if isinstance(error, RunFailed):
        return text[0]
    prefix = "out of memory: " if is_out_of_memory(error) else ""
    return f"{prefix}{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")


def _let_go() -> None:
    """Free what a failed trial held, for the next one in this process."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(path: str) -> int:
    """Run the task of a file, as a process of its own. Its exit status is 0 if there is a result."""
    task = Task(**json.loads(Path(path).read_text(encoding="utf-8")))
    if task.parent is not None and "LOCAL_RANK" not in os.environ:  # ranks that Lightning starts have another parent
        # nobody would take the result: end with a checkpoint when the driver is gone, however long that takes
        ParentWatch(grace=None, parent=task.parent).start()
    prepare(Path(task.root))
    result = run(task, judge=_judge_of(task))
    from lr_lightning.app.world import is_rank_zero

    if is_rank_zero():
        write_result(Path(task.folder), result)
    return 0


def _judge_of(task: Task) -> Callable[[], Judge] | None:
    if task.trial is None or not task.pruners:
        return None
    from lr_lightning.search.judge import StudyJudge

    return lambda: StudyJudge.connected(os.environ[STORAGE], task)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
