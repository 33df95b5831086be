"""What does a fit cost with this plugin, beside what others use for the same, and beside no callback at all?

Run: ``python -m benchmarks.peers [--quick]`` (some minutes). A small CNN trains 10 epochs on the digits, 20 steps each,
validates after each, and logs the learning rate and the loss of every step. The arms take turns in one process:

* no callback: neither a learning rate nor a loss is logged;
* Lightning: ``LearningRateMonitor`` and ``MLFlowLogger``, on SQLite;
* W&B: ``LearningRateMonitor`` and ``WandbLogger``, offline, where ``wandb`` is installed;
* here: ``LRSchedule``, ``StepRecorder``, ``RunCost`` and ``OverfittingMonitor``, which also measures the probe, with
  ``RunLogger`` into MLflow on SQLite.

The time is that of the whole ``fit`` until every row is stored. Ratios to the first arm of the same round, medians with
the smallest and largest.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from benchmarks.report import at_least_one, show, spread, store
from lr_lightning import LRSchedule, OverfittingMonitor, RunCost, StepRecorder
from lr_lightning.app.run.messages import quiet
from lr_lightning.schedules import Cosine
from lr_lightning.tracking import RunLogger, open_store
from lr_lightning.training.classifier import LitClassifier
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.models import small_cnn
from lr_lightning.training.sources import digits

Setup = Callable[[Path], tuple[list[pl.Callback], Any]]


class Logs(LitClassifier):
    """Logs the loss of every step itself, as others' loggers need it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss["loss"] if isinstance(loss, dict) else loss, on_step=True)
        return loss


def none(_: Path) -> tuple[list[pl.Callback], Any]:
    """Nothing."""
    return [], False


def lightning(folder: Path) -> tuple[list[pl.Callback], Any]:
    """Lightning's own, with MLflow."""
    logger = MLFlowLogger(
        "peers", tracking_uri=f"sqlite:///{folder}/theirs.db", artifact_location=str(folder / "files")
    )
    return [LearningRateMonitor("step")], logger


def wandb(folder: Path) -> tuple[list[pl.Callback], Any]:
    """Lightning's own, with W&B offline."""
    return [LearningRateMonitor("step")], WandbLogger(save_dir=folder, offline=True, project="peers")


def ours(folder: Path) -> tuple[list[pl.Callback], Any]:
    """All callbacks of a run of this package."""
    callbacks = [LRSchedule(Cosine()), StepRecorder(), RunCost(), OverfittingMonitor()]
    return callbacks, RunLogger(store=open_store(folder / "ours"), experiment="peers")


ARMS: dict[str, Setup] = {"no callback": none, "Lightning, MLflow": lightning, "here, MLflow": ours}
if find_spec("wandb") is not None:
    ARMS["W&B, offline"] = wandb


def seconds(setup: Setup, folder: Path, epochs: int) -> float:
    """Return the wall time of a fit until its rows are stored."""
    pl.seed_everything(0, workers=True, verbose=False)
    kind = Logs if setup in (lightning, wandb) else LitClassifier
    module = kind(small_cnn(1, 10, (8, 8)), lambda net: torch.optim.SGD(net.parameters(), 0.05, 0.9), 10)
    callbacks, logger = setup(folder)
    options: dict[str, Any] = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logger, callbacks=callbacks, log_every_n_steps=1,
        num_sanity_val_steps=0, default_root_dir=folder, **options,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.fit(module, datamodule=ImageDataModule(digits, batch_size=64))
    if setup is wandb:
        logger.experiment.finish()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=10)
    parser.add_argument("--quick", action="store_true", help="one round of one epoch, nothing stored")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        for setup in ARMS.values():  # the first time each imports, and makes its database
            seconds(setup, Path(place), 1)
        for number in range(1 if args.quick else args.rounds):
            for name, setup in list(ARMS.items())[:: 1 if number % 2 == 0 else -1]:
                taken[name].append(seconds(setup, Path(place), 1 if args.quick else 10))
    bare = taken["no callback"]
    found = {name: spread([a / b for a, b in zip(own, bare, strict=True)]) for name, own in taken.items()}
    for name, ratio in found.items():
        print(f"{name:<20}{statistics.median(taken[name]):>8.2f} s{show(ratio):>26}")
    taking = {name: spread(own) for name, own in taken.items()}
    store("peers", {"threads": 1, "seconds": taking, "ratio_to_no_callback": found}, args.quick)


if __name__ == "__main__":
    main()
