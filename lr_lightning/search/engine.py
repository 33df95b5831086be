"""The engine of a search: it hands trials to workers, prunes them while they run, and stops in good order.

A worker is a process that trains trial after trial; with ``workers=0`` it is this process. This module imports neither
torch nor Lightning: that is left to the workers, which start while the command line is read.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import psutil
from optuna.trial import TrialState

from lr_lightning._threads import SHARE
from lr_lightning.app.run.signals import Interrupted, Signals
from lr_lightning.app.schemas.trainer import TrainerConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError
from lr_lightning.search.launch import Launched, launch
from lr_lightning.search.methods import Ask, TrialPruner
from lr_lightning.search.report import Progress, format_count
from lr_lightning.search.settings import Search
from lr_lightning.search.study import RequeueReason, StorageGone, Study, Trial, result_of
from lr_lightning.search.task import LOG, Answer, Task, TaskResult, TaskStatus, TrialOutcome, TrialRuns

_TICK_SECONDS = 0.25
_LOOK_SECONDS = 2.0
_STOP_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
R = TypeVar("R")


class InProcessWorker:
    """A worker that is this process: a job is done when `start` returns."""

    gpu = identity = None
    is_single_use = False

    def start(self, job: Any, pruner: Ask | None = None, log: Path | None = None) -> None:
        """Do a job."""
        if isinstance(job, Task):
            from lr_lightning.search.worker import run_task

            job = (partial(run_task, quiet=True), job, pruner)
        function, *arguments = job
        self._answer = Answer(function(*arguments))

    def poll(self) -> Answer | None:
        """Return the answer to the job."""
        return self._answer

    def stop(self) -> None:
        """Do nothing: no job is under way."""

    close = kill = stop


@dataclass
class Worker:
    """A process that does one job after another, the leader of a process group; `status` tells how it ended."""

    connection: Connection
    pid: int
    status: Callable[[], int | None]
    gpu: str | None = None
    is_single_use: bool = False
    identity: tuple[int, float] | None = None
    _pruner: Ask | None = None
    _log: Path | None = None

    def __post_init__(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.identity = (self.pid, psutil.Process(self.pid).create_time())

    def start(self, job: Any, pruner: Ask | None = None, log: Path | None = None) -> None:
        """Start a `Task`, whose reports `pruner` answers, or a function of a module and its arguments.

        What the job prints goes to the file `log`; None stands for this process's own output.
        """
        self._pruner, self._log = pruner, log
        with contextlib.suppress(OSError):  # `poll` finds out that the process is gone
            self.connection.send((job, log))

    def poll(self) -> Answer | None:
        """Answer reports; return the answer to the job, or None while it is under way."""
        # Read the status before the pipe: if the process has ended, the pipe already holds everything that it sent.
        status = self.status()
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                message = self.connection.recv()
                if isinstance(message, Answer):
                    return message
                self.connection.send(self._pruner(message) if self._pruner else None)
        if status is None:
            return None
        self.kill()  # what it had started may live on
        if {-status, status - 128} & {signal.SIGTERM, signal.SIGINT}:
            return Answer(TaskResult(TaskStatus.INTERRUPTED, "stopped by a signal"))
        return Answer(TaskResult(TaskStatus.CRASHED, self._crash(status)))

    def _crash(self, status: int) -> str:
        where = f" (see {self._log})" if self._log else ""
        if status < 0:
            memory = ", perhaps because memory ran out" if status == -signal.SIGKILL else ""
            return f"killed by {signal.Signals(-status).name}{memory}{where}"
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log and self._log.is_file() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return f"exit {status}: {lines[-1] if lines else 'no output'}{where}"

    def stop(self) -> None:
        """Ask the process to end, with a checkpoint if it trains."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """Let the process end, now that its job is done."""
        self.connection.close()
        if self.is_single_use:  # the other ranks of its run end with it
            until = time.monotonic() + _CLOSE_SECONDS
            while self.status() is None and time.monotonic() < until:
                time.sleep(0.05)
            self.kill()

    def kill(self) -> None:
        """End the process at once, with all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Workers:
    """Start workers, keep the idle ones for the next job, and end all on exit.

    ``share`` is the number of workers on this machine. ``fork_server`` is the process that forks them, if it has been
    started already.
    """

    def __init__(self, fork_server: Launched | None = None, *, in_process: bool = False) -> None:
        self.share = 1
        self._in_process = in_process
        self._idle: list[Any] = []
        self._statuses: dict[int, int] = {}
        self._has_forked = False
        self._fork_server: subprocess.Popen[bytes] | None = None
        self._control: Connection | None = None
        if not in_process:
            self._fork_server, self._control = fork_server or launch("fork_server")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            worker.close()
        if self._control is not None and self._fork_server is not None:
            self._control.close()  # the fork server ends, with all its workers
            if not self._has_forked:
                self._fork_server.kill()  # it may import yet
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._fork_server.wait(_STOP_SECONDS)

    def has_idle(self, gpu: str | None) -> bool:
        """Tell whether a worker with this GPU waits for a job."""
        return any(worker.gpu == gpu for worker in self._idle)

    def get(self, gpu: str | None = None) -> Any:
        """Return a worker that waits for a job, or start one."""
        for worker in list(self._idle):
            if worker.gpu == gpu:
                self._idle.remove(worker)
                return worker
            if worker.gpu is None:  # it sees every GPU, and may hold memory on the first one
                self._idle.remove(worker)
                worker.close()
        return InProcessWorker() if self._in_process else self._fork(gpu)

    def give_back(self, worker: Any) -> None:
        """Keep a worker for the next job, if it can do another one."""
        if worker.is_single_use:
            worker.close()
        else:
            self._idle.append(worker)

    def launch(self) -> Worker:
        """Start a worker for one run that trains with several processes, which its launcher starts."""
        process, connection = launch("worker", {SHARE: str(self.share)})
        return Worker(connection, process.pid, process.poll, is_single_use=True)

    def _fork(self, gpu: str | None) -> Worker:
        """Have the fork server fork a worker, with a socket between it and this process."""
        fork_server, control = self._living_fork_server()
        self._has_forked = True
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._request_worker(control, theirs, gpu)
        return Worker(Connection(ours.detach()), pid, partial(self._status_of, pid, fork_server), gpu)

    def _living_fork_server(self) -> "tuple[subprocess.Popen[bytes], Connection]":
        if self._fork_server is None or self._control is None or self._fork_server.poll() is not None:
            self._fork_server, self._control = launch("fork_server")
        return self._fork_server, self._control

    def _request_worker(self, control: Connection, theirs: socket.socket, gpu: str | None) -> int:
        """Have the fork server start a worker with these settings and this socket; return the worker's process id.

        Messages that other workers have ended may come first.
        """
        control.send({SHARE: str(self.share), **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})})
        send_handle(control, theirs.fileno(), None)
        while (message := control.recv())[1] is not None:
            self._statuses[message[0]] = message[1]
        pid: int = message[0]
        self._statuses.pop(pid, None)  # of an earlier process with that id
        return pid

    def _status_of(self, pid: int, fork_server: "subprocess.Popen[bytes]") -> int | None:
        """Return the exit status of a worker, or None while it lives. A worker ends with its fork server."""
        self._read_statuses()
        return self._statuses.get(pid, None if fork_server.poll() is None else -signal.SIGTERM)

    def _read_statuses(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while self._control is not None and self._control.poll():
                pid, status = self._control.recv()
                self._statuses[pid] = status

    def wait(self, busy: list[Any], seconds: float) -> None:
        """Wait until a busy worker, or the end of one, has something to say."""
        if busy and not self._in_process:
            wait([*(worker.connection for worker in busy), *([self._control] if self._control else [])], seconds)
        elif not busy:
            time.sleep(seconds)

    def call(self, function: Callable[..., R], *arguments: object) -> R:
        """Call a function of a module in a new worker; return what it returns, or raise what it raises.

        The worker has everything that the fork server has imported by now; one that waits for a trial may have less.
        """
        worker = InProcessWorker() if self._in_process else self._fork(None)
        try:
            worker.start((function, *arguments))
            while (answer := worker.poll()) is None:
                self.wait([worker], _TICK_SECONDS)
        except BaseException:
            worker.stop()
            raise
        value = answer.value
        if isinstance(value, TaskResult) and value.status == TaskStatus.INTERRUPTED:
            raise Interrupted(signal.SIGTERM)
        if isinstance(value, TaskResult) and value.status == TaskStatus.CRASHED:
            raise ConfigError(f"a worker could not prepare the search: {value.reason}")
        worker.close()
        return cast(R, answer.get())


def _gpus() -> list[str]:
    """Return the GPUs that trials may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass
class Engine:
    """Runs the trials of a study, as many at a time as were asked for."""

    search: Search
    study: Study
    workers: Workers
    progress: Progress
    trial_seconds: float = 0.0  # of the trials of this search, added up
    limited: bool = False  # a limit of time or epochs has ended the search
    ended_last: bool = False  # this search ended the last trial of all
    _running: list[TrialRuns] = field(default_factory=list)
    _failed_in_a_row: int = 0
    _started: float = field(default_factory=time.monotonic)
    _next_look: float = 0.0
    _answers: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Run trials until none is left or a limit is reached; an interrupt puts the running trials back."""
        with self.progress.bar, Signals() as signals:
            try:
                self._loop(signals)
                if signals.signum is not None:
                    self._stop_in_order()
                    raise Interrupted(signals.signum)
            finally:
                for runs in self._running:  # after an error or a second signal
                    if runs.worker is not None:
                        runs.worker.kill()
                if not isinstance(sys.exception(), StorageGone):
                    for runs in self._running:
                        self.study.requeue(runs.trial, RequeueReason.INTERRUPTED)

    def _loop(self, signals: Signals) -> None:
        may_have_more = True
        while signals.signum is None:
            self._recover()
            while may_have_more and self._has_room():
                may_have_more = self._may_start() and self._start_trial()
            self._collect()
            may_have_more = may_have_more or self._look_for_more(signals)
            if not (may_have_more or self._running):
                return
            if not (may_have_more and self._has_room()):
                self._wait()

    def _look_for_more(self, signals: Signals) -> bool:
        """Tell, now and then, whether a trial has been put back meanwhile, here or by another machine."""
        if self.limited or not self._has_room():
            return False
        if not self._running:
            return self._await_others(signals)
        if time.monotonic() <= self._next_look:
            return False
        self._next_look = time.monotonic() + _LOOK_SECONDS
        return self.study.has_waiting()

    def _wait(self) -> None:
        self.workers.wait([runs.worker for runs in self._running], _TICK_SECONDS)

    def _has_room(self) -> bool:
        return len(self._running) < max(1, self.search.node.workers)

    def _may_start(self) -> bool:
        """Tell whether the limits allow another trial."""
        node = self.search.node
        limit = None
        if node.hours is not None and time.monotonic() - self._started > 3600 * node.hours:
            limit = format_count(node.hours, "hour")
        elif node.epochs is not None:
            spent = sum(float(result_of(t).get("epochs", 0)) for t in self.study.summary().ended.values())
            limit = format_count(node.epochs, "epoch") if spent >= node.epochs else None
        if limit is not None:
            self.limited = True
            self.progress.say(f"the limit of {limit} is reached: no further trial starts")
        return limit is None

    def _recover(self) -> None:
        for number in self.study.recover():
            self.progress.say(f"trial {number}: its worker is gone; it is resumed")

    def _start_trial(self) -> bool:
        trial = self.study.take()
        if trial is None:
            return False
        runs = TrialRuns(self.search, trial)
        self._running.append(runs)
        self._start_next(runs)
        return True

    def _start_next(self, runs: TrialRuns) -> None:
        """Start the next run of a trial, or end the trial."""
        trial, task = runs.trial, runs.next_task()
        if task is None:
            self._end(runs)
            return
        if runs.worker is None:
            runs.worker = self._worker_for(task.config.trainer)
            self.study.note(trial, phase=runs.phase, folder=runs.folder, worker=runs.worker.identity)
        pruner = None
        if task.may_be_pruned:
            node = self.search.node
            pruner = TrialPruner(
                trial.handle, node.pruners, higher=task.higher, patience=node.patience, reports=trial.reports
            )
        task.folder.mkdir(parents=True, exist_ok=True)
        runs.worker.start(task, pruner, task.folder / LOG)

    def _worker_for(self, node: TrainerConfig) -> Any:
        """Return a worker with a GPU to itself and its share of the processors."""
        count = self.search.node.workers
        gpu = None
        if count > 1 and str(node.devices) in ("auto", "1") and node.accelerator != "cpu":
            used = [runs.worker.gpu for runs in self._running if runs.worker is not None]
            gpu = min(
                self._call_once(_gpus), key=lambda gpu: (used.count(gpu), not self.workers.has_idle(gpu)), default=None
            )
        alone = str(node.devices) == "1" and node.num_nodes == 1
        if count > 0 and gpu is None and not alone and self._call_once(world_size, node) > 1:
            return self.workers.launch()
        return self.workers.get(gpu)

    def _call_once(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function in a worker, since it may have to ask torch for the GPUs, but only once."""
        key = f"{function.__name__} {arguments}"
        if key not in self._answers:
            self._answers[key] = self.workers.call(function, *arguments)
        return cast(R, self._answers[key])

    def _collect(self, *, stopping: bool = False) -> None:
        """Take the results of runs that have ended; while the search stops, no further run of a trial is started."""
        for runs in list(self._running):
            answer = runs.worker.poll()
            if answer is None:
                continue
            result: TaskResult = answer.get()
            runs.results.append(result)
            if result.status == TaskStatus.CRASHED:
                self._requeue(runs, RequeueReason.CRASHED, result.reason, counted=True)
            elif result.status == TaskStatus.INTERRUPTED:
                self._requeue(runs, RequeueReason.INTERRUPTED, result.reason, counted=not stopping)
            elif stopping and result.status == TaskStatus.FINISHED and not runs.is_complete:
                self._free_worker(runs)
                self._requeue(runs, RequeueReason.INTERRUPTED, "stopped between two of its runs", counted=False)
            else:
                if runs.worker.is_single_use:
                    self._free_worker(runs)
                self._start_next(runs)

    def _free_worker(self, runs: TrialRuns) -> None:
        if runs.worker is not None:
            self.workers.give_back(runs.worker)
            runs.worker = None

    def _requeue(self, runs: TrialRuns, why: RequeueReason, reason: str | None, *, counted: bool) -> None:
        """Put back a trial that has no outcome; after too many `counted` attempts it has failed."""
        self._running.remove(runs)
        outcome = runs.incomplete_outcome(reason)
        result = outcome.attributes if why == RequeueReason.CRASHED else {**outcome.attributes, "reason": str(why)}
        if self.study.requeue(runs.trial, why, counted=counted, result=result):
            self.progress.say(f"trial {runs.trial.number}: {reason}; it is resumed")
        else:
            self._tell(runs.trial, outcome)

    def _end(self, runs: TrialRuns) -> None:
        """Record the outcome of a trial, and free its worker."""
        self._running.remove(runs)
        self._free_worker(runs)
        outcome = runs.outcome()
        self.trial_seconds += sum(result.seconds for result in runs.results)
        if self.study.finish(runs.trial, outcome.state, outcome.value, outcome.attributes):
            self._tell(runs.trial, outcome)
        else:
            number = runs.trial.number
            self.progress.say(f"trial {number}: was given to another worker meanwhile; this result is left out")

    def _tell(self, trial: Trial, outcome: TrialOutcome) -> None:
        """Report a trial's outcome; too many failures in a row, before any success, end the search."""
        summary = self.study.summary()
        self._failed_in_a_row = self._failed_in_a_row + 1 if outcome.state == TrialState.FAIL else 0
        self.progress.tell(trial, outcome, summary)
        self.ended_last = summary.left == 0
        limit = self.search.node.failures
        if self._failed_in_a_row >= limit and summary.best is None:
            failed = f"{format_count(limit, 'trial')} failed{' in a row' if limit > 1 else ''}, and none is complete"
            raise ConfigError(
                f"{failed}. The last one failed with: {outcome.reason}\n"
                f"search.failures={limit} ends the search there. Correct the cause, and start under another sweep=NAME."
            )

    def _stop_in_order(self) -> None:
        """Have the runs save a checkpoint, and put their trials back."""
        if self._running:
            count = len(self._running)
            what, them = ("a checkpoint", "it") if count == 1 else ("checkpoints", "them")
            stopping = f"Stopping {format_count(count, 'trial')} after saving {what}."
            self.progress.say(f"{stopping} Press Ctrl-C again to kill {them}.")
        for runs in self._running:
            runs.worker.stop()
        until = time.monotonic() + _STOP_SECONDS
        while self._running and time.monotonic() < until:
            self._collect(stopping=True)
            self._wait()

    def _await_others(self, signals: Signals) -> bool:
        """Wait while other machines run the last trials: True if one is to be taken over, False if none can be."""
        seconds = self.study.recovery_seconds
        until = time.monotonic() + seconds
        while (others := self.study.others_running()) and time.monotonic() < until:
            if signals.signum is not None:
                return False
            self.progress.say(
                f"no trial is left; waiting up to {seconds:.0f} s for {format_count(others, 'trial')} of other "
                "workers, in case one must be taken over"
            )
            self._recover()
            if self.study.has_waiting():
                return True
            time.sleep(0.5)
        return self.study.has_waiting()
