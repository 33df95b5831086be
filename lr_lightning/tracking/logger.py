"""The run logger: a complete local log, which can also be uploaded to an MLflow store and rendered as CSV."""

import atexit
import logging
import os
import shutil
import time
import uuid
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.loggers.mlflow import MLFlowLogger

from lr_lightning._checks import check_choice
from lr_lightning._loggers import DRAWING, NOTE_TAG
from lr_lightning.errors import ArgumentError, TrackingError
from lr_lightning.tracking import local_log
from lr_lightning.tracking.keys import JOB_TAG, MAX_PARAM, MAX_TAG, RUN_KEY_TAG, clean_key, clip, flatten
from lr_lightning.tracking.local_log import (
    Artifact,
    CSVFiles,
    LocalLog,
    LogEntry,
    LoggedRun,
    Metric,
    Param,
    Status,
    Tag,
    UploadState,
    write_lr_table,
)
from lr_lightning.tracking.locks import Holder, RunLock
from lr_lightning.tracking.store import Store
from lr_lightning.tracking.uploader import UploadThread

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_painters: dict[int, ThreadPoolExecutor] = {}  # by process, since a forked one has no threads


def _draw_in_thread(figure: "Figure", path: Path) -> "Future[None]":
    """Draw a figure into a file after those that wait already; at once where the interpreter is about to end."""

    def draw() -> None:
        with DRAWING:
            figure.savefig(path, bbox_inches="tight")

    if (process := os.getpid()) not in _painters:
        _painters[process] = ThreadPoolExecutor(1, "figures")
    try:
        return _painters[process].submit(draw)
    except RuntimeError:  # the interpreter takes no new work
        drawn: Future[None] = Future()
        draw()
        drawn.set_result(None)
        return drawn


class RunLogger(Logger):
    """Log one run to ``<output_dir>/metrics.jsonl``, and on request to an MLflow store and to CSV files.

    The local log is the record. A thread copies it to the store, so training never waits for the store, a store that is
    down loses nothing (``scripts/replay.py`` uploads the rest later), and a resumed run knows what it has logged.

    Only global rank 0 logs; on other ranks every method does nothing. Nothing happens before the first use (or
    :meth:`start`): no file, no lock, no import of MLflow. Rows wait in memory until more than 2000 wait, or the
    oldest for more than 5 seconds: the first log call after that writes them. :meth:`flush` writes them at once, as
    does the end of the run. Use the logger from one thread.

    Args:
        output_dir: Folder of the run's files, for this run alone. Default: a new folder in ``<store.root>/runs``.
        store: The MLflow store, from :func:`~lr_lightning.tracking.store.open_store`, or None.
        experiment: Name of the MLflow experiment, which is created if it does not exist.
        run_name: Name of the run. By default MLflow invents one.
        run_id: The run of the store to resume.
        tags: Tags set at the start. A new run is also tagged ``job=train``, unless ``tags`` has another ``job``.
        csv: Also keep the run as ``metrics.csv``, ``params.yaml``, ``summary.json`` and ``run.json``.
        resume: Resume the run in ``output_dir``; implied by ``run_id``. Rows of steps that were logged are dropped.
        end_on_finalize: Whether the end of ``fit`` or ``test`` ends the run. If not, call :meth:`end`.

    Raises:
        ArgumentError: An argument is missing, or ``experiment`` is empty.

    Example:
        >>> from lr_lightning.tracking import RunLogger, open_store
        >>> logger = RunLogger(store=open_store("mlruns"), experiment="digits")  # nothing is written yet
        >>> logger.name
        'digits'
    """

    def __init__(
        self,
        output_dir: Path | str | None = None,
        store: Store | None = None,
        *,
        experiment: str = "lr_lightning",
        run_name: str | None = None,
        run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
        csv: bool = False,
        resume: bool = False,
        end_on_finalize: bool = True,
    ) -> None:
        super().__init__()
        if not experiment.strip():
            raise ArgumentError(f"must be a name, got {experiment!r}", "experiment")
        if store is None and run_id is not None:
            raise ArgumentError(f"{run_id!r} needs the store of that run: give store=open_store(...)", "run_id")
        if output_dir is None:
            if store is None:
                raise ArgumentError("must be given if there is no store", "output_dir")
            output_dir = store.root / "runs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.store = store
        self.experiment_name = experiment
        self.run_name = run_name
        self._given_run_id = run_id
        self._resume = resume or run_id is not None
        self._first_tags = dict(tags or {}) if self._resume else {JOB_TAG: "train", **(tags or {})}
        self._end_on_finalize = end_on_finalize
        self._active = False
        self._ended = False
        self._buffer = local_log.RowBuffer()
        self._last_time = 0
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._log = LocalLog(self.output_dir / local_log.LOG_NAME)
        self._csv = CSVFiles(self.output_dir, run_name or self.output_dir.name) if csv else None
        self._upload: UploadThread | None = None
        self._drawings: list[tuple[Future[None], Artifact]] = []

    # ---- start

    @rank_zero_only
    def start(self) -> None:
        """Create the run, or resume it. Every other method calls this; call it first to meet errors early.

        Raises:
            TrackingError: The output directory or the store cannot be used.
            RunInUse: Another process is running this run.
            OSError: The disk of the output directory is full.
        """
        if self._active:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        holder = Holder.here(self.store.public_uri if self.store else "", str(self.output_dir))
        self._lock = RunLock(self.output_dir / local_log.LOCK_NAME, f"the run in {self.output_dir}")
        self._lock.acquire(holder, timeout=0)
        try:
            logged = self._open_log()
            if self.store is not None:
                logged = self._open_upload(self.store, logged, holder)
        except BaseException:
            self._lock.release()
            raise
        self._active, self._ended = True, False
        self._buffer.resume(logged)
        self._last_time = max(self._last_time, logged.last_time + 1)
        self._params = dict(logged.params)
        self._pid = os.getpid()
        atexit.register(self._at_exit)
        try:
            self._write([Status("RUNNING", self._now())])
            self.set_tags({"output_dir": str(self.output_dir), **self._first_tags})
        except OSError:
            with suppress(OSError):
                self._finish("FAILED")
            raise

    def _open_log(self) -> LoggedRun:
        """Repair the local log, bring the CSV files in line with it, and return what the run has logged."""
        self._log.repair()
        logged = LoggedRun.of(self._log.records())
        imported: Sequence[LogEntry] = self._csv.read() if self._csv and not logged.last_time else ()
        if not self._resume and (logged.last_time or imported or (self.output_dir / local_log.STATE_NAME).exists()):
            raise TrackingError(
                f"{self.output_dir}: already holds the log of a run. Give resume=True to resume it, or another folder."
            )
        if imported:  # the log was removed
            self._log.append(imported)
            logged = LoggedRun.of(imported)
        if self._csv is not None:
            self._csv.rewrite(self._log.records())
        return logged

    def _open_upload(self, store: Store, logged: LoggedRun, holder: Holder) -> LoggedRun:
        """Start the upload, and return what the run has logged, here or only in the store."""
        state = self._upload_state(store, logged)
        self._first_tags[RUN_KEY_TAG] = state.key  # so that the log tells which state and which run belong to it
        upload = UploadThread(self.output_dir, store, replace(state, offset=min(state.offset, self._log.size)), holder)
        try:
            upload.connect(at_once=self._resume)
            if self._resume:
                logged = upload.with_rows_of_store(logged)
        except BaseException:
            upload.close()
            raise
        self._upload = upload
        return logged

    def _upload_state(self, store: Store, logged: LoggedRun) -> UploadState:
        """Return the state to continue from, adjusted to the store and the run that were asked for."""
        run_id = self._given_run_id
        state = UploadState.load(self.output_dir)
        if state is not None:
            state.check_log(self.output_dir, logged)
            state = state.moved(logged.tags.get("output_dir"), self.output_dir)
            if state.uri == store.uri:
                if run_id is not None and state.run_id is not None and run_id != state.run_id:
                    raise TrackingError(
                        f"{self.output_dir}: holds run {state.run_id}, not {run_id}. Give that run's own folder."
                    )
                return replace(state, run_id=state.run_id or run_id)
        new = UploadState(
            uri=store.uri,
            root=str(store.root),
            artifact_root=str(store.artifact_root) if store.artifact_root else None,
            experiment=self.experiment_name,
            run_name=self.run_name,
            run_id=run_id,
            started=logged.first_time or int(time.time() * 1000),
        )
        if state is not None:  # another store than before: the whole log is uploaded to it; it may have the run
            return replace(new, run_name=self.run_name or state.run_name, key=state.key, asked=True)
        if RUN_KEY_TAG in logged.tags:  # the state was removed; the store may have the run
            return replace(new, key=logged.tags[RUN_KEY_TAG], asked=True)
        return new

    def _now(self) -> int:
        """Return milliseconds since 1970, never less than before: MLflow hides a new value with an earlier time."""
        now = int(time.time() * 1000)
        self._last_time = now if now >= self._last_time else self._last_time + 1
        return self._last_time

    def _ensure_started(self) -> bool:
        """Start the run if it has not started. Returns False after :meth:`end`, since nothing may follow it."""
        if self._ended:
            log.warning("the run has ended: what is logged now is dropped")
            return False
        if not self._active:
            self.start()
        return True

    # ---- end

    @rank_zero_only
    def end(self, status: str) -> None:
        """End the run: write everything, set ``status``, free the locks. A second call does nothing.

        Args:
            status: FINISHED, FAILED or KILLED; another one is an ArgumentError.

        Raises:
            OSError: The disk is full. The store has been told the status.
        """
        check_choice("status", status, ("FINISHED", "FAILED", "KILLED"))
        self._finish(status)
        self._ended = True

    def _finish(self, status: str) -> None:
        if not self._active:
            return
        disk_is_full = False
        try:
            self.flush()
            self._keep_drawings(wait=True)
            self._keep_lr_table()
            self._write([Status(status, self._now())])
            self._log.sync()
        except OSError:
            disk_is_full = True
            raise
        finally:
            self._active = False
            atexit.unregister(self._at_exit)
            if self._upload is not None:
                self._upload.close()
                if disk_is_full or self._upload.disk_error is not None:
                    self._upload.set_status("FAILED" if disk_is_full and status == "FINISHED" else status)
            self._lock.release()

    def _keep_lr_table(self) -> None:
        """Store the learning rate of every step as a table, since MLflow's charts show only 320 points of it."""
        if self.store is None:
            return
        try:
            path = write_lr_table(self._log, self.output_dir)
            if path is not None:
                self.log_artifact(path)
        except OSError as error:  # the run can end without it
            log.warning("the table of learning rates could not be written: %s", error)

    def _at_exit(self) -> None:
        if os.getpid() == self._pid:  # not in a forked child
            self.end("KILLED")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Flush at Lightning's end of ``fit``, ``validate`` or ``test``; end the run if ``end_on_finalize``.

        A run that ends here is resumed if more is logged later, for example by ``trainer.test()``.
        """
        if self._active and self._end_on_finalize:
            self._finish("FINISHED" if status in ("success", "finished") else "FAILED")
            self._resume = True
        self.flush()

    # ---- metrics

    @property
    def nonfinite(self) -> dict[str, int]:
        """How often each metric was nan or infinite. Such values are not stored."""
        return self._buffer.nonfinite

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of one step; None means step 0. Lightning's ``epoch`` is kept only when it changes.

        Text is dropped with a warning; nan and infinities are counted and dropped.
        """
        if self._ensure_started():
            self._buffer.add_metrics(metrics, 0 if step is None else int(step), self._now())
            self._keep_drawings()
            if self._buffer.is_due():
                self.flush()

    @rank_zero_only
    def log_rows(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Log rows of key, value, step, and time in milliseconds since 1970."""
        if self._ensure_started():
            for key, value, step, at in rows:
                self._buffer.add(key, value, step, at)
            self._keep_drawings()
            if self._buffer.is_due():
                self.flush()

    @rank_zero_only
    def copy_rows(self, rows: Iterable[Metric]) -> None:
        """Begin a run with rows of another one, which it starts from; their steps are not logged again."""
        if self._ensure_started():
            copied = [*rows]
            self._write(copied)
            self._buffer.resume(LoggedRun.of(copied))

    def reserve(self, keys: Iterable[str]) -> None:
        """Accept these metrics from :meth:`log_rows` only, since a recorder logs them at every step."""
        self._buffer.reserve(keys)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        """Log single values as ``summary/<name>``, at step 0. An unchanged value is not stored again."""
        if self._ensure_started():
            self._buffer.add_summary(values, self._now())
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write buffered rows to the local log, where they survive a kill of the process."""
        if self._active:
            self._keep_drawings()
        if self._active and (rows := self._buffer.rows):
            self._log.append(rows)
            # Not before the append: an interruption in between writes a row twice, which the store keeps once.
            self._buffer.rows = []
            self._pass_on(rows)

    def _write(self, records: Sequence[LogEntry]) -> None:
        if records:
            self._log.append(records)
            self._pass_on(records)

    def _pass_on(self, records: Sequence[LogEntry]) -> None:
        """Render and upload what the local log has just received."""
        if self._upload is not None:
            self._upload.wake()
        if self._csv is not None:
            self._csv.append(records)

    # ---- params, tags, artifacts

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None, *args: Any, **kwargs: Any) -> None:
        """Log params, with nested ones dotted, each up to 6000 characters.

        A param never changes: one that has another value in a resumed run is stored as the tag ``resumed.<param>``.
        """
        if not self._ensure_started():
            return
        records: list[LogEntry] = []
        changed: dict[str, object] = {}
        given = vars(params) if isinstance(params, Namespace) else params or {}
        for name, value in flatten(given).items():
            key, text = clean_key(name), clip(value, MAX_PARAM)
            if key not in self._params:
                self._params[key] = text
                records.append(Param(key, text))
            elif self._params[key] != text:
                changed[f"resumed.{key}"] = text
        self._write(records)
        self.set_tags(changed)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags of the run. A later value replaces an earlier one."""
        if not self._ensure_started():
            return
        new = {clean_key(key): clip(value, MAX_TAG) for key, value in tags.items()}
        records = [Tag(key, text) for key, text in new.items() if self._tags.get(key) != text]
        self._tags.update(new)
        self._write(records)

    def log_note(self, text: str) -> None:
        """Set the run's description, which MLflow shows as Markdown at the top of the run's page."""
        self.set_tags({NOTE_TAG: text})

    @rank_zero_only
    def log_artifact(self, path: Path | str, artifact_path: str | None = None) -> None:
        """Store a file or folder with the run, in folder ``artifact_path`` of its artifacts.

        One from outside the output directory is copied there first: the upload may happen when the original is gone.

        Raises:
            FileNotFoundError: There is no such file.
            ArgumentError: ``artifact_path`` leads out of the run's artifacts, or the folder contains the copy.
        """
        if not self._ensure_started():
            return
        source = Path(os.path.abspath(path))  # without "..", by which it could seem to lie inside
        if not source.exists():
            raise FileNotFoundError(f"log_artifact: no such file: {source}")
        name = _check_artifact_name(f"{artifact_path}/{source.name}" if artifact_path else source.name)
        if not source.is_relative_to(os.path.abspath(self.output_dir)):
            copy = self.output_dir / "artifacts" / name
            if source.is_dir() and copy.resolve().is_relative_to(source.resolve()):
                raise ArgumentError(
                    f"log_artifact: {source} would be copied into itself, to {copy}. Give a folder beside the output "
                    "directory, or single files."
                )
            self._make_parent(copy)
            if source.is_dir():
                source = shutil.copytree(source, copy, dirs_exist_ok=True)
            else:
                source = shutil.copyfile(source, copy)
        self._write([self._artifact(source, artifact_path)])

    @rank_zero_only
    def log_text(self, text: str, artifact_file: str) -> None:
        """Store ``text`` as file ``artifact_file`` of the run's artifacts, such as ``"config/resolved.yaml"``."""
        if self._ensure_started():
            path, folder = self._artifact_file(artifact_file)
            path.write_text(text, encoding="utf-8")
            self._write([self._artifact(path, folder)])

    @rank_zero_only
    def log_figure(self, figure: "Figure", artifact_file: str) -> None:
        """Store a matplotlib figure as file ``artifact_file`` of the run's artifacts, such as ``"plots/lr.png"``.

        A thread draws it, so do not change the figure, or matplotlib's ``rcParams`` for it, afterwards. The end of the
        run waits for it.
        """
        if self._ensure_started():
            path, folder = self._artifact_file(artifact_file)
            self._drawings.append((_draw_in_thread(figure, path), self._artifact(path, folder)))

    def _keep_drawings(self, *, wait: bool = False) -> None:
        """Record the figures that have been drawn, in the order in which they were logged."""
        while self._drawings and (wait or self._drawings[0][0].done()):
            drawn, artifact = self._drawings.pop(0)
            try:
                drawn.result()
            except Exception as error:  # the run can end without it
                log.warning("%s could not be drawn: %s: %s", artifact.path, type(error).__name__, error)
            else:
                self._write([artifact])

    def _artifact_file(self, name: str) -> tuple[Path, str | None]:
        """Return the local path of artifact ``name``, whose folder is created, and its folder in the store."""
        relative = _check_artifact_name(name)
        path = self.output_dir / "artifacts" / relative
        self._make_parent(path)
        return path, str(relative.parent) if len(relative.parts) > 1 else None

    def _artifact(self, path: Path, folder: str | None) -> Artifact:
        """Return the record of a file in the output directory, which may move before it is uploaded."""
        return Artifact(os.path.relpath(path, self.output_dir), folder)

    def _make_parent(self, path: Path) -> None:
        """Make a file's folder in the output directory, but not that itself: where it moved from, nothing is made."""
        os.stat(self.output_dir)
        path.parent.mkdir(parents=True, exist_ok=True)

    # ---- Lightning's interface

    @property
    def save_dir(self) -> str:
        """The output directory."""
        return str(self.output_dir)

    @property
    def name(self) -> str:
        """The experiment's name; without a store, the name of the run or of the output directory."""
        return self.experiment_name if self.store else self.run_name or self.output_dir.name

    @property
    def version(self) -> str:
        """The run's id, or the output directory's name if there is no id (yet)."""
        return self.run_id or self.output_dir.name

    @property
    def run_id(self) -> str | None:
        """The run's id in the store; None on other ranks, without a store, and until the store has answered."""
        if self.store is not None and self._upload is None and not self._ended:
            self.start()
        return self._connected().run_id if self._upload is not None else None

    @property
    def experiment_id(self) -> str | None:
        """The experiment's id in the store; None where :attr:`run_id` is None."""
        return self._upload.uploader.experiment_id if self.run_id is not None and self._upload is not None else None

    @property
    def is_connected(self) -> bool:
        """Whether the store answered when it was last asked; False while a run has not waited for it."""
        return self._upload is not None and self._upload.is_connected

    def _connected(self) -> UploadThread:
        """Return the upload once the store has answered: the start of a run may not have waited for it."""
        upload = cast(UploadThread, self._upload)
        if not upload.has_contact and upload.is_alive():
            upload.await_contact()
        return upload

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """The MlflowClient. Without a store, and until it has answered, a stand-in that ignores every call."""
        if not self._active and not self._ended:
            self.start()
        late = self._upload is not None and not self._upload.has_contact
        return cast("MlflowClient", (None if late else self._client()) or _LateClient(self))

    def _client(self) -> object:
        if self.store is None or self._upload is None or not self._connected().is_connected:
            return None
        return self.store.client()


def _check_artifact_name(name: str) -> PurePosixPath:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ArgumentError(f"an artifact's name must be a relative path without '..', got {name!r}")
    return relative


class _LateClient:
    """The MlflowClient of a logger, opened at its first use, since Lightning asks every logger for its client."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        client = self._logger._client()
        return (lambda *_, **__: None) if client is None else getattr(client, name)


# Code that checks for Lightning's MLFlowLogger before it uses ``experiment`` and ``run_id`` accepts this logger too.
MLFlowLogger.register(RunLogger)
