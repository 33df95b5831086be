"""The local log of a run: every metric row, param, tag, artifact and status, as one JSON object a line.

The log is the run's record, and it is complete even while the MLflow store is down: the store receives a copy, in the
same order. So what has not been uploaded can be uploaded later, and a resumed run knows what it has logged already.
"""

import csv
import io
import json
import logging
import math
import os
import time
import uuid
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

from lr_lightning.errors import TrackingError
from lr_lightning.tracking.files import append_bytes, cut_torn_line, write_atomically
from lr_lightning.tracking.keys import RUN_KEY_TAG, clean_key
from lr_lightning.tracking.store import Store

log = logging.getLogger(__name__)

LOG_NAME = "metrics.jsonl"
STATE_NAME = "metrics.sent"
LOCK_NAME = "metrics.lock"
SUMMARY = "summary/"

_READ_BYTES = 1 << 22
_FLUSH_ROWS = 2000
_FLUSH_SECONDS = 5.0

_encode_text = cache(json.JSONEncoder(ensure_ascii=False).encode)  # of the few names that all rows have
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Metric(NamedTuple):
    """A metric row. ``time`` is in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of the run. Its value never changes."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the run. A later value replaces an earlier one."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or folder, relative to the output directory, to copy to folder ``to`` of the run's artifacts."""

    path: str
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """RUNNING, FINISHED, FAILED or KILLED, and since when (milliseconds since 1970)."""

    status: str
    time: int


LogEntry = Metric | Param | Tag | Artifact | Status


def encode_record(record: LogEntry) -> str:
    """Encode ``record`` as one line of JSON, without the newline. Floats keep all their bits."""
    match record:
        case Metric(key, value, step, time):
            if type(value) is float and math.isfinite(value):  # as JSON writes it, in a quarter of the time
                return f'{{"metric":{_encode_text(key)},"value":{value!r},"step":{step},"time":{time}}}'
            return _encode_json({"metric": key, "value": value, "step": step, "time": time})
        case Param(key, value):
            return _encode_json({"param": key, "value": value})
        case Tag(key, value):
            return _encode_json({"tag": key, "value": value})
        case Artifact(path, to):
            return _encode_json({"artifact": path, "to": to})
        case Status(status, time):
            return _encode_json({"status": status, "time": time})


def decode_record(line: bytes) -> LogEntry | None:
    """Decode one line; None if it is not a record (a disk error, or the file was edited)."""
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
class LoggedRun:
    """A summary of what a run has logged so far, for a logger that resumes it."""

    last_steps: dict[str, int] = field(default_factory=dict)  # the highest step of each metric
    last_values: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    # Time of the first and the newest metric row or status, in milliseconds since 1970; 0 if nothing was logged.
    first_time: int = 0
    last_time: int = 0

    @classmethod
    def of(cls, records: Iterable[LogEntry | None]) -> "LoggedRun":
        """Summarize ``records``, oldest first; None stands for a damaged line and is skipped."""
        run = cls()
        for record in records:
            if isinstance(record, (Metric, Status)):
                run.first_time = run.first_time or record.time
                run.last_time = max(run.last_time, record.time)
            match record:
                case Metric(key, value, step):
                    run.last_steps[key] = max(step, run.last_steps.get(key, step))
                    run.last_values[key] = value
                case Param(key, text):
                    run.params.setdefault(key, text)
                case Tag(key, text):
                    run.tags[key] = text
                case Status(status):
                    run.status = status
        return run


class LocalLog:
    """Append-only file of records, one JSON object a line; the first append creates it.

    One process appends. It or another process may read at the same time: only whole lines are read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def repair(self) -> None:
        """Cut a torn last line. Only the process that holds the run's lock may call this."""
        cut_torn_line(self.path)

    def append(self, records: Iterable[LogEntry]) -> None:
        """Append ``records`` in one write, so that a kill between two calls tears no line, and an OSError adds none."""
        append_bytes(self.path, "".join(encode_record(record) + "\n" for record in records).encode())

    def sync(self) -> None:
        """Force the appended records to the disk, so that they survive a power cut."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def read(self, offset: int, limit: int = 1 << 18) -> list[tuple[LogEntry | None, int]]:
        """Read whole lines from byte ``offset`` on: about ``limit`` bytes, and the last line to its end.

        Returns:
            Each record with the offset of the line after it; None in place of a line that is not a record.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            if data and not data.endswith(b"\n"):
                data += file.readline()
        found: list[tuple[LogEntry | None, int]] = []
        for line in data.split(b"\n")[:-1]:  # splitlines() would also end a line at a carriage return
            offset += len(line) + 1
            found.append((decode_record(line), offset))
        return found

    def records(self, offset: int = 0) -> Iterator[LogEntry | None]:
        """Iterate over the records from ``offset`` to the end, with None for a line that is not a record."""
        yield from (record for record, _ in self.lines(offset))

    def lines(self, start: int, end: float = math.inf) -> Iterator[tuple[LogEntry | None, int]]:
        """Iterate over the records from ``start`` to ``end``, each with the offset of the line after it."""
        while start < end and (found := self.read(start, _READ_BYTES)):
            yield from (line for line in found if line[1] <= end)
            start = found[-1][1]


class RowBuffer:
    """Metric rows in memory, on their way to the log: validated, and without those that were logged before."""

    def __init__(self) -> None:
        self.rows: list[Metric] = []
        self.nonfinite = Counter[str]()  # per metric; such values are dropped, since one of them ruins a chart
        self._oldest = 0.0
        self._names: dict[str, str] = {}
        self._warned: set[str] = set()
        self._last_steps: dict[str, int] = {}
        self._reserved: set[str] = set()
        self._last_values: dict[str, float] = {}

    def resume(self, logged: LoggedRun) -> None:
        """Drop from now on what ``logged`` has: a resumed run repeats the steps after its checkpoint."""
        self._last_steps = {k: v for k, v in logged.last_steps.items() if not k.startswith(SUMMARY)}
        self._last_values = dict(logged.last_values)

    def reserve(self, keys: Iterable[str]) -> None:
        """Accept these metrics from :meth:`add` only, so that a value logged in two ways is stored once."""
        self._reserved.update(keys)

    def add(self, key: str, value: Any, step: int, at: int) -> bool:
        """Add one row, with time ``at`` in milliseconds since 1970, and return whether it was kept.

        A name that a store would reject is replaced, and a value that is not a number is dropped; both warn once.
        """
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = clean_key(key)
            if name != key:
                log.warning("metric %r is stored as %r, since stores reject the original name", key, name)
        if step <= self._last_steps.get(name, -1):
            return False
        try:
            number = float(value)
        except (TypeError, ValueError):
            self._warn_once(name, "metric %r is not a number (%r) and is not stored", key, value)
            return False
        if not math.isfinite(number):
            if not self.nonfinite[name]:
                log.warning("metric %r is %s at step %d: such values are not stored", name, number, step)
            self.nonfinite[name] += 1
            return False
        if not self.rows:
            self._oldest = time.monotonic()
        self.rows.append(Metric(name, number, step, at))
        return True

    def add_metrics(self, metrics: Mapping[str, Any], step: int, at: int) -> None:
        """Add the metrics of one step. Lightning adds ``epoch`` to each call; only a change of it is kept."""
        for key, value in metrics.items():
            if key == "epoch":
                if self._last_values.get(key) == value:
                    continue
                self._last_values[key] = float(value)
            if key in self._reserved:
                self._warn_once(key, "metric %r is recorded at every step already: the second value is dropped", key)
            else:
                self.add(key, value, step, at)

    def add_summary(self, values: Mapping[str, Any], at: int) -> None:
        """Add single values, at step 0 and with four digits. A value that has not changed is not stored again."""
        for name, given in values.items():
            key, value = name if name.startswith(SUMMARY) else f"{SUMMARY}{name}", _with_four_digits(given)
            if self._last_values.get(key) != value and self.add(key, value, 0, at):
                self._last_values[key] = float(value)

    def is_due(self) -> bool:
        """Return whether there are enough rows, or old enough ones, to be written."""
        return bool(self.rows) and (len(self.rows) > _FLUSH_ROWS or time.monotonic() - self._oldest > _FLUSH_SECONDS)

    def _warn_once(self, key: str, text: str, *args: object) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log.warning(text, *args)


def _with_four_digits(value: Any) -> Any:
    """Round a number for MLflow's table, which shows every digit; no less than a unit is rounded off."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return float(f"{value:.4g}") if abs(value) < 1e4 else float(round(value))


@dataclass(frozen=True)
class UploadState:
    """The content of ``metrics.sent``: where a local log is uploaded to, and how far the upload has got."""

    uri: str  # with its password if it has one: only the file's owner can read it
    root: str  # local folder of the store: locks, and artifacts if the store is local
    artifact_root: str | None  # None if a server keeps them
    experiment: str
    run_name: str | None = None  # None lets MLflow invent one
    run_id: str | None = None  # None until the store has created the run
    asked: bool = False  # whether the store was asked to create the run: without a run_id, its answer was lost
    offset: int = 0  # bytes of the log whose rows the store has confirmed
    artifacts: int = 0  # bytes of the log whose artifacts the store has confirmed
    # Marks the run in the store, so that a run whose id was lost is found and not created twice.
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: int = field(default_factory=lambda: int(time.time() * 1000))  # milliseconds since 1970

    @classmethod
    def load(cls, output_dir: Path) -> "UploadState | None":
        """Read the state from ``output_dir``; None if nothing was uploaded from there."""
        path = output_dir / STATE_NAME
        if not path.exists():
            return None
        if not os.access(path, os.R_OK):
            raise TrackingError(
                f"{path}: belongs to another user, and may hold a password. Copy the run's folder without this file, "
                "and resume the copy."
            )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{"artifacts": stored.get("offset", 0), **stored})  # once there was one offset for both
        except (ValueError, TypeError) as error:
            raise TrackingError(
                f"{path}: not readable as the state of a run ({error}). Restore it or remove it."
            ) from None

    def moved(self, before: str | None, now: Path) -> "UploadState":
        """Return the state of a run whose folder, and perhaps its store with it, moved from ``before`` to ``now``.

        In a store at another place the run is looked for by its key: it may be another store.
        """
        store = self.store if before is None or Path(before) == now else self.store.moved(before, now)
        if store == self.store:
            return self
        artifacts = str(store.artifact_root) if store.artifact_root else None
        return replace(self, uri=store.uri, root=str(store.root), artifact_root=artifacts, run_id=None, asked=True)

    @property
    def store(self) -> Store:
        """The store."""
        return Store(self.uri, Path(self.root), Path(self.artifact_root) if self.artifact_root else None)

    def save(self, output_dir: Path) -> None:
        """Write the state to ``output_dir`` in one step."""
        write_atomically(output_dir / STATE_NAME, json.dumps(asdict(self), indent=1) + "\n", mode=0o600)

    def check_log(self, output_dir: Path, logged: LoggedRun) -> None:
        """Check that the log in ``output_dir`` is of the same run, so that nothing is uploaded to another run."""
        if logged.tags.get(RUN_KEY_TAG, self.key) != self.key:
            raise TrackingError(
                f"{output_dir / STATE_NAME}: is of another run than {LOG_NAME} beside it. Restore it, or remove it and "
                "resume the run: the run is then found in the store again."
            )


# -- the log rendered as CSV, YAML and JSON files, for people and programs that do not read MLflow -------------------


class CSVFiles:
    """A run as ``metrics.csv`` (one row a value), ``params.yaml``, ``summary.json`` and ``run.json`` (tags, status)."""

    def __init__(self, output_dir: Path, run_name: str) -> None:
        self._metrics = output_dir / "metrics.csv"
        self._params_file = output_dir / "params.yaml"
        self._summary_file = output_dir / "summary.json"
        self._run_file = output_dir / "run.json"
        self._params: dict[str, str] = {}
        self._summary: dict[str, float] = {}
        self._run: dict[str, Any] = {"run_name": run_name, "status": "RUNNING", "tags": {}}

    def read(self) -> list[LogEntry]:
        """Read the records back, for a run whose local log is missing; empty if there are no files."""
        if cut_torn_line(self._metrics) == 0:
            return []
        run = json.loads(self._run_file.read_text(encoding="utf-8"))
        params = yaml.safe_load(self._params_file.read_text(encoding="utf-8")) if self._params_file.exists() else {}
        with self._metrics.open(encoding="utf-8", newline="") as file:
            rows = [Metric(key, float(value), int(step), int(at)) for key, value, step, at in [*csv.reader(file)][1:]]
        status = Status(run["status"], run.get("status_time_ms", 0))
        return [*map(Tag, run["tags"], run["tags"].values()), *map(Param, params, params.values()), *rows, status]

    def rewrite(self, records: Iterable[LogEntry | None]) -> None:
        """Write all files anew; None stands for a damaged line. A full disk leaves ``metrics.csv`` unchanged."""
        temporary = self._metrics.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write("key,value,step,time_ms\n")
            changed = self._render(records, file)
        os.replace(temporary, self._metrics)
        self._save({*changed, Status})

    def append(self, records: Iterable[LogEntry]) -> None:
        """Add records to the files."""
        text = io.StringIO(newline="")
        changed = self._render(records, text)
        append_bytes(self._metrics, text.getvalue().encode())
        self._save(changed)

    def _render(self, records: Iterable[LogEntry | None], file: TextIO) -> set[type]:
        """Write metrics to ``file``, take over the other records, and return the types whose file must be written."""
        writer = csv.writer(file, lineterminator="\n")
        changed: set[type] = set()
        for record in records:
            match record:
                case Metric(key, value):
                    writer.writerow(record)
                    if not key.startswith(SUMMARY):
                        continue
                    self._summary[key] = value
                case Param(key, text):
                    self._params[key] = text
                case Tag(key, text):
                    self._run["tags"][key] = text
                case Status(status, time):
                    self._run |= {"status": status, "status_time_ms": time}
            changed.add(type(record))
        return changed

    def _save(self, changed: set[type]) -> None:
        if Metric in changed:
            write_atomically(self._summary_file, json.dumps(self._summary, indent=1) + "\n")
        if Param in changed:
            write_atomically(self._params_file, yaml.safe_dump(self._params, allow_unicode=True))
        if changed & {Tag, Status}:
            write_atomically(self._run_file, json.dumps(self._run, indent=1, ensure_ascii=False) + "\n")


def write_lr_table(log: LocalLog, folder: Path) -> Path | None:
    """Write ``lr.csv``, one row per step and one column per param group; None if the run logged no learning rate."""
    if not log.path.exists():
        return None
    import numpy as np  # not above: a search's own process does without

    steps: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))  # eight bytes a row: a run may have millions
    lrs: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
    with log.path.open("rb") as lines:
        for line in lines:
            # Most lines are of other metrics: decoding all of them would take ten times as long.
            if line.startswith(b'{"metric":"lr/') and isinstance(row := decode_record(line), Metric):
                steps[row.key].append(row.step)
                lrs[row.key].append(row.value)
    if not lrs:
        return None
    groups = sorted(lrs, key=lambda key: (len(key), key))
    every = np.unique(np.concatenate([steps[key] for key in groups]))
    table = np.full((len(every), len(groups)), np.nan)  # nan: no learning rate; one that is not finite is never logged
    for column, key in enumerate(groups):
        table[np.searchsorted(every, steps[key]), column] = lrs[key]
    path = folder / "lr.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *groups])
        for step, values in zip(every, table, strict=True):
            writer.writerow([step, *("" if math.isnan(value) else value for value in values.tolist())])
    return path
