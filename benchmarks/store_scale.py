"""What a store of many runs costs: reading it, comparing its runs, and the size of the database.

Run: ``python -m benchmarks.store_scale [--quick]`` (about a quarter of an hour, 2 GB of disk), on SQLite. Runs are made
through MLflow and copied in the database, so that filling it takes no hours:

* a page of a search, all runs without their curves, and two curves of 100 runs, for up to 3,000 short runs: wall time;
* ``scripts/compare.py`` over up to 1,000 runs of 5,000 rows each, with all that it writes: CPU time and memory, on one
  thread;
* the curves of some of these through MLflow's server, in one process: wall time, beside MLflow's client, which asks for
  one curve after the other. This project sends several requests at once, for two or more runs each.
"""

import argparse
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import at_least_one, show, spread
from benchmarks.report import store as keep
from lr_lightning.tracking import Store, open_store
from lr_lightning.tracking.query import read_curves, read_runs

SIZES, COMPARED, SERVED = (10, 100, 1_000, 3_000), (10, 100, 1_000), 20
DENSE = ("train/loss", "lr/group0")
_EPOCHS, _STEPS_OF_AN_EPOCH, _SUMMARIES = 72, 25, 32  # of a long run
_OF_AN_EPOCH = ("val/loss", "val/acc", "probe/loss", "overfit/gap_loss", "train/loss_epoch", "epoch", "cost/seconds")
_OTHERS = 12  # metrics of an epoch: with the rest, 5,000 rows
_CURVES = (*DENSE, *_OF_AN_EPOCH)
ROOT = Path(__file__).parent.parent
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# The program itself tells its peak of memory: `ru_maxrss` of a child is at least that of its parent.
_MEASURED = """
import atexit, runpy, sys
del sys.argv[0]
sys.path.insert(0, str(__import__("pathlib").Path(sys.argv[0]).parent))
atexit.register(lambda: print(open("/proc/self/status").read(), file=sys.stderr))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def one_run(store: Store) -> str:
    """Log a short run: 35 params, 30 tags, 17 metrics with one row and three with 300. Return its id."""
    from mlflow.entities import Metric

    rows = [Metric(f"m{i}", 0.5, 1, 10) for i in range(17)]
    rows += [Metric(key, 0.5, step, step) for key in (*DENSE, "lr/group1") for step in range(300)]
    return _log(store, rows, {f"tag{i}": "value" for i in range(30)})


def long_run(store: Store, schedule: str, best: float) -> str:
    """Log a run of 5,000 rows, as the app records it, that reaches ``best``. Return its id."""
    from mlflow.entities import Metric

    steps, start = _EPOCHS * _STEPS_OF_AN_EPOCH, 1_700_000_000_000
    rows = []
    for step in range(steps):
        done = step / steps
        rows.append(Metric("lr/group0", 0.1 * (1 - done), start + 10 * step, step))
        rows.append(Metric("train/loss", 2.3 * (1 - done) + 0.1 + 0.05 * random.random(), start + 10 * step, step))
    for epoch in range(_EPOCHS):
        step = (epoch + 1) * _STEPS_OF_AN_EPOCH - 1
        done = (epoch + 1) / _EPOCHS
        values = (2.3 - 2 * done, best * done, 2.2 - 2 * done, 0.1 * done, 2.3 - 2 * done, float(epoch), 18.0 * done)
        of_epoch = dict(zip(_OF_AN_EPOCH, values, strict=True)) | {f"overfit/other{i}": 0.5 for i in range(_OTHERS)}
        rows += [Metric(name, value, start + 10 * step, step) for name, value in of_epoch.items()]
    rows += [Metric(f"summary/number{i}", 0.5, start + 10 * steps, steps) for i in range(_SUMMARIES)]
    return _log(store, rows, {"schedule": schedule, "seed": "0", **{f"tag{i}": "value" for i in range(28)}})


def _log(store: Store, rows: list[Any], tags: dict[str, str]) -> str:
    from mlflow.entities import Param, RunTag

    run_id = str(store.call("create_run", store.experiment_id("scale"), run_name="a run").info.run_id)
    params = [Param(f"group.key{i}", "value") for i in range(35)]
    store.call("log_batch", run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
    for start in range(0, len(rows), 1000):
        store.call("log_batch", run_id, metrics=rows[start : start + 1000])
    store.call("set_terminated", run_id, "FINISHED")
    return run_id


def copy(database: sqlite3.Connection, run_id: str, first: int, last: int, noise: float = 0.0) -> None:
    """Copy a run with new ids, table by table; each copy has its own seed, and normal ``noise`` on its results."""
    for number in range(first, last):
        new, shift = f"{number:032x}", random.gauss(0.0, noise) if noise else 0.0
        for table in ("runs", "params", "tags", "metrics", "latest_metrics"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            values = {"run_uuid": f"'{new}'"}
            if shift and "metrics" in table:
                results = "key IN ('val/loss', 'val/acc', 'probe/loss', 'train/loss', 'train/loss_epoch')"
                values["value"] = f"CASE WHEN {results} THEN value + {shift!r} ELSE value END"
            chosen = ", ".join(values.get(column, column) for column in columns)
            database.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {chosen} FROM {table} WHERE run_uuid = ?", (run_id,)
            )
        database.execute("UPDATE tags SET value = ? WHERE run_uuid = ? AND key = 'seed'", (str(number % 10**6), new))
    database.commit()


def seconds(work: Any) -> float:
    """Return the wall time of a piece of work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read(store: Store, path: Path, rounds: int) -> dict[str, Any]:
    """Measure the reading of a store of short runs."""
    ids = [store.experiment_id("scale")]
    few = read_runs(store, ids)[:100]

    def page() -> None:
        store.call("search_runs", ids, "tags.tag1 = 'value'", max_results=100)

    work = {
        "search_page_of_100_seconds": page,
        "read_all_runs_seconds": lambda: read_runs(store, ids),
        "curves_of_100_runs_seconds": lambda: read_curves(store, few, DENSE),
    }
    taken = [{name: seconds(one) for name, one in work.items()} for _ in range(rounds)]
    return {name: spread([one[name] for one in taken]) for name in work} | {"database_mb": path.stat().st_size / 1e6}


def compare(root: Path, *options: str) -> tuple[float, float]:
    """Run ``scripts/compare.py`` over a store; return its CPU seconds, and its peak of memory in MB.

    Raises:
        SystemExit: The comparison failed; with what it said.
    """
    script = str(ROOT / "scripts" / "compare.py")
    command = [sys.executable, "-c", _MEASURED, script, "--root", str(root), "--out", str(root / "out"), *options]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, **_ONE_THREAD})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    peak = re.search(r"VmHWM:\s*(\d+) kB", text)
    if child.returncode or peak is None:
        raise SystemExit(f"the comparison failed\n{text}")
    return usage.ru_utime + usage.ru_stime, int(peak[1]) * 1024 / 1e6


@contextmanager
def served(store: Store, place: Path) -> Iterator[Store]:
    """Serve a store by MLflow's server, in a process of its own.

    Raises:
        SystemExit: The server did not start within two minutes.
    """
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--port", str(port)]
    alone = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else a second process works beside it
    with subprocess.Popen(
        [*command, "--workers", "1"], cwd=place, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(240):
                with closing(socket.socket()) as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.5)
            else:
                raise SystemExit("MLflow's server did not start")
            yield open_store(place, f"http://127.0.0.1:{port}")
        finally:
            server.terminate()


def through_server(store: Store, rounds: int) -> dict[str, Any]:
    """Measure the reading of some runs' curves, here and by MLflow's client, in alternating order."""
    runs = [run for run in read_runs(store, [store.experiment_id("scale")]) if run.job == "train"][:SERVED]
    wanted = [(run.id, key) for run in runs for key in _CURVES]

    def ours() -> None:
        read_curves(store, runs, _CURVES)

    def theirs() -> None:
        for run_id, key in wanted:
            store.call("get_metric_history", run_id, key)

    ours()
    theirs()  # so that both find full caches
    taken = []
    for number in range(rounds):
        pair = {work: seconds(work) for work in ((ours, theirs) if number % 2 == 0 else (theirs, ours))}
        taken.append((pair[ours], pair[theirs]))
    here, there = zip(*taken, strict=True)
    ratio = spread([ours / its for ours, its in taken])
    return {"here_seconds": spread(here), "client_seconds": spread(there), "here_over_client": ratio}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--quick", action="store_true", help="few runs, one round, nothing stored")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    random.seed(0)
    of_size: dict[str, Any] = {}
    compared: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="store-scale-") as place:
        store, path = open_store(Path(place) / "short"), Path(place) / "short" / "mlflow.db"
        prototype, have = one_run(store), 1
        for size in SIZES[:1] if args.quick else SIZES:
            with closing(sqlite3.connect(path, timeout=60)) as database:
                copy(database, prototype, have, size)
            have = size
            found = of_size[str(size)] = read(store, path, rounds)
            print(f"{size} short runs: all read in {show(found['read_all_runs_seconds'])} s", flush=True)

        store, path = open_store(Path(place) / "long"), Path(place) / "long" / "mlflow.db"
        prototypes = [long_run(store, "cosine", 0.9), long_run(store, "constant", 0.89)]
        have = 1
        for size in COMPARED[:1] if args.quick else COMPARED:
            with closing(sqlite3.connect(path, timeout=60)) as database:
                for number, prototype in enumerate(prototypes):
                    copy(database, prototype, number * 10**6 + have, number * 10**6 + size // 2, noise=0.01)
            have = size // 2
            found = compared[str(size)] = {}
            taken = [(compare(path.parent), compare(path.parent, "--no-log")) for _ in range(rounds)]
            for name, own in zip(("logged", "not logged"), zip(*taken, strict=True), strict=True):
                cpu, memory = (spread(one) for one in zip(*own, strict=True))
                found[name] = {"cpu_seconds": cpu, "peak_mb": memory, "database_mb": path.stat().st_size / 1e6}
                print(f"{size} long runs compared, {name}: {show(cpu)} CPU s, {show(memory, '{:.0f}')} MB", flush=True)
        with served(store, Path(place)) as server:
            through = through_server(server, rounds)
        print(f"curves through a server, over MLflow's client: {show(through['here_over_client'])}")
    keep("store_scale", {"runs": of_size, "compare": compared, "server": through}, args.quick)


if __name__ == "__main__":
    main()
