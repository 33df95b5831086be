"""The local log of a run: every metric row, param, tag, artifact and status, one JSON object a line.

The log is complete whatever the store does. A store only ever gets a copy of it, in its order, so whatever was not
sent can be sent later, and a resumed run finds in it what is stored already.
"""

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lr_lightning.errors import TrackingError
from lr_lightning.tracking.files import append_bytes, cut_torn_line, write_atomically
from lr_lightning.tracking.keys import clean_key

# --- The time of a run's records.


class RunClock:
    """Gives times that never go back within a run, though the machine's clock does, or another machine goes on with it.

    Of a metric's values at one step MLflow shows the one with the latest time, and a run that ends before it began has
    a negative duration.
    """

    def __init__(self) -> None:
        self._last = 0

    def go_on_from(self, last: int) -> None:
        """Give only times later than ``last``, in milliseconds since 1970."""
        self._last = max(self._last, last + 1)

    def now(self) -> int:
        """The time in milliseconds since 1970; a millisecond later than the last one where the clock was set back."""
        now = int(time.time() * 1000)
        self._last = now if now >= self._last else self._last + 1
        return self._last


_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Metric(NamedTuple):
    """One metric row: ``time`` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of the run; a key has one value for ever."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of the run; a later value replaces an earlier one."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or folder to copy to the store, below ``to`` of the run's artifacts."""

    path: str
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """RUNNING, FINISHED, FAILED or KILLED, and since when (milliseconds since 1970)."""

    status: str
    time: int


Record = Metric | Param | Tag | Artifact | Status


def encode(record: Record) -> str:
    """Write ``record`` as one line of JSON, without the newline. Floats keep all their bits."""
    match record:
        case Metric(key, value, step, time):
            return _encode_json({"metric": key, "value": value, "step": step, "time": time})
        case Param(key, value):
            return _encode_json({"param": key, "value": value})
        case Tag(key, value):
            return _encode_json({"tag": key, "value": value})
        case Artifact(path, to):
            return _encode_json({"artifact": path, "to": to})
        case Status(status, time):
            return _encode_json({"status": status, "time": time})


def decode(line: bytes) -> Record | None:
    """Read one line; None where it is not a record (a disk error, or a hand that edited the file)."""
    try:
        d = json.loads(line)
        if "metric" in d:
            return Metric(d["metric"], float(d["value"]), int(d["step"]), int(d["time"]))
        if "param" in d:
            return Param(d["param"], d["value"])
        if "tag" in d:
            return Tag(d["tag"], d["value"])
        if "artifact" in d:
            return Artifact(d["artifact"], d["to"])
        return Status(d["status"], int(d["time"]))
    except (ValueError, KeyError, TypeError):
        return None


@dataclass
class History:
    """What a run has stored so far, for a logger that goes on with it.

    Attributes:
        last_steps: The highest step of each metric.
        last_values: The newest value of each metric.
        params: Every param.
        tags: The newest value of each tag.
        status: The newest status, if any.
        last_time: Time of the newest metric row or status, milliseconds since 1970.
    """

    last_steps: dict[str, int] = field(default_factory=dict)
    last_values: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    last_time: int = 0

    def add(self, record: Record) -> None:
        """Take one more record into account."""
        match record:
            case Metric(key, value, step, time):
                self.last_steps[key] = max(step, self.last_steps.get(key, step))
                self.last_values[key] = value
                self.last_time = max(self.last_time, time)
            case Param(key, value):
                self.params.setdefault(key, value)
            case Tag(key, value):
                self.tags[key] = value
            case Status(status, time):
                self.status = status
                self.last_time = max(self.last_time, time)


class MetricLog:
    """Append-only log of records, one JSON object a line.

    One process appends; the same or another one may read at the same time: only whole lines are read.

    Args:
        path: The file; made at the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def repair(self) -> None:
        """Cut a torn last line. Only the one process that holds the run may call it."""
        cut_torn_line(self.path)

    def append(self, records: Iterable[Record]) -> None:
        """Append ``records`` with one write, so that a kill between two calls tears nothing.

        Raises:
            OSError: The disk is full or gone; the file is left as it was before.
        """
        append_bytes(self.path, "".join(encode(record) + "\n" for record in records).encode())

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        if self.path.exists():
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self, offset: int, limit: int = 1 << 18) -> list[tuple[Record | None, int]]:
        """Read whole lines from ``offset`` on.

        Args:
            offset: Where a line starts, in bytes.
            limit: About how many bytes to read at most; one longer line is still read whole.

        Returns:
            Records, each with the offset behind it; None for a line that is not a record.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            if data and not data.endswith(b"\n"):
                data += file.readline()
        found: list[tuple[Record | None, int]] = []
        for line in data.split(b"\n")[:-1]:  # no splitlines(): it also ends a line at a carriage return
            offset += len(line) + 1
            found.append((decode(line), offset))
        return found

    def history(self) -> History:
        """Read the whole log and say what is stored in it."""
        history, offset = History(), 0
        while found := self.read(offset, 1 << 22):
            for record, _ in found:
                if record is not None:
                    history.add(record)
            offset = found[-1][1]
        return history

    def count(self, offset: int) -> int:
        """Count the records behind ``offset``."""
        total = 0
        while found := self.read(offset, 1 << 22):
            total += len(found)
            offset = found[-1][1]
        return total


# --- Metric rows on their way to a file: checked, cleaned, and without those that are stored already.

log = logging.getLogger(__name__)

SUMMARY = "summary/"
_FLUSH_ROWS = 2000
_FLUSH_SECONDS = 5.0


class RowBuffer:
    """Collects metric rows in memory.

    Attributes:
        nonfinite: How often each metric was nan or infinite. Such values are left out: one of them wrecks a chart.
        on_nonfinite: Called with key, value and step of each of them, if set.
    """

    def __init__(self) -> None:
        self.nonfinite: dict[str, int] = {}
        self.on_nonfinite: Callable[[str, float, int], None] | None = None
        self._rows: list[tuple[str, float, int, int]] = []
        self._oldest = 0.0
        self._names: dict[str, str] = {}
        self._warned: set[str] = set()
        self._floor: dict[str, int] = {}
        self._reserved: set[str] = set()
        self._last_values: dict[str, float] = {}

    def resume(self, history: History) -> None:
        """Leave out from now on what ``history`` has: a resumed run repeats the steps after its checkpoint."""
        self._floor = {k: v for k, v in history.last_steps.items() if not k.startswith(SUMMARY)}
        self._last_values = dict(history.last_values)

    def reserve(self, keys: Iterable[str]) -> None:
        """Take these names only with times of their own, so that a value logged in both ways is stored once."""
        self._reserved.update(keys)

    def add(self, key: str, value: Any, step: int, at: int) -> bool:
        """Take one row.

        Args:
            key: Name of the metric; what a store would refuse is replaced, with one warning.
            value: A number; anything else is left out, with one warning a key.
            step: The step.
            at: Milliseconds since 1970.

        Returns:
            Whether the row was kept.
        """
        name = self._names.get(key)
        if name is None:
            name = self._learn(key)
        if step <= self._floor.get(name, -1):
            return False
        try:
            number = float(value)
        except (TypeError, ValueError):
            if name not in self._warned:
                self._warned.add(name)
                log.warning("metric %r is no number (%r) and is left out", key, value)
            return False
        if not math.isfinite(number):
            self._count_nonfinite(name, number, step)
            return False
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append((name, number, step, at))
        return True

    def add_metrics(self, metrics: Mapping[str, Any], step: int, at: int) -> None:
        """Take metrics of one step; Lightning adds ``epoch`` to each call, which is kept only where it changes."""
        for key, value in metrics.items():
            if key == "epoch":
                if self._last_values.get(key) == value:
                    continue
                self._last_values[key] = float(value)
            if key in self._reserved:
                if key not in self._warned:
                    self._warned.add(key)
                    log.warning(
                        "metric %r is recorded at every step already: the one that is logged besides is left out", key
                    )
                continue
            self.add(key, value, step, at)

    def add_summary(self, values: Mapping[str, Any], at: int) -> None:
        """Take single values, at step 0; one that has not changed is not stored again."""
        for name, value in values.items():
            key = name if name.startswith(SUMMARY) else f"{SUMMARY}{name}"
            if self._last_values.get(key) != value and self.add(key, value, 0, at):
                self._last_values[key] = float(value)

    def is_due(self) -> bool:
        """Whether the rows are many or old enough to be written."""
        return bool(self._rows) and (len(self._rows) > _FLUSH_ROWS or time.monotonic() - self._oldest > _FLUSH_SECONDS)

    def rows(self) -> list[Metric]:
        """Give the rows kept so far."""
        return [Metric(*row) for row in self._rows]

    def clear(self) -> None:
        """Forget the rows, once they are written."""
        self._rows = []

    def _learn(self, key: str) -> str:
        name = self._names[key] = clean_key(key)
        if name != key:
            log.warning("metric %r is stored as %r, since stores do not take that name", key, name)
        return name

    def _count_nonfinite(self, key: str, value: float, step: int) -> None:
        if key not in self.nonfinite:
            log.warning("metric %r is %s at step %d: such values are not stored", key, value, step)
        self.nonfinite[key] = self.nonfinite.get(key, 0) + 1
        if self.on_nonfinite is not None:
            self.on_nonfinite(key, value, step)


# --- ``metrics.sent``: which run of which store a local log belongs to, and how much of it has arrived there.

LOG_NAME = "metrics.jsonl"
STATE_NAME = "metrics.sent"
LOCK_NAME = "metrics.lock"
RUN_KEY_TAG = "lr_lightning.run_key"
"""Tag of a run, in its log and in the store: the key of the state that goes with them."""


@dataclass(frozen=True)
class SendState:
    """Where a log goes and how far it has got.

    Attributes:
        uri: The store, password included if it has one (the file is readable by its owner only).
        root: Local folder of the store: locks, and artifacts where the store is local.
        artifact_root: Folder of artifacts, or None where a server keeps them.
        experiment: Name of the experiment.
        run_name: Name of the run, or None to let MLflow invent one.
        run_id: The run, once the store has made it.
        asked: Whether the store has been asked to make the run. If so and there is no ``run_id``, the answer was lost.
        offset: Bytes of the log that the store has confirmed.
        key: Marks the run in the store, so that one whose id got lost on the way back is found and not made twice.
        started: When the run began, milliseconds since 1970.
    """

    uri: str
    root: str
    artifact_root: str | None
    experiment: str
    run_name: str | None = None
    run_id: str | None = None
    asked: bool = False
    offset: int = 0
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: int = field(default_factory=lambda: int(time.time() * 1000))

    def save(self, output_dir: Path) -> None:
        """Write the state below ``output_dir`` in one step."""
        write_atomically(output_dir / STATE_NAME, json.dumps(asdict(self), indent=1) + "\n", mode=0o600)


def load_state(output_dir: Path) -> SendState | None:
    """Read the state below ``output_dir``.

    Returns:
        The state, or None where no run was logged.

    Raises:
        TrackingError: The file is not one that this package wrote.
    """
    path = output_dir / STATE_NAME
    if not path.exists():
        return None
    try:
        return SendState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TrackingError(f"{path}: not readable as the state of a run ({error}). Restore it or remove it.") from None


def refuse_state_of_other_run(output_dir: Path, state: SendState, history: History) -> None:
    """Refuse a state that does not go with the log beside it: the log would be sent to another run's record.

    Raises:
        TrackingError: It does not.
    """
    if history.tags.get(RUN_KEY_TAG, state.key) != state.key:
        raise TrackingError(
            f"{output_dir / STATE_NAME}: is of another run than {LOG_NAME} beside it. Restore it, or remove it and go "
            "on with the run: the store finds its record again."
        )


def unique_dir(parent: Path) -> Path:
    """Name a folder below ``parent`` that no other run has, e.g. ``20260131-235959-1a2b3c4d``."""
    return parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"


def refuse_other_run(output_dir: Path, resume: bool) -> None:
    """Refuse an output directory that holds a run, unless it is to be resumed.

    Raises:
        TrackingError: ``resume`` is not set.
    """
    if not resume:
        raise TrackingError(
            f"{output_dir}: holds the log of a run already. Give resume=True to go on with it, or another folder."
        )
