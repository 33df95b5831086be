"""One training on a schedule, with the plugin alone, for benchmarks: no tracking, no monitors."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from hydra.core.override_parser.types import Quote, QuotedString
from lightning.pytorch import Callback, Trainer
from pyarrow import parquet

from benchmarks.pieces import SCRATCH
from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.run.checkpoints import LAST, AtomicCheckpointIO, RunCheckpoint
from lr_lightning.app.run.messages import quiet
from lr_lightning.app.run.train import build_data_and_module
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.random_state import RandomState
from lr_lightning.diagnosis.statistics import Mean, mean_ci
from lr_lightning.schedules import Schedule

_CHECKPOINT = {"enable_version_counter": False, "auto_insert_metric_name": False}
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    Attributes:
        accuracy: On the test set, with the last weights, 0..1.
        steps: Updates made.
        seconds: Of the fit; None where it was resumed.
    """

    accuracy: float
    steps: int
    seconds: float | None


def images(cifar10: Path | None) -> list[str]:
    """The overrides that choose CIFAR-10, or the digits where there is no folder.

    The validation images are the test images: nothing is chosen by them, and all 50,000 others are trained on.

    Args:
        cifar10: Folder with train.parquet and test.parquet.
    """
    if cifar10 is None:
        return ["data=digits"]
    train, test = quoted(cifar10 / "train.parquet"), quoted(cifar10 / "test.parquet")
    return ["data=parquet", f"data.train={train}", f"data.val={test}", f"data.test={test}"]


def part(cifar10: Path, count: int) -> Path:
    """A folder with a part of CIFAR-10: as many training images of each class, and all test images.

    It is written once, so that a training does not decode the images that it leaves out.

    Args:
        cifar10: Folder with train.parquet and test.parquet.
        count: Training images, a multiple of ten.
    """
    folder = SCRATCH / f"cifar10_{count}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "test.parquet").exists():
            folder.mkdir(exist_ok=True)
            table = parquet.read_table(cifar10 / "train.parquet")
            labels = table["label"].to_numpy()
            order = np.random.default_rng(0).permutation(len(labels))
            chosen = np.concatenate([order[labels[order] == label][: count // 10] for label in range(10)])
            parquet.write_table(table.take(np.sort(chosen)), folder / "train.parquet")
            shutil.copyfile(cifar10 / "test.parquet", folder / "copy.parquet")
            (folder / "copy.parquet").rename(folder / "test.parquet")  # its presence says that all is there
    return folder


def quoted(path: Path) -> str:
    """A path as the value of an override, where brackets, commas, blanks and ``${`` would mean something else.

    >>> quoted(Path("/data/CIFAR (10), b"))
    "'/data/CIFAR (10), b'"
    """
    return QuotedString(str(path).replace("${", "\\${"), Quote.single).with_quotes()


def train(
    overrides: Sequence[str],
    schedule: Schedule,
    *,
    steps: int = -1,
    epochs: int = -1,
    callbacks: Sequence[Callback] = (),
    checkpoints: Path | None = None,
    checkpoint_every: int = 1000,
    precision: str = "32-true",
) -> Trained:
    """Train what the overrides say on a schedule, and test the last weights.

    Args:
        overrides: As of scripts/train.py; their own schedule is not used.
        schedule: The factor of optimizer.lr.
        steps: Updates; or
        epochs: epochs.
        callbacks: Besides LRSchedule.
        checkpoints: A folder for checkpoints. A training that was stopped resumes there, bit for bit; None keeps none.
        checkpoint_every: Updates from one checkpoint to the next.
        precision: Of the Trainer.
    """
    prepare(ROOT)
    quiet()
    config = load_config(ROOT, [f"trainer.threads={torch.get_num_threads()}", *overrides])  # as the benchmark has set
    data, module = build_data_and_module(config)
    kept = (
        []
        if checkpoints is None
        else [RunCheckpoint(checkpoints, "last", every_n_train_steps=checkpoint_every, **_CHECKPOINT)]
    )
    last = None if checkpoints is None else checkpoints / LAST
    resumed = last is not None and last.exists()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        callbacks=[*callbacks, LRSchedule(schedule), RandomState(), *kept],
        logger=False,
        enable_checkpointing=bool(kept),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    began = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=last if resumed else None, weights_only=True if resumed else None)
    seconds = None if resumed else time.perf_counter() - began
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    return Trained(float(result["test/acc"]), int(trainer.global_step), seconds)


def percent(values: Sequence[float]) -> str:
    """Mean accuracy in percent with its 95 % t interval over seeds."""
    mean: Mean = mean_ci([100 * value for value in values])
    half = "" if np.isnan(mean.half) else f" ± {mean.half:.1f}"
    return f"{mean.mean:.1f}{half}"
