"""The MLflow logger: Lightning's, but buffered, and never in the way of training."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.loggers.mlflow import MLFlowLogger

from lr_lightning.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking.base import RunLogger
from lr_lightning.tracking.keys import JOB_TAG
from lr_lightning.tracking.local_log import (
    LOG_NAME,
    RUN_KEY_TAG,
    History,
    MetricLog,
    Record,
    SendState,
    load_state,
    refuse_other_run,
    refuse_state_of_other_run,
    unique_dir,
)
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from lr_lightning.tracking.rates import write_rates
from lr_lightning.tracking.store import Store
from lr_lightning.tracking.uploader import Sender, SenderThread

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# A first start on this machine makes the database, one process after another; a server answers or is down.
_LOCAL_CONTACT_SECONDS = 120.0
_SERVER_CONTACT_SECONDS = 10.0
_DRAIN_SECONDS = 15.0
_LOCAL_DRAIN_SECONDS = 60.0  # another program may hold the database, and will let go of it


class MLflowLogger(RunLogger, MLFlowLogger):
    """Logs a run to an MLflow store, by way of a complete local log.

    Everything is written to ``<output_dir>/metrics.jsonl`` first; a thread copies it to the store. So training never
    waits for the store, a store that is down loses nothing (``scripts/replay.py`` sends the rest later), and a resumed
    run knows what it has stored.

    Args:
        store: The store, from :func:`~lr_lightning.tracking.store.open_store`.
        experiment: Name of the MLflow experiment; made where there is none.
        output_dir: Folder of the run's files, of this run alone. By default a new one below ``<store.root>/runs``.
        run_name: Name of the run; MLflow invents one where there is none.
        run_id: Go on with this run.
        tags: Tags set at the start; a new run is also tagged ``job=train``, unless they say otherwise.
        resume: Go on with the run that ``output_dir`` holds; ``run_id`` implies it.
        end_on_finalize: Whether the end of ``fit`` or ``test`` ends the run. If not, call :meth:`end`.

    Example:
        >>> from lr_lightning.tracking import MLflowLogger, open_store
        >>> logger = MLflowLogger(open_store("mlruns"), experiment="digits")  # nothing is written yet
        >>> logger.name
        'digits'
    """

    def __init__(
        self,
        store: Store,
        experiment: str = "lr_lightning",
        output_dir: Path | str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
        *,
        resume: bool = False,
        end_on_finalize: bool = True,
    ) -> None:
        resume = resume or run_id is not None
        super().__init__(
            output_dir if output_dir is not None else unique_dir(store.root / "runs"),
            run_name,
            tags if resume else {JOB_TAG: "train", **(tags or {})},
            resume=resume,
            end_on_finalize=end_on_finalize,
        )
        if not experiment.strip():
            raise ValueError(f"experiment must be a name, got {experiment!r}")
        self.store = store
        self.experiment_name = experiment
        self._given_run_id = run_id
        self._thread: SenderThread | None = None
        self._run_lock: RunLock | None = None
        self._state: SendState | None = None
        self._wal = MetricLog(self.output_dir / LOG_NAME)

    # ---- opening and closing

    def _holder(self) -> Holder:
        return Holder.here(self.store.public_uri, str(self.output_dir))

    def _open(self, resume: bool) -> History:
        history = self._wal.history()
        state = self._find_state(resume, history)
        self._wal.repair()
        self._first_tags[RUN_KEY_TAG] = state.key  # so that the log says which state and which record are its own
        state = replace(state, offset=min(state.offset, self._wal.size))
        state.save(self.output_dir)
        if state.run_id is not None:
            self._hold_run(state.run_id)
        sender = Sender(self.output_dir, self.store, state, self._hold_run)
        self._thread = SenderThread(sender, patience=3 if self.store.is_local else 1)
        self._thread.start()
        try:
            self._meet_store(self._thread)
            run_id = sender.state.run_id
            if resume and run_id is not None and (history.last_time == 0 or self._store_answers()):
                history = self._with_rows_of_store(history, run_id)
        except BaseException:
            self._close()
            raise
        return history

    def _find_state(self, resume: bool, history: History) -> SendState:
        """Read the state of the run in the output directory, adjusted to the store and the run that were asked for."""
        new: dict[str, Any] = {"run_id": self._given_run_id}
        root = str(self.store.root)
        artifacts = str(self.store.artifact_root) if self.store.artifact_root else None
        state = load_state(self.output_dir)
        if state is None:
            if RUN_KEY_TAG in history.tags:  # its state was removed; the store may have the run
                new |= {"key": history.tags[RUN_KEY_TAG], "asked": True}
            return SendState(self.store.uri, root, artifacts, self.experiment_name, self.run_name, **new)
        refuse_other_run(self.output_dir, resume)
        refuse_state_of_other_run(self.output_dir, state, history)
        asked = self._given_run_id
        if state.uri != self.store.uri:
            # Another store than before: it gets the whole log.
            name = self.run_name or state.run_name
            return SendState(self.store.uri, root, artifacts, self.experiment_name, name, key=state.key, **new)
        if asked is not None and state.run_id is not None and asked != state.run_id:
            raise TrackingError(
                f"{self.output_dir}: holds run {state.run_id}, not {asked}. Give that run's own folder."
            )
        return replace(state, run_id=state.run_id or asked)

    def _meet_store(self, thread: SenderThread) -> None:
        """Wait a little for the store's first answer, so that a wrong address or name is an error before training."""
        patience = _LOCAL_CONTACT_SECONDS if self.store.is_local else _SERVER_CONTACT_SECONDS
        if not thread.contact.wait(patience):
            log.warning(
                "the tracking store %s has not answered in %.0f s. Training goes on; rows are kept and sent later.",
                self.store.public_uri,
                patience,
            )
        if isinstance(thread.error, TrackingError):
            raise thread.disk_error or thread.error

    def _store_answers(self) -> bool:
        return self._thread is not None and self._thread.error is None and self._thread.contact.is_set()

    def _with_rows_of_store(self, history: History, run_id: str) -> History:
        """Add what the store has of the run and its local log has not: the log was lost, or cut short."""
        if not self._store_answers():
            raise TrackingError(
                f"run {run_id} cannot be resumed: {self.output_dir} holds no log of it, and the store does not answer."
            )
        run = self.store.run(run_id)
        newest = {
            metric.key: metric
            for metric in run.data._metric_objs
            if int(metric.step) > history.last_steps.get(metric.key, -1)
        }
        if not newest:
            return history
        if history.last_time:
            self._refuse_if_gone_on_with_elsewhere(run_id, run.data.tags.get("output_dir"))
            log.warning("the store has rows of this run that %s lacks: they are not logged again", self._wal.path)
        times = [int(metric.timestamp) for metric in newest.values()]
        return History(
            last_steps=history.last_steps | {key: int(metric.step) for key, metric in newest.items()},
            last_values=history.last_values | {key: float(metric.value) for key, metric in newest.items()},
            params=dict(run.data.params) | history.params,
            tags=history.tags,
            status=history.status or run.info.status,
            last_time=max([history.last_time, *times]),
        )

    def _refuse_if_gone_on_with_elsewhere(self, run_id: str, tag: str | None) -> None:
        """Refuse a copy of a run's folder, where another copy has the rows that this one lacks.

        Raises:
            TrackingError: There is another one, of the same run.
        """
        other = Path(tag or self.output_dir)
        if not other.is_dir() or other.samefile(self.output_dir):
            return
        state = load_state(other)
        if state is not None and state.run_id == run_id:
            raise TrackingError(
                f"run {run_id} was gone on with in {other}, and has rows that {self.output_dir} lacks. Go on with that "
                "folder, or give another tracking.root to this one."
            )

    def _hold_run(self, run_id: str) -> None:
        if self._run_lock is None:
            lock = run_lock(self.store.lock_dir, run_id)
            lock.acquire(self._holder())
            self._run_lock = lock

    def _close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            complete = thread.close(_LOCAL_DRAIN_SECONDS if self.store.is_local else _DRAIN_SECONDS)
            self._state = thread.sender.state
            if not complete:
                why = f" ({thread.error})" if thread.error else ""
                log.warning(
                    "%d records were not sent to the tracking store%s. Send them later: python scripts/replay.py %s",
                    thread.sender.pending(),
                    why,
                    self.output_dir,
                )
        if self._run_lock is not None:
            self._run_lock.release()
            self._run_lock = None

    def _finish(self, status: str) -> None:
        if self._active:
            with suppress(OSError):  # it comes again below, where the status cannot be written either
                self.flush()
                self._keep_rates()
        thread = self._thread
        try:
            super()._finish(status)
        except OSError:
            self._tell_store("FAILED" if status == "FINISHED" else status)
            raise
        if thread is not None and thread.disk_error is not None:
            self._tell_store(status)

    def _tell_store(self, status: str) -> None:
        """Set the status past the local log and its state, whose disk has no room for it."""
        state = self._sender_state()
        if state is not None and state.run_id is not None:
            with suppress(StoreUnavailable):
                self.store.end_if_running(state.run_id, status)

    def _keep_rates(self) -> None:
        """Keep the rate of every step as a table: MLflow's charts show 320 points of it."""
        try:
            path = write_rates(self._wal, self.output_dir)
        except OSError as error:
            log.warning("the table of learning rates could not be written: %s", error)
            return
        if path is not None:
            self.log_artifact(path)

    # ---- writing

    def _write(self, records: list[Record]) -> None:
        if not records:
            return
        self._wal.append(records)
        if self._thread is not None:
            self._thread.wake()

    def _sync(self) -> None:
        self._wal.sync()

    # ---- Lightning's interface

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """The MlflowClient. While the store has not answered, a stand-in that takes every call and does nothing."""
        if not self._active and not self._ended:
            self.start()
        if self._thread is not None and (self._thread.error is not None or not self._thread.contact.is_set()):
            return _DummyExperiment()  # type: ignore[return-value]
        return self.store.client()

    def _sender_state(self) -> SendState | None:
        return self._thread.sender.state if self._thread is not None else self._state

    @property
    def run_id(self) -> str | None:
        """The run's id; None on other ranks, and as long as the store has not answered."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return None
        if not self._active and not self._ended and self._state is None:
            self.start()
        state = self._sender_state()
        return state.run_id if state is not None else None

    @property
    def experiment_id(self) -> str | None:
        """The experiment's id; None where :attr:`run_id` is."""
        if self.run_id is None or self._thread is None:
            return None
        return self._thread.sender.experiment_id

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """The run's id, or the output directory's name as long as the store has not given one."""
        return self.run_id or self.output_dir.name
