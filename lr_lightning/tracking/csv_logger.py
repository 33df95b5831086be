"""A run logger without a store: plain files in the output directory."""

import csv
import io
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lr_lightning.tracking.base import RunLogger
from lr_lightning.tracking.files import append_bytes, cut_torn_line, write_atomically
from lr_lightning.tracking.local_log import (
    SUMMARY,
    Artifact,
    History,
    Metric,
    Param,
    Record,
    Status,
    Tag,
    refuse_other_run,
)

log = logging.getLogger(__name__)

_HEADER = ["key", "value", "step", "time_ms"]


class CSVLogger(RunLogger):
    """Writes ``metrics.csv`` (one row a value), ``params.yaml``, ``summary.json`` and ``run.json`` (tags, status).

    Args:
        output_dir: Folder of the run's files, of this run alone.
        run_name: Name of the run.
        tags: Tags set at the start.
        resume: Go on with the run that ``output_dir`` holds.
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
        super().__init__(output_dir, run_name, tags, resume=resume, end_on_finalize=end_on_finalize)
        self._csv = self.output_dir / "metrics.csv"
        self._summary: dict[str, float] = {}
        self._run: dict[str, Any] = {}
        self._stored_params: dict[str, str] = {}

    def _open(self, resume: bool) -> History:
        if cut_torn_line(self._csv) == 0:
            append_bytes(self._csv, _lines([_HEADER]))
            self._run = {"run_name": self.run_name or self.output_dir.name, "status": "RUNNING", "tags": {}}
            self._save_run()
            return History()
        refuse_other_run(self.output_dir, resume)
        history = History()
        with self._csv.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                history.add(Metric(row["key"], float(row["value"]), int(row["step"]), int(row["time_ms"])))
        self._run = json.loads((self.output_dir / "run.json").read_text(encoding="utf-8"))
        history.status = self._run["status"]
        self._summary = {k: v for k, v in history.last_values.items() if k.startswith(SUMMARY)}
        params = self.output_dir / "params.yaml"
        if params.exists():
            self._stored_params = yaml.safe_load(params.read_text(encoding="utf-8")) or {}
            history.params = dict(self._stored_params)
        return history

    def _write(self, records: list[Record]) -> None:
        rows: list[Metric] = []
        kinds = {type(record) for record in records}
        for record in records:
            match record:
                case Metric(key, value):
                    rows.append(record)
                    if key.startswith(SUMMARY):
                        self._summary[key] = value
                case Param(key, text):
                    self._stored_params[key] = text
                case Tag(key, text):
                    self._run["tags"][key] = text
                case Status(status, time):
                    self._run["status"], self._run["status_time_ms"] = status, time
                case Artifact():
                    pass  # it lies in the output directory already
        append_bytes(self._csv, _lines(rows))
        if any(row.key.startswith(SUMMARY) for row in rows):
            write_atomically(self.output_dir / "summary.json", json.dumps(self._summary, indent=1) + "\n")
        if Param in kinds:
            write_atomically(self.output_dir / "params.yaml", yaml.safe_dump(self._stored_params, allow_unicode=True))
        if kinds & {Tag, Status}:
            self._save_run()

    def _save_run(self) -> None:
        write_atomically(self.output_dir / "run.json", json.dumps(self._run, indent=1, ensure_ascii=False) + "\n")

    def _sync(self) -> None:
        with self._csv.open("rb+") as file:
            os.fsync(file.fileno())

    def _close(self) -> None:
        """Nothing stays open."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run_name or self.output_dir.name

    @property
    def version(self) -> str:
        """The output directory's name."""
        return self.output_dir.name


def _lines(rows: list[list[str]] | list[Metric]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
