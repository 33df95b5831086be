"""The study of a search: which trials it has, who runs each of them, and how each ended.

The trials are numbered from 0. When the study is made, they are put into Optuna's storage, waiting. Claiming a trial is
atomic: any number of machines share a budget exactly, and the search is done when no trial is left. If the worker or
machine of a trial is gone, the trial is failed, and a new one has the same number, values and reports.
"""

import contextlib
import copy
import functools
import hashlib
import json
import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import optuna
import psutil
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lr_lightning.errors import ConfigError
from lr_lightning.search.methods import SAMPLERS, pruner_of
from lr_lightning.search.settings import Search
from lr_lightning.search.space import Choice, Space, Value
from lr_lightning.tracking.keys import hide_password

HEARTBEAT = 15
"""Seconds between two heartbeats of a running trial."""
SILENCE = 60
"""Seconds without a heartbeat after which a trial's machine is taken for dead."""
_LOCK_SECONDS = 120.0
_OUTAGE_SECONDS = 300.0
_FILL_SECONDS = 60.0
_STOP_SECONDS = 30.0

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message=".*Heartbeat of storage is supposed to be used with Study.optimize.*")
for _name in ("alembic", "sqlalchemy.pool"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class StorageGone(RuntimeError):
    """The storage has not answered for minutes."""


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return hide_password((str(cause).strip() or type(cause).__name__).splitlines()[0])


def patient(call: Callable[P, R]) -> Callable[P, R]:
    """Try a call again for some minutes while the storage does not answer; then raise `StorageGone`."""

    @functools.wraps(call)
    def trying(*args: P.args, **kwargs: P.kwargs) -> R:
        until, wait = time.monotonic() + _OUTAGE_SECONDS, 0.5
        while True:
            try:
                return call(*args, **kwargs)
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
                if time.monotonic() > until:
                    raise StorageGone(f"storage: does not answer any more ({_reason(e)})") from e
                log.warning("the storage does not answer (%s); trying again", _reason(e))
                time.sleep(wait)
                wait = min(10.0, 2 * wait)

    return trying


def _connect(
    url: str, lock: FileLock, on_stale: Callable[[optuna.Study, FrozenTrial], None]
) -> optuna.storages.RDBStorage:
    """Open a storage, and make its tables if it has none; `on_stale` is told of trials without heartbeats."""
    where = hide_password(url)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        engine = {"connect_args": {"timeout": 60}}
    elif url.startswith("postgresql"):
        engine["connect_args"] = {"connect_timeout": 10}
    attempt = 0
    while True:
        attempt += 1
        try:
            with lock:
                return optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=engine,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=SILENCE,
                    heartbeat_stale_trial_callback=on_stale,
                )
        except ImportError as e:
            remedy = " (pip install 'lr-lightning[postgres]')" if url.startswith("postgres") else ""
            raise ConfigError(f"storage: {where} needs a package that is not installed{remedy}: {e}.") from e
        except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, ValueError, RuntimeError) as e:
            # When several machines make the tables at once, all but one fail, and find them the next time.
            if attempt == 5 or not any(text in str(e) for text in ("already exists", "duplicate key")):
                raise ConfigError(
                    f"storage: {where} cannot be opened ({_reason(e)}). Is the server up, and the database made? "
                    "Leave storage out to use a file on this machine."
                ) from e
            time.sleep(0.2 * attempt)


def _lock_of(url: str) -> FileLock:
    """Return a lock among the processes of this machine: SQLite would let two of them claim the same trial."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///")).absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as e:
            raise ConfigError(
                f"storage: no database can be written in {path.parent} ({e.strerror}). Give another tracking.root, "
                "or another place with storage=sqlite:////absolute/file.db."
            ) from e
        return FileLock(f"{path}.lock", timeout=_LOCK_SECONDS)
    mark = hashlib.sha256(hide_password(url).encode()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"lr_lightning-search-{os.getuid()}-{mark}.lock"
    return FileLock(path, timeout=_LOCK_SECONDS)


class RequeueReason(StrEnum):
    """Why a trial ended without a result, so that it is put back."""

    INTERRUPTED = "interrupted"
    CRASHED = "its process crashed"
    GONE = "its worker is gone"


@dataclass
class Trial:
    """A trial that this search runs."""

    number: int
    point: dict[str, Value]
    handle: optuna.Trial = field(repr=False)
    attempt: int = 0  # how many attempts were lost before
    resumes: bool = False  # an earlier attempt may have left a checkpoint or results
    reports: dict[int, float] = field(default_factory=dict)  # of earlier attempts, in the direction of the objective


def number_of(trial: FrozenTrial) -> int:
    """Return the number of a trial in its search: attempts at one trial share it, whereas Optuna counts them."""
    return int(trial.user_attrs.get("trial", trial.number))


def result_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """Return what is recorded of a trial besides its value; empty before its end."""
    found: Mapping[str, Any] = trial.user_attrs.get("result", {})
    return found


def _attempt_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("attempt", 0))


def rank_key(trial: FrozenTrial, *, higher: bool) -> tuple[bool, float, float]:
    """Return a key that sorts the best trial first, equal ones by validation loss, and trials without a value last."""
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return True, 0.0, 0.0
    loss = result_of(trial).get("val_loss")
    return False, -trial.value if higher else trial.value, math.inf if loss is None else float(loss)


@dataclass(frozen=True)
class StudySummary:
    """How far a search has come: the `ended` trials by number, how many are `left`, how many `equal` the best one."""

    ended: dict[int, FrozenTrial]
    left: int
    best: FrozenTrial | None
    equal: int = 0

    @staticmethod
    def of(trials: Sequence[FrozenTrial], limit: float, *, higher: bool) -> "StudySummary":
        """Summarize the trials of a study; those numbered `limit` or more do not count as left."""
        last = {number_of(t): t for t in sorted(trials, key=lambda t: t.number)}
        ended = {number: t for number, t in sorted(last.items()) if t.state.is_finished()}
        left = sum(number < limit for number in last.keys() - ended.keys())
        complete = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
        best = min(complete, key=lambda t: rank_key(t, higher=higher), default=None)
        equal = sum(t.value == best.value for t in complete) if best is not None else 0
        return StudySummary(ended, left, best, equal)


def _this_process() -> dict[str, Any]:
    """Identify this process, so that others on this machine can tell whether it lives."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):  # containers may share a hostname
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
    return {"host": " ".join(parts), "pid": os.getpid(), "born": psutil.Process().create_time()}


def _lives(pid: Any, born: Any) -> bool:
    """Tell whether the process with this id and creation time lives; another one may have its id by now."""
    try:
        process = psutil.Process(int(pid))
        return bool(abs(process.create_time() - float(born)) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, TypeError, ValueError):
        return False


def _await_worker(worker: Any) -> None:
    """Wait for a worker that has lost its search: it saves a checkpoint and ends, or else is killed."""
    if not isinstance(worker, list):
        return
    pid, born = worker
    until = time.monotonic() + _STOP_SECONDS
    while _lives(pid, born):
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.2)


Prepare = Callable[[], Sequence[Mapping[str, Value]]]


class Study:
    """An open study. If it is new, `prepare` returns the points of its first trials; if that raises, none is made."""

    def __init__(self, search: Search, prepare: Prepare = lambda: ()) -> None:
        self.search = search
        self._lock = _lock_of(search.storage)
        self._owner = _this_process()
        self._checked = 0.0
        self._mine: dict[int, int] = {}  # running here: Optuna's number and id of each
        self._beating: threading.Thread | None = None
        self.storage = _connect(search.storage, self._lock, self._replace_stale)
        self.optuna, self.is_new = self._open(prepare)
        self._id = self.storage.get_study_id_from_name(search.name)

    def _open(self, prepare: Prepare) -> tuple[optuna.Study, bool]:
        name, node = self.search.name, self.search.node
        pruner = pruner_of(node.pruners, self.search.validations, node.patience)
        if name not in optuna.get_all_study_names(self.storage):
            start = [dict(point) for point in prepare()]
            direction = cast(Any, self.search.direction)
            with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):  # another machine was faster
                study = optuna.create_study(storage=self.storage, study_name=name, direction=direction, pruner=pruner)
                study.set_user_attr("start", start)
                study.set_user_attr("search", json.dumps(self.search.identity, sort_keys=True))
                return study, True
        study = optuna.load_study(study_name=name, storage=self.storage, pruner=pruner)
        _check_identity(study, self.search)
        return study, False

    @patient
    def fill(self) -> None:
        """Put the trials into a new study, or more of them if more are asked for than before."""
        if not self.is_new:
            self._wait_until_filled()
        with self._lock:
            known = {number_of(trial) for trial in self.trials()}
            for number, point in enumerate(self._points(self.optuna.user_attrs["start"])):
                if number not in known:
                    self.optuna.enqueue_trial(dict(point), user_attrs={"trial": number})
            self.optuna.set_user_attr("filled", True)
            for trial in self.summary().ended.values():  # a kill may come between failing a trial and replacing it
                if trial.state == TrialState.FAIL and "lost" in result_of(trial):
                    self._replace(trial, _attempt_of(trial) + 1)

    def _points(self, start: Sequence[Mapping[str, Value]]) -> list[Mapping[str, Value]]:
        """Return the fixed values of each trial, in a stable order; the sampler chooses the others."""
        limit, rest = self.search.node.n_trials, self.search.space.grid(self.search.base)
        if self.search.node.sampler == "grid":
            return [*start, *(point for point in rest if point not in start)][:limit]
        return [*start, *({} for _ in range((limit or 0) - len(start)))][:limit]

    def _wait_until_filled(self) -> None:
        """Wait until the machine that made the study has filled it, or seems to be gone: it adds no more trials."""
        until, known = time.monotonic() + _FILL_SECONDS, 0
        while not self.optuna.user_attrs.get("filled") and time.monotonic() < until:
            time.sleep(0.2)
            if (now := len(self.trials())) > known:
                until, known = time.monotonic() + _FILL_SECONDS, now

    @patient
    def take(self) -> Trial | None:
        """Claim the next trial and suggest its values; None if no trial is left."""
        with self._lock:
            trial_id = self._claim()
        if trial_id is None:
            return None
        frozen = self.storage.get_trial(trial_id)
        self._mine[frozen.number] = trial_id
        self._start_heartbeat(trial_id)
        try:
            view = copy.copy(self.optuna)  # a sampler for this trial, and no cached trials of before
            view.sampler = _sampler(self.search, number_of(frozen))
            handle = optuna.Trial(view, trial_id)
            handle.set_user_attr("owner", self._owner)
            point = _suggest(handle, self.search.space, self.search.base)
        except BaseException:
            del self._mine[frozen.number]  # without heartbeats it is found and put back
            raise
        attributes = frozen.user_attrs
        reports = dict(frozen.intermediate_values)
        return Trial(number_of(frozen), point, handle, _attempt_of(frozen), "run" in attributes, reports)

    def _claim(self) -> int | None:
        """Claim a waiting trial, which the storage does atomically; without a limit of trials, make one."""
        waiting = self.trials(TrialState.WAITING)
        for trial in sorted(waiting, key=lambda t: (number_of(t), t.number)):
            if number_of(trial) >= self._limit:
                break
            trial_id = self._id_of(trial.number)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                if self.storage.set_trial_state_values(trial_id, state=TrialState.RUNNING):
                    return trial_id
        if self.search.node.n_trials is None and self.search.node.sampler != "grid":
            handle = self.optuna.ask()
            if "trial" not in handle.user_attrs:  # it is new
                handle.set_user_attr("trial", handle.number)
            return self._id_of(handle.number)
        return None

    def _id_of(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _start_heartbeat(self, trial_id: int) -> None:
        with contextlib.suppress(SQLAlchemyError, optuna.exceptions.StorageInternalError):
            self.storage.record_heartbeat(trial_id)
        if self._beating is None:
            self._beating = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
            self._beating.start()

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT):
            for trial_id in list(self._mine.values()):
                with contextlib.suppress(Exception):  # the database may be away for a while
                    self.storage.record_heartbeat(trial_id)

    @patient
    def note(self, trial: Trial, *, phase: str, folder: Path, worker: Sequence[Any] | None) -> None:
        """Record the phase, folder and process of a trial before it runs; a pruner compares the trials of one phase.

        `worker` is the id and creation time of the process that trains, so that a later search can wait for its end.
        """
        trial.handle.set_user_attr("run", {"phase": phase, "folder": str(folder), "worker": worker})

    @patient
    def finish(
        self, trial: Trial, state: TrialState, value: float | None, result: Mapping[str, Any] | None = None
    ) -> bool:
        """Record the result of a trial; False if this machine was taken for dead and another one has the trial."""
        try:
            trial.handle.set_user_attr("result", dict(result or {}))
            trial.handle.study.tell(trial.handle, value, state=state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        finally:
            self._mine.pop(trial.handle.number, None)
        return True

    @patient
    def requeue(
        self, trial: Trial, why: RequeueReason, *, counted: bool = False, result: Mapping[str, Any] | None = None
    ) -> bool:
        """Put back a trial without a result, so that a free worker resumes it; False after too many attempts.

        If it is `counted`, it has used one of its attempts; a stop of the search itself should use none.
        """
        frozen = self.storage.get_trial(self._id_of(trial.handle.number))
        self._mine.pop(frozen.number, None)
        return self._fail(frozen, why, trial.attempt + counted, result)

    @patient
    def recover(self) -> list[int]:
        """Put back trials whose search is gone, at once on this machine, after a silence on others; return them."""
        if self._checked and time.monotonic() - self._checked < HEARTBEAT:
            return []
        self._checked = time.monotonic()
        before = {number_of(t) for t in self.trials(TrialState.WAITING)}
        for trial in self.trials(TrialState.RUNNING):
            if trial.number in self._mine:
                continue
            owner = trial.user_attrs.get("owner")
            if owner is None:  # claimed a moment ago, or its search was killed in that moment
                started = trial.datetime_start
                gone = started is not None and (datetime.now() - started).total_seconds() > SILENCE
            else:
                gone = owner.get("host") == self._owner["host"] and not _lives(owner.get("pid"), owner.get("born"))
            if gone:
                _await_worker(trial.user_attrs.get("run", {}).get("worker"))
                self._fail(trial, RequeueReason.GONE, _attempt_of(trial) + 1)
        optuna.storages.fail_stale_trials(self.optuna)
        return sorted({number_of(t) for t in self.trials(TrialState.WAITING)} - before)

    def _replace_stale(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._replace(trial, _attempt_of(trial) + 1)

    def _fail(
        self, trial: FrozenTrial, why: RequeueReason, attempt: int, result: Mapping[str, Any] | None = None
    ) -> bool:
        trial_id = self._id_of(trial.number)
        attributes = {"reason": str(why), **(result or {}), "lost": why.name}
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another machine was first
            self.storage.set_trial_user_attr(trial_id, "result", attributes)
            if self.storage.set_trial_state_values(trial_id, state=TrialState.FAIL):
                return self._replace(trial, attempt)
        return True

    def _replace(self, trial: FrozenTrial, attempt: int) -> bool:
        if attempt > self.search.node.retries:
            return False
        kept = {key: value for key, value in trial.user_attrs.items() if key in ("trial", "run")}
        self.optuna.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                user_attrs={**kept, "attempt": attempt},
                system_attrs={k: v for k, v in trial.system_attrs.items() if k == "fixed_params"},
            )
        )
        return True

    @property
    def _limit(self) -> float:
        """The number of trials that this search asks for; the study has more if another search asked for more."""
        return math.inf if self.search.node.n_trials is None else self.search.node.n_trials

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states, or all."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    @patient
    def summary(self) -> StudySummary:
        """Summarize how far the search has come, with one query."""
        return StudySummary.of(self.trials(), self._limit, higher=self.search.higher)

    @patient
    def has_waiting(self) -> bool:
        """Tell whether a trial waits."""
        return any(number_of(trial) < self._limit for trial in self.trials(TrialState.WAITING))

    @patient
    def others_running(self) -> int:
        """Count the trials that other machines run."""
        return sum(t.number not in self._mine for t in self.trials(TrialState.RUNNING))

    @property
    def recovery_seconds(self) -> float:
        """Return the longest time until a machine that died is noticed."""
        return SILENCE + 2 * HEARTBEAT


def _check_identity(study: optuna.Study, search: Search) -> None:
    """Refuse a study of that name that searches something else."""
    until = time.monotonic() + 10
    while "search" not in (attrs := study.user_attrs):
        if time.monotonic() > until:
            where = f"{hide_password(search.storage)} has a study '{study.study_name}'"
            raise ConfigError(f"sweep: {where} that no search has finished making. Give another sweep=NAME.")
        time.sleep(0.2)
    theirs, ours = json.loads(attrs["search"]), json.loads(json.dumps(search.identity))
    differences = [
        f"{key}: there {_short(theirs.get(key))}, here {_short(ours.get(key))}"
        for key in ours
        if ours[key] != theirs.get(key)
    ]
    if differences:
        raise ConfigError(
            f"sweep: '{study.study_name}' is another search already ({'; '.join(differences)}). "
            "Give another sweep=NAME, or the same search to resume it."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _suggest(trial: optuna.Trial, space: Space, base: Mapping[str, Value]) -> dict[str, Value]:
    """Suggest a value for every key whose condition is met."""
    point: dict[str, Value] = {}
    for key, domain in space.keys.items():
        if not space.active(key, point, base):
            continue
        if isinstance(domain, Choice):
            point[key] = trial.suggest_categorical(key, domain.values)
        elif domain.integer:
            low, high, step = int(domain.low), int(domain.high), int(domain.step or 1)
            point[key] = trial.suggest_int(key, low, high, step=step, log=domain.log)
        else:
            sampled = trial.suggest_float(key, domain.low, domain.high, step=domain.step, log=domain.log)
            point[key] = domain.short(sampled)
    return point


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial; its seed depends on the trial's number alone, not on the machine."""
    seed = int(np.random.SeedSequence([search.node.seed, number]).generate_state(1)[0])
    return SAMPLERS[search.node.sampler](seed, search.node.seed)
