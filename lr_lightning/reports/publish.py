"""Writing a comparison: its folder, and a run of its own in MLflow."""

import csv
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from lr_lightning.tracking import Store
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.runs import JOB_TAG
from lr_lightning.tracking.view import REPORT_NAME

JOB = "compare"
"""Value of the tag ``job`` of a comparison's own run, which keeps it out of every later one."""


def new_folder(root: Path, experiment: str) -> Path:
    """Make a folder of its own for a comparison below ``root``."""
    slug = re.sub(r"[^\w.]+", "_", experiment)[:60].strip("._") or "experiment"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    while True:
        folder = root / f"{stamp}-{slug}-{secrets.token_hex(2)}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def write_page(folder: Path, text: str) -> Path:
    """Write the report."""
    path = folder / "report.html"
    write_atomically(path, text)
    return path


def write_csv(folder: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Write the runs' numbers."""
    path = folder / "runs.csv"
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def log_to_store(
    store: Store, experiment_id: str, folder: Path, *, by: str, filter_string: str, headline: str, runs: int
) -> str:
    """Keep the files in MLflow, as a run that says what it is.

    Returns:
        Its id.

    Raises:
        StoreUnavailable: The store does not answer.
        TrackingError: The artifacts cannot be written.
    """
    tags = {
        JOB_TAG: JOB,
        "compare.by": by,
        "compare.filter": filter_string or "-",
        "compare.runs": str(runs),
        "output_dir": str(folder),
        "mlflow.note.content": headline[:5000],
        "mlflow.source.name": "scripts/compare.py",
        "mlflow.source.type": "LOCAL",
    }
    run = store.call("create_run", experiment_id, tags=tags, run_name=REPORT_NAME)
    run_id = str(run.info.run_id)
    status = "FAILED"
    try:
        store.call("log_artifacts", run_id, str(folder))
        status = "FINISHED"
    finally:
        store.call("set_terminated", run_id, status)
    return run_id
