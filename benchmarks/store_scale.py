"""What a store of many runs costs: a page of a search, reading all runs, their curves, and the size of the database.

    python -m benchmarks.store_scale [--quick]

One run as the app records it (35 params, 30 tags, 20 metrics, 300 steps of three of them) is made through MLflow and
copied in the database, so that filling it takes no hours. SQLite, on this machine.
"""

import argparse
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import store as keep
from lr_lightning.tracking import Store, open_store
from lr_lightning.tracking.query import read_curves, read_runs

SIZES = (10, 100, 1_000, 3_000)
_STEPS = 300


def one_run(store: Store) -> str:
    from mlflow.entities import Metric, Param, RunTag

    run = store.call("create_run", store.experiment_id("scale"), run_name="cosine lr=0.1 seed=0")
    rows = [Metric(f"m{i}", 0.5, 1, 10) for i in range(17)]
    rows += [Metric(key, 0.5, step, step) for key in ("train/loss", "lr/group0", "lr/group1") for step in range(_STEPS)]
    store.call(
        "log_batch",
        run.info.run_id,
        metrics=rows,
        params=[Param(f"group.key{i}", "value") for i in range(35)],
        tags=[RunTag(f"tag{i}", "value") for i in range(30)],
    )
    store.call("set_terminated", run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def copy(database: sqlite3.Connection, run_id: str, first: int, last: int) -> None:
    """Copy a run with new ids, table by table."""
    for table in ("runs", "params", "tags", "metrics", "latest_metrics"):
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        chosen = ", ".join(f"'{'{:032x}'}'" if column == "run_uuid" else column for column in columns)
        for number in range(first, last):
            database.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen.format(number)} FROM {table} "
                "WHERE run_uuid = ?",
                (run_id,),
            )
    database.commit()


def seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(store: Store, path: Path) -> dict[str, float]:
    ids = [store.experiment_id("scale")]
    page = [seconds(lambda: store.call("search_runs", ids, "tags.tag1 = 'value'", max_results=100)) for _ in range(3)]
    runs: list[Any] = []
    everything = seconds(lambda: runs.extend(read_runs(store, ids)))
    few = runs[:100]
    return {
        "search_page_of_100_seconds": min(page),
        "read_all_runs_seconds": everything,
        "curves_of_100_runs_seconds": seconds(lambda: read_curves(store, few, ["train/loss", "lr/group0"])),
        "database_mb": path.stat().st_size / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 100 runs, nothing stored")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="store-scale-"))
    store = open_store(root)
    run_id = one_run(store)
    database = sqlite3.connect(root / "mlflow.db", timeout=60)
    result: dict[str, Any] = {}
    have = 1
    for size in SIZES[:2] if args.quick else SIZES:
        copy(database, run_id, have, size)
        have = size
        result[str(size)] = measure(store, root / "mlflow.db")
        print(size, {key: round(value, 3) for key, value in result[str(size)].items()}, flush=True)
    database.close()
    keep("store_scale", {"runs": result}, args.quick)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
