"""What it costs to log every step: this project's MLflow logger beside Lightning's and MLflow's own calls, on SQLite.

Run: ``python -m benchmarks.logging [--whole] [--quick]``. Two metrics a step, one call after the other, nothing in
between, alternating rounds in one process, a new run in each: 1,000 steps in every arm, and 10,000 in this project's
(``--whole``: in every arm, which takes hours, since the others write to the database at each step). The arms:

- ``lr_lightning``: ``RunLogger.log_rows``, which writes a local log first and uploads it in batches from a thread;
- ``Lightning``: ``MLFlowLogger.log_metrics``, a transaction a step;
- ``mlflow.log_metric``: one call a metric;
- ``mlflow, asynchronous``: ``mlflow.log_metrics(synchronous=False)``, which queues and sends from a thread.

The foreground is the time in which training would stand still, over the steps; ``longest call`` is that of one step.
``durable`` is the time until the last row can be read from the database: the rows are counted there after every run.
Rows a second are the rows over that time. 1,000 steps fit in this project's buffer, so that its foreground there is
without the writing of the local log; with 10,000 it is in it. ``file:`` stores are left out: MLflow refuses them, and
so does the project.
"""

import argparse
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import show, spread, store
from lr_lightning.app.run.messages import quiet
from lr_lightning.tracking import RunLogger, open_store
from lr_lightning.tracking.store import prepare_mlflow

KEYS = ("train/loss", "lr/group0")
STEPS = (1_000, 10_000)
ROUNDS = 5


@dataclass(frozen=True)
class Logged:
    """One run of an arm: mean and longest milliseconds of a step's call, and seconds until all was in the database."""

    foreground_ms: float
    longest_ms: float
    durable_seconds: float


Step = Callable[[int], None]


def timed(log: Step, finish: Callable[[], object], steps: int) -> Logged:
    """Log so many steps, then finish."""
    calls = []
    began = at = time.perf_counter()
    for step in range(steps):
        log(step)
        now = time.perf_counter()
        calls.append(now - at)
        at = now
    finish()
    seconds = time.perf_counter() - began
    return Logged(1000 * sum(calls) / steps, 1000 * max(calls), seconds)


def values(step: int) -> dict[str, float]:
    return dict.fromkeys(KEYS, 1.0 / (step + 1))


def ours(root: Path, steps: int) -> tuple[Logged, str]:
    logger = RunLogger(store=open_store(root), experiment="logging")
    logger.start()

    def log(step: int) -> None:
        at = time.time_ns() // 1_000_000
        logger.log_rows((key, value, step, at) for key, value in values(step).items())

    logged = timed(log, lambda: logger.end("FINISHED"), steps)
    return logged, str(logger.run_id)


def lightning(root: Path, steps: int) -> tuple[Logged, str]:
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("logging", tracking_uri=uri(root), artifact_location=str(root / "artifacts"))
    run_id = str(logger.run_id)  # makes the run
    logged = timed(lambda step: logger.log_metrics(values(step), step), lambda: logger.finalize("success"), steps)
    return logged, run_id


def plain(root: Path, steps: int) -> tuple[Logged, str]:
    import mlflow

    def log(step: int) -> None:
        for key, value in values(step).items():
            mlflow.log_metric(key, value, step)

    return _in_run(root, log, steps)


def asynchronous(root: Path, steps: int) -> tuple[Logged, str]:
    import mlflow

    def log(step: int) -> None:
        mlflow.log_metrics(values(step), step, synchronous=False)

    return _in_run(root, log, steps)


def _in_run(root: Path, log: Step, steps: int) -> tuple[Logged, str]:
    import mlflow

    mlflow.set_tracking_uri(uri(root))
    if mlflow.get_experiment_by_name("logging") is None:
        mlflow.create_experiment("logging", artifact_location=str(root / "artifacts"))
    mlflow.set_experiment("logging")
    run = mlflow.start_run(log_system_metrics=False)

    def finish() -> None:
        mlflow.flush_async_logging()
        mlflow.end_run()

    return timed(log, finish, steps), str(run.info.run_id)


def uri(root: Path) -> str:
    """The address of the arm's store."""
    return f"sqlite:///{root / 'mlflow.db'}"


def check(root: Path, run_id: str, steps: int) -> None:
    """Refuse a time in which not every row arrived, once."""
    with sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True) as database:
        query = "SELECT COUNT(*) FROM metrics WHERE run_uuid = ? AND key IN (?, ?)"
        (found,) = database.execute(query, (run_id, *KEYS)).fetchone()
    database.close()
    if found != steps * len(KEYS):
        raise RuntimeError(f"{found} of {steps * len(KEYS)} rows are in {root}: the time would mean nothing")


ARMS: dict[str, Callable[[Path, int], tuple[Logged, str]]] = {
    "lr_lightning": ours,
    "Lightning": lightning,
    "mlflow.log_metric": plain,
    "mlflow, asynchronous": asynchronous,
}


def measure(names: Sequence[str], roots: dict[str, Path], steps: int, rounds: int) -> dict[str, Any]:
    """The arms in turn, in changing order; of each round the ratios to this project's."""
    runs: dict[str, list[Logged]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            logged, run_id = ARMS[name](roots[name], steps)
            check(roots[name], run_id, steps)
            runs[name].append(logged)
        taken = ", ".join(f"{n} {r[-1].foreground_ms:.3f} ms, {r[-1].durable_seconds:.1f} s" for n, r in runs.items())
        print(f"  {steps:,} steps, round {number + 1}: {taken}", flush=True)
    base = runs["lr_lightning"]
    return {
        name: {
            "foreground_ms_a_step": spread([run.foreground_ms for run in found]),
            "longest_call_ms": spread([run.longest_ms for run in found]),
            "durable_seconds": spread([run.durable_seconds for run in found]),
            "rows_a_second": spread([len(KEYS) * steps / run.durable_seconds for run in found]),
            "foreground_ratio": spread([a.foreground_ms / b.foreground_ms for a, b in zip(found, base, strict=True)]),
            "durable_ratio": spread([a.durable_seconds / b.durable_seconds for a, b in zip(found, base, strict=True)]),
        }
        for name, found in runs.items()
    }


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 steps, one round, nothing stored")
    parser.add_argument("--whole", action="store_true", help="10,000 steps in every arm as well: hours")
    args = parser.parse_args()
    quick = args.quick
    quiet()
    prepare_mlflow()
    result: dict[str, Any] = {}
    names, first = list(ARMS), next(iter(ARMS))
    with tempfile.TemporaryDirectory() as folder:
        roots = {name: Path(folder, str(index)) for index, name in enumerate(ARMS)}
        open_store(roots[first]).experiment_id("made beforehand")  # making a database is not logging
        for name in names[1:]:
            shutil.copytree(roots[first], roots[name])
        for name, arm in ARMS.items():
            arm(roots[name], 5)
        for steps in (30,) if quick else STEPS:
            chosen = names if args.whole or steps <= STEPS[0] else [first]
            result[str(steps)] = measure(chosen, roots, steps, 1 if quick else ROUNDS)
    head = ("foreground ms/step", "longest call, ms", "durable, s", "foreground, ratio")
    print(f"\n{'steps':>6} {'':22}" + "".join(f"{text:>30}" for text in head))
    for steps_text, arms in result.items():
        for name, found in arms.items():
            keys = ("foreground_ms_a_step", "longest_call_ms", "durable_seconds", "foreground_ratio")
            cells = "".join(f"{show(found[key], '{:.3g}'):>30}" for key in keys)
            print(f"{int(steps_text):>6,} {name:22}{cells}")
    store("logging", {"metrics_a_step": len(KEYS), "steps": result}, quick)


if __name__ == "__main__":
    main()
