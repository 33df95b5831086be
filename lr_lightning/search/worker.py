"""The inside of a worker: a process that trains, or does whatever else its search sends.

It starts as `python -m lr_lightning.search.worker ROLE FD SEARCH_PID`, where FD is a socket to the search. A
``fork_server`` imports what training needs, starts no thread, and forks a worker for each socket that the
search sends, so the imports are paid once. A ``worker`` serves the search itself. It is for runs with several
processes, whose launcher starts the same command for the other ranks.
"""

# ruff: noqa: E402
import atexit
import gc
import math
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any, NoReturn

gc.set_threshold(50_000, 20, 100)  # before the imports below, and freeze at the end: see scripts/_checkout.py
atexit.register(gc.freeze)

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import lr_lightning.app.run.train as app
from lr_lightning._commands import override
from lr_lightning._lightning import callbacks_of
from lr_lightning._loggers import log_tags
from lr_lightning.app.composition import compose_config, prepare
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import is_out_of_memory
from lr_lightning.app.run.checkpoints import LAST
from lr_lightning.app.run.resume import ResumedRun, stored_config
from lr_lightning.app.run.signals import Interrupted, ParentWatch
from lr_lightning.app.world import is_rank_zero
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.diagnosis.early_stopping import Phases
from lr_lightning.errors import ConfigError, Diverged, RunFailed
from lr_lightning.search.launch import PRELOAD
from lr_lightning.search.methods import Ask, ValidationReport
from lr_lightning.search.task import Answer, Task, TaskResult, TaskStatus, stored_result
from lr_lightning.tracking.store import prepare_mlflow

_IDLE_SECONDS = 0.2
_RANK_TASK = "LR_LIGHTNING_RANK_TASK"
"""Environment variable for the other ranks of a run: the file with the task."""


def run_task(task: Task, ask: Ask | None = None, *, quiet: bool = False) -> TaskResult:
    """Train, and store the result; a failure is a result as well. Only the first rank asks; `quiet` hides the bar."""
    began = time.monotonic()
    watch = TrialWatch(task, ask)
    try:
        config, previous = _resumed(task) or (task.config, None)
        config.tracking.tags = {**task.tags, **config.tracking.tags}
        config.output_root = str(task.folder)
        if quiet:
            config.trainer.progress = "none"
        done = app.train(config, previous, report=False, watching=[watch])
    except Diverged as e:
        outcome = e.outcome
        result = TaskResult(TaskStatus.DIVERGED, e.headline, dict(outcome.summary) if outcome else {})
    except ConfigError as e:
        result = TaskResult(TaskStatus.FAILED, str(e))
    except Exception as e:
        traceback.print_exc()
        result = TaskResult(TaskStatus.FAILED, _headline(e))
    else:
        status = TaskStatus.PRUNED if watch.reason else TaskStatus.FINISHED
        label = done.verdict.label if done.verdict is not None else None
        folder = str(done.output_dir) if done.output_dir else None
        result = TaskResult(status, watch.reason, done.summary, run_id=done.run_id, output_dir=folder, verdict=label)
    result.logged, result.best = watch.logged, watch.best
    result.epochs, result.seconds = watch.epochs, time.monotonic() - began
    if is_rank_zero():
        result.store(task.folder)
    return result


def _resumed(task: Task) -> tuple[Config, ResumedRun] | None:
    """Return the config and the checkpoint of an attempt that was interrupted, if there is one that can be resumed."""
    if task.resume is None or stored_result(task.folder) is not None:
        return None
    found = [path.parent.parent for path in task.folder.glob(f"*/checkpoints/{LAST}")]
    folder = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if folder is None:
        return None
    words = [override("resume", folder), *task.resume]
    try:
        return stored_config(compose_config(task.checkout, words)[0], words)
    except ConfigError as e:
        print(f"cannot resume {folder}, so the run starts anew: {e}", file=sys.stderr)
        return None


def _headline(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, RunFailed):
        return lines[0]
    prefix = "out of memory: " if is_out_of_memory(error) else ""
    return f"{prefix}{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


class TrialWatch(Callback):
    """Report each validation of a run to its search; end the run on all ranks if it is pruned, by either side."""

    def __init__(self, task: Task, ask: Ask | None) -> None:
        self.task, self._ask = task, ask if task.may_be_pruned else None
        self.reason: str | None = None
        self.best: float | None = None
        self.validations = 0
        self.epochs = 0.0
        self.logged: dict[str, float] = {}
        self._before = 0
        self._phases: Phases | None = None

    @property
    def skips_test(self) -> bool:
        """Tell whether the run was ended, so that a test would be pointless."""
        return self.reason is not None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epochs, for a search that is limited by them."""
        self.epochs = float(trainer.current_epoch + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the validation, and end the run if the search says so."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validations += 1
        self.epochs = max(self.epochs, float(trainer.current_epoch + 1))
        self.logged = {str(key): float(value) for key, value in trainer.callback_metrics.items()}
        value = self.logged.get(self.task.monitor)
        if value is not None and math.isfinite(value):
            best = value if self.best is None else self.best
            self.best = max(best, value) if self.task.higher else min(best, value)
        progress, comparable = self._progress(trainer)
        compared = self.logged.get(self.task.compared)
        reason = self._reason_to_end(trainer, compared, progress, comparable) if trainer.is_global_zero else None
        reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            self.reason = reason
            log_tags(trainer, {"pruned": reason[:500]})
            trainer.should_stop = True

    def _reason_to_end(self, trainer: Trainer, value: float | None, progress: float, comparable: bool) -> str | None:
        if progress >= 1.0:
            return None  # nothing would be saved
        if self.task.stops_on_verdict and progress >= self.task.patience and comparable:
            for verdict in (monitor.verdict for monitor in callbacks_of(trainer, OverfittingMonitor)):
                if verdict.label in ("diverged", "collapsed"):
                    return f"{verdict.label}: {verdict.detail}".rstrip(": ")
        if self._ask is None or value is None:
            return None
        return self._ask(ValidationReport(value, self.validations, progress, comparable))

    def _progress(self, trainer: Trainer) -> tuple[float, bool]:
        """Return the share of the run that is done, and whether this validation can be compared with other runs'."""
        step, before = updates_made(trainer), self._before
        self._before = step
        total = trainer_clock(trainer).total
        if self._phases is None:
            for callback in callbacks_of(trainer, LRSchedule):
                schedule, clock = callback.plan()
                self._phases = Phases(partial(schedule, clock=clock), clock.total)
        comparable = self._phases is None or (step > before and self._phases.counts(step, before))
        return (min(1.0, step / total) if total else 0.0), comparable

    def state_dict(self) -> dict[str, Any]:
        """Serialize what a resumed run needs."""
        return {"validations": self.validations, "best": self.best, "before": self._before, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it, unless an earlier checkpoint is only tested: then the fit's own state stays."""
        if self.validations == 0:
            self.validations, self.best = state_dict["validations"], state_dict["best"]
            self._before, self.epochs = state_dict["before"], state_dict["epochs"]


def serve(search: Connection) -> None:
    """Do one job after another until the search hangs up.

    A job is a `Task`, or a function and its arguments; with it comes the file for what it prints, or None.
    """
    ready = None
    with suppress(EOFError, OSError):
        while True:
            job, log = search.recv()
            with _printing_to(log):
                try:
                    if isinstance(job, Task):
                        if job.checkout != ready:
                            prepare(job.checkout)
                            ready = job.checkout
                        answer = Answer(_train(job, search))
                    else:
                        function, *arguments = job
                        answer = Answer(function(*arguments))
                except Exception as e:
                    answer = Answer(error=e)
            search.send(answer)


def _train(task: Task, search: Connection) -> TaskResult:
    def ask(report: ValidationReport) -> str | None:
        try:
            search.send(report)
            answer: str | None = search.recv()
        except (EOFError, OSError):  # the search is gone, and this process is about to be stopped
            return None
        return answer

    with tempfile.NamedTemporaryFile(suffix=".task") as file:  # for the other ranks, if there are any
        file.write(pickle.dumps(task))
        file.flush()
        os.environ[_RANK_TASK] = file.name
        result = run_task(task, ask)
    gc.collect()  # a model and its trainer refer to each other; what was imported is frozen
    on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if on_gpu:
        torch.cuda.empty_cache()
    return result


@contextmanager
def _printing_to(log: Path | None) -> Iterator[None]:
    """Send stdout and stderr, also those of processes that are started meanwhile, to the end of a file."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(number) for number in (1, 2)]
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, original in zip((1, 2), saved, strict=True):
            os.dup2(original, number)
            os.close(original)


def _serve_forks(control: Connection) -> NoReturn:
    """Fork a worker for each socket that the search sends, and tell it each worker's id, and later its exit status."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    own = os.getpid()
    workers: set[int] = set()
    preload = [name for name in os.environ.get(PRELOAD, "").split(",") if name]
    prepare_mlflow()
    while True:
        ready = select.select([control.fileno(), reader], [], [], _IDLE_SECONDS if preload else None)[0]
        if not ready:
            with suppress(ImportError):
                import_module(preload.pop(0))
            gc.freeze()
        elif control.fileno() in ready:
            try:
                environment = control.recv()
                socket = recv_handle(control)
            except (EOFError, OSError):  # the search is over, or gone: workers that train save a checkpoint
                for worker in workers:
                    os.kill(worker, signal.SIGTERM)
                with suppress(ChildProcessError):
                    while True:
                        os.wait()
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                os.close(reader)
                os.close(writer)
                os.setsid()
                _become_worker(socket, own, environment)
            workers.add(pid)
            os.close(socket)
            control.send((pid, None))
        else:
            os.read(reader, 4096)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                workers.discard(ended[0])
                with suppress(OSError):
                    control.send((ended[0], os.waitstatus_to_exitcode(ended[1])))


def _become_worker(socket: int, parent: int, environment: dict[str, str]) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a log that is whole after a kill
    os.environ |= environment
    ParentWatch(grace=None, parent=parent).start()  # without a search, end with a checkpoint, however long that takes
    try:
        serve(Connection(socket))
    except Interrupted as e:
        sys.exit(e.code)
    sys.exit(0)


def main(role: str, socket: int, parent: int) -> None:
    """Be a fork server, a worker, or one of the other ranks of a worker's run."""
    if "LOCAL_RANK" in os.environ and role == "worker":
        task: Task = pickle.loads(Path(os.environ[_RANK_TASK]).read_bytes())
        prepare(task.checkout)
        run_task(task)
        return
    gc.freeze()
    if role == "worker":
        _become_worker(socket, parent, {})
    else:
        _serve_forks(Connection(socket))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
