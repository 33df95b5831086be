"""Renderings of a local log as CSV, YAML and JSON files, for people and programs that do not read MLflow."""

import csv
import io
import json
import math
import os
from array import array
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml

from lr_lightning.tracking.files import append_bytes, cut_torn_line, write_atomically
from lr_lightning.tracking.local_log import SUMMARY, LocalLog, Metric, Param, Record, Status, Tag, decode


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

    def read(self) -> list[Record]:
        """Read the records back, for a run whose local log is missing; empty if there are no files."""
        if cut_torn_line(self._metrics) == 0:
            return []
        run = json.loads(self._run_file.read_text(encoding="utf-8"))
        params = yaml.safe_load(self._params_file.read_text(encoding="utf-8")) if self._params_file.exists() else {}
        with self._metrics.open(encoding="utf-8", newline="") as file:
            rows = [Metric(key, float(value), int(step), int(at)) for key, value, step, at in [*csv.reader(file)][1:]]
        status = Status(run["status"], run.get("status_time_ms", 0))
        return [*map(Tag, run["tags"], run["tags"].values()), *map(Param, params, params.values()), *rows, status]

    def rewrite(self, records: Iterable[Record | None]) -> None:
        """Write all files anew; None stands for a damaged line. A full disk leaves ``metrics.csv`` unchanged."""
        temporary = self._metrics.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write("key,value,step,time_ms\n")
            changed = self._render(records, file)
        os.replace(temporary, self._metrics)
        self._save({*changed, Status})

    def append(self, records: Iterable[Record]) -> None:
        """Add records to the files."""
        text = io.StringIO(newline="")
        changed = self._render(records, text)
        append_bytes(self._metrics, text.getvalue().encode())
        self._save(changed)

    def _render(self, records: Iterable[Record | None], file: TextIO) -> set[type]:
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
    steps: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))  # eight bytes a row: a run may have millions
    lrs: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
    with log.path.open("rb") as lines:
        for line in lines:
            # Most lines are of other metrics: decoding all of them would take ten times as long.
            if line.startswith(b'{"metric":"lr/') and isinstance(row := decode(line), Metric):
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
