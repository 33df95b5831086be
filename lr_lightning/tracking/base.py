"""What every run logger does the same way, whatever it writes to."""

import atexit
import logging
import os
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities import rank_zero_only
from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers.logger import Logger

from lr_lightning.tracking.artifacts import adopt, artifact_file_path
from lr_lightning.tracking.keys import MAX_PARAM, MAX_TAG, clean_key, clip, flatten
from lr_lightning.tracking.local_log import (
    LOCK_NAME,
    Artifact,
    History,
    Param,
    Record,
    RowBuffer,
    RunClock,
    Status,
    Tag,
)
from lr_lightning.tracking.locks import Holder, RunLock

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

STATUSES = ("FINISHED", "FAILED", "KILLED")
_FINALIZE_STATUS = {"success": "FINISHED", "finished": "FINISHED"}


class RunLogger(Logger, ABC):
    """A logger of one run, on global rank 0 alone; on other ranks every method does nothing.

    Nothing happens before the first use (or :meth:`start`): no file, no lock, no import. Rows are kept in memory and
    written together, at the latest after 2000 rows or 5 seconds; :meth:`flush` writes them at once. Use it from one
    thread.

    Args:
        output_dir: Folder of the run's files.
        run_name: Name of the run.
        tags: Tags set at the start.
        resume: Go on with the run that ``output_dir`` holds. Rows of steps that it stored already are left out.
        end_on_finalize: Whether the end of ``fit`` or ``test`` ends the run. If not, call :meth:`end`.
    """

    def __init__(
        self,
        output_dir: Path | str,
        run_name: str | None = None,
        tags: Mapping[str, object] | None = None,
        *,
        resume: bool = False,
        end_on_finalize: bool = True,
    ) -> None:
        # Not super(): in MLflowLogger that is Lightning's MLFlowLogger, which opens the store at once, on every rank.
        Logger.__init__(self)
        self.output_dir = Path(output_dir).expanduser().absolute()
        self.run_name = run_name
        self._first_tags = dict(tags or {})
        self._resume = resume
        self._end_on_finalize = end_on_finalize
        self._active = False
        self._ended = False
        self._buffer = RowBuffer()
        self._clock = RunClock()
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    # ---- what a subclass supplies

    @abstractmethod
    def _open(self, resume: bool) -> History:
        """Open what is written to; give what a resumed run has stored, or an empty history.

        Raises:
            TrackingError: It cannot be opened, or holds another run.
        """

    @abstractmethod
    def _write(self, records: list[Record]) -> None:
        """Write ``records`` to the local file, in order."""

    @abstractmethod
    def _sync(self) -> None:
        """Make what was written survive a power cut."""

    @abstractmethod
    def _close(self) -> None:
        """Close what :meth:`_open` opened."""

    def _holder(self) -> Holder:
        return Holder.here("", str(self.output_dir))

    # ---- life

    @rank_zero_only
    def start(self) -> None:
        """Make the run, or go on with it. Called by every other method; call it first to meet errors early.

        Raises:
            TrackingError: The output directory or the store cannot be used as asked.
            RunInUse: Another process is running this very run.
            OSError: The output directory has no room.
        """
        if self._active:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(self.output_dir / LOCK_NAME, f"the run in {self.output_dir}")
        self._lock.acquire(self._holder(), timeout=0)
        try:
            history = self._open(self._resume)
        except BaseException:
            self._lock.release()
            raise
        self._active, self._ended = True, False
        self._buffer.resume(history)
        self._clock.go_on_from(history.last_time)
        self._params = dict(history.params)
        self._pid = os.getpid()
        atexit.register(self._at_exit)
        try:
            self._write([Status("RUNNING", self._clock.now())])
            self.set_tags({"output_dir": str(self.output_dir), **self._first_tags})
        except OSError:
            with suppress(OSError):
                self._finish("FAILED")
            raise

    def _ready(self) -> bool:
        """Start if need be; False after :meth:`end`, since nothing may follow it."""
        if self._ended:
            log.warning("the run has ended: what is logged now is dropped")
            return False
        if not self._active:
            self.start()
        return True

    @rank_zero_only
    def end(self, status: str) -> None:
        """End the run: write everything, set ``status``, free the locks. A second call does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.

        Raises:
            ValueError: ``status`` is none of these.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        self._finish(status)
        self._ended = True

    def _finish(self, status: str) -> None:
        if not self._active:
            return
        try:
            self.flush()
            self._write([Status(status, self._clock.now())])
            self._sync()
        finally:
            self._active = False
            atexit.unregister(self._at_exit)
            self._close()
            self._lock.release()

    def _at_exit(self) -> None:
        if os.getpid() == self._pid:  # not in a forked child
            self.end("KILLED")

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Lightning's end of ``fit``, ``validate`` or ``test``: flush; end the run if ``end_on_finalize``.

        A run that ended here goes on where it was if something more is logged, e.g. by ``trainer.test()``.
        """
        if not self._active:
            return
        if self._end_on_finalize:
            self._finish(_FINALIZE_STATUS.get(status, "FAILED"))
            self._resume = True
        else:
            self.flush()

    # ---- metrics

    @property
    def nonfinite(self) -> dict[str, int]:
        """How often each metric was nan or infinite; such values are not stored."""
        return self._buffer.nonfinite

    @property
    def on_nonfinite(self) -> Callable[[str, float, int], None] | None:
        """Called with key, value and step of every value that is nan or infinite; settable."""
        return self._buffer.on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, hook: Callable[[str, float, int], None] | None) -> None:
        self._buffer.on_nonfinite = hook

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take metrics of one step; Lightning's ``epoch`` is kept only where it changes.

        Args:
            metrics: Name to value; text is refused with a warning, nan and infinities are counted and left out.
            step: The step; None means 0.
        """
        if self._ready():
            self._buffer.add_metrics(metrics, 0 if step is None else int(step), self._clock.now())
            self._flush_if_due()

    @rank_zero_only
    def log_rows(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Take rows that carry their own time.

        Args:
            rows: Key, value, step, time in milliseconds since 1970.
        """
        if self._ready():
            for key, value, step, at in rows:
                self._buffer.add(key, value, step, at)
            self._flush_if_due()

    def reserve(self, keys: Iterable[str]) -> None:
        """Take rows of these names through :meth:`log_rows` alone: a recorder logs them at every step."""
        self._buffer.reserve(keys)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        """Store single values as ``summary/<name>``, at step 0. An unchanged one is not stored again.

        Args:
            values: Name to value, with or without the prefix.
        """
        if self._ready():
            self._buffer.add_summary(values, self._clock.now())
            self.flush()

    def _flush_if_due(self) -> None:
        if self._buffer.is_due():
            self.flush()

    @rank_zero_only
    def flush(self, sync: bool = False) -> None:
        """Write buffered rows to the local file, which a killed process does not lose.

        Args:
            sync: Wait until the disk has them, so that a power cut does not lose them either.
        """
        if not self._active:
            return
        rows = self._buffer.rows()
        if rows:
            # Cleared only afterwards: an interruption in between writes a row twice, which the store takes once;
            # the other way round it would be lost.
            self._write([*rows])
            self._buffer.clear()
        if sync:
            self._sync()

    # ---- params, tags, artifacts

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Store params, nested ones dotted, each up to 6000 characters.

        A param never changes: one that has another value in a resumed run is stored as the tag ``resumed.<param>``.
        """
        if not self._ready():
            return
        records: list[Record] = []
        changed: dict[str, object] = {}
        for name, value in flatten(_convert_params(params)).items():
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
        """Set tags of the run; a later value replaces an earlier one."""
        if not self._ready():
            return
        new = {clean_key(key): clip(value, MAX_TAG) for key, value in tags.items()}
        records: list[Record] = [Tag(key, text) for key, text in new.items() if self._tags.get(key) != text]
        self._tags.update(new)
        self._write(records)

    def log_note(self, text: str) -> None:
        """Set the run's description, in Markdown: a tag that MLflow shows at the top of a run."""
        self.set_tags({"mlflow.note.content": text})

    @rank_zero_only
    def log_artifact(self, path: Path | str, artifact_path: str | None = None) -> None:
        """Keep a file or folder with the run. One from outside the output directory is copied into it first.

        Args:
            path: The file or folder.
            artifact_path: Folder below the run's artifacts.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: ``artifact_path`` leads out of the run's artifacts.
        """
        if not self._ready():
            return
        self._write([Artifact(str(adopt(Path(path), self.output_dir, artifact_path)), artifact_path)])

    @rank_zero_only
    def log_text(self, text: str, artifact_file: str) -> None:
        """Keep ``text`` as file ``artifact_file`` of the run's artifacts, e.g. ``"config/resolved.yaml"``."""
        if self._ready():
            artifact_file_path(self.output_dir, artifact_file).write_text(text, encoding="utf-8")
            self._add_artifact(artifact_file)

    @rank_zero_only
    def log_figure(self, figure: "Figure", artifact_file: str) -> None:
        """Keep a matplotlib figure as file ``artifact_file`` of the run's artifacts, e.g. ``"plots/lr.png"``."""
        if self._ready():
            figure.savefig(artifact_file_path(self.output_dir, artifact_file), bbox_inches="tight")
            self._add_artifact(artifact_file)

    def _add_artifact(self, artifact_file: str) -> None:
        folder = str(PurePosixPath(artifact_file).parent)
        self._write(
            [Artifact(str(artifact_file_path(self.output_dir, artifact_file)), None if folder == "." else folder)]
        )

    # ---- Lightning's interface

    def save(self) -> None:
        """Do nothing: Lightning calls this after every ``log_metrics``."""

    def after_save_checkpoint(self, checkpoint_callback: "ModelCheckpoint") -> None:
        """Do nothing: checkpoints stay in the output directory."""

    @property
    def save_dir(self) -> str:
        """The output directory."""
        return str(self.output_dir)
