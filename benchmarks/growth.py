"""How does the time grow with the rows, callbacks, param groups, validation examples, ranks and runs in the store?

Run: ``python -m benchmarks.growth [--quick]`` (some minutes), one thread. Each curve is CPU time against a size. The
last column is the exponent of a power law between the two largest sizes: 1 is linear, and a curve bends from 1.2 on.

* rows: the local record of a run, three rows a step, from the first row to its closed files;
* callbacks: a training step with that many ``RunCost`` callbacks;
* param groups: ``LRSchedule`` for one step;
* validation examples: ``OverfittingMonitor`` in one validation, by its probe and the comparison of the losses;
* ranks: the loader's start of an epoch and its first batch, for one rank of so many;
* runs: reading all runs of a store, and two curves of each.
"""

import argparse
import math
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.many_ranks import measure as loader_of_a_rank
from benchmarks.report import store
from benchmarks.store_scale import copy, one_run
from lr_lightning import OverfittingMonitor, RunCost
from lr_lightning.app.run.messages import quiet
from lr_lightning.callbacks.optimizer_driver import OptimizerDriver
from lr_lightning.schedules import Clock, Cosine
from lr_lightning.tracking import RunLogger, open_store
from lr_lightning.tracking.query import read_curves, read_runs

BENDS, REPEATS = 1.2, 7


class Small(pl.LightningModule):
    """A linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def cpu(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process for a piece of work, the least of a few repeats."""
    taken = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def fit(callbacks: list[pl.Callback], steps: int, validation: int = 0) -> None:
    """Train so many steps, and validate once on so many examples."""
    examples = max(validation, 64)
    data = TensorDataset(torch.randn(examples, 8), torch.randint(2, (examples,)))
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", callbacks=callbacks, enable_model_summary=False, num_sanity_val_steps=0,
        limit_val_batches=1.0 if validation else 0, val_check_interval=None,
        limit_train_batches=1 if validation else 1.0, **options,
    )  # fmt: skip
    trainer.fit(Small(), DataLoader(data, 64), DataLoader(data, 1024) if validation else None)


def rows(count: int) -> float:
    """A record of so many rows."""

    def record() -> None:
        with tempfile.TemporaryDirectory() as folder:
            logger = RunLogger(folder, csv=True)
            for step in range(count // 3):
                logger.log_rows([(key, 0.5, step, step) for key in ("train/loss", "lr/group0", "lr/group1")])
            logger.end("FINISHED")

    return cpu(record)


def callbacks(count: int) -> float:
    """A step with so many callbacks."""
    none = cpu(lambda: fit([], 50))
    kinds = [type(f"RunCost{number}", (RunCost,), {}) for number in range(count)]  # Lightning allows one of each class
    return max(1e-9, cpu(lambda: fit([kind() for kind in kinds], 50)) - none) / 50


def param_groups(count: int) -> float:
    """A step of the schedule for so many param groups."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
    driver = OptimizerDriver(torch.optim.SGD([{"params": [weight]} for weight in weights], 0.1), Cosine())
    return cpu(lambda: [driver.drive(step, Clock(1000)) for step in range(100)]) / 100


def validation(count: int) -> float:
    """A validation with so many examples after a single step, beyond one that is not watched."""
    bare = cpu(lambda: fit([], 1, count))
    return max(1e-9, cpu(lambda: fit([OverfittingMonitor()], 1, count)) - bare)


def ranks(count: int) -> float:
    """The start of an epoch."""
    return cpu(lambda: loader_of_a_rank(count, 1))


def runs(count: int) -> float:
    """Reading all runs, and two curves of each."""
    with tempfile.TemporaryDirectory() as folder:
        kept = open_store(folder)
        run_id = one_run(kept)
        database = sqlite3.connect(Path(folder, "mlflow.db"), timeout=60)
        copy(database, run_id, 1, count)
        database.close()
        ids = [kept.experiment_id("scale")]
        return cpu(lambda: read_curves(kept, read_runs(kept, ids), ["train/loss", "lr/group0"]))


CURVES: dict[str, tuple[Callable[[int], float], tuple[int, ...]]] = {
    "rows of a run": (rows, (1_000, 10_000, 100_000, 1_000_000)),
    "callbacks, a step": (callbacks, (1, 4, 16, 64)),
    "param groups, a step": (param_groups, (1, 10, 100, 1_000)),
    "validation examples": (validation, (1_000, 10_000, 100_000)),
    "ranks, an epoch's start": (ranks, (1, 8, 64, 1_024)),
    "runs in the store": (runs, (10, 100, 1_000)),
}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes, nothing stored")
    quick = parser.parse_args().quick
    quiet()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, (measure, sizes) in CURVES.items():
        sizes = sizes[:2] if quick else sizes
        seconds = dict(zip(sizes, map(partial(measure), sizes), strict=True))
        (small, before), (large, after) = list(seconds.items())[-2:]
        exponent = math.log(after / before) / math.log(large / small)
        found[name] = {"seconds": seconds, "exponent": exponent}
        times = ", ".join(f"{size:,}: {1000 * taken:.3g} ms" for size, taken in seconds.items())
        print(f"{name:<24} {times}; exponent {exponent:.2f}{'  BENDS' if exponent > BENDS else ''}", flush=True)
    store("growth", {"repeats": REPEATS, "curves": found}, quick)


if __name__ == "__main__":
    main()
