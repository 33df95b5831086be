"""What OverfittingMonitor and RunCost cost: the same run with and without, one after the other, again and again.

python -m benchmarks.monitor_cost [--rounds 10] [--epochs 10]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch import Callback, seed_everything

from benchmarks.report import machine
from lr_lightning import OverfittingMonitor, RunCost
from lr_lightning.app.train import quiet
from lr_lightning.training.classifier import LitClassifier
from lr_lightning.training.data import ImageDataModule
from lr_lightning.training.models import small_cnn
from lr_lightning.training.sources import digits

RESULT = Path(__file__).parent / "results" / "monitor_cost.json"


class ProbePass(Callback):
    """The probe's forward passes and nothing else: what the monitor may cost."""

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for batch in trainer.datamodule.probe_dataloader():
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            x, y = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            torch.nn.functional.cross_entropy(pl_module(x), y, reduction="none").sum()


VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "without": list,
    "probe pass alone": lambda: [ProbePass()],
    "OverfittingMonitor": lambda: [OverfittingMonitor()],
    "RunCost": lambda: [RunCost()],
    "both": lambda: [OverfittingMonitor(), RunCost()],
}


def seconds(callbacks: list[Callback], epochs: int) -> float:
    seed_everything(0, workers=True, verbose=False)
    data = ImageDataModule(digits, batch_size=64)
    module = LitClassifier(small_cnn(1, 10, (8, 8)), lambda m: torch.optim.SGD(m.parameters(), 0.05, 0.9), 10)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    began = time.process_time()  # of this process: the machine may be shared
    trainer.fit(module, datamodule=data)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for make in VARIANTS.values():
        seconds(make(), 2)
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.rounds):
        for name, make in VARIANTS.items():
            taken[name].append(seconds(make(), arguments.epochs))
    ratios = {
        name: [t / base for t, base in zip(times, taken["without"], strict=True)] for name, times in taken.items()
    }
    result = {
        "machine": machine(),
        "n": arguments.rounds,
        "epochs": arguments.epochs,
        "cpu_seconds_without": statistics.median(taken["without"]),
        "ratios": {name: {"median": statistics.median(r), "min": min(r), "max": max(r)} for name, r in ratios.items()},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
