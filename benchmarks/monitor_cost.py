"""What OverfittingMonitor and RunCost cost: the same run with and without, one after the other, again and again.

Run: ``python -m benchmarks.monitor_cost [--rounds 12] [--epochs 10] [--quick]``. CPU time of whole fits on the digits;
the arms take turns in one process, in changing order, and a round's ratio is to the fit without of the same round.
"""

import argparse
import time
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch import Callback, seed_everything

from benchmarks.report import at_least_one, show, spread, store
from lr_lightning import OverfittingMonitor, RunCost
from lr_lightning.app.run.messages import quiet
from lr_lightning.training.classifier import LitClassifier
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.models import small_cnn
from lr_lightning.training.sources import digits


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=12)
    parser.add_argument("--epochs", type=at_least_one, default=10)
    parser.add_argument("--quick", action="store_true", help="one round of two epochs, nothing stored")
    args = parser.parse_args()
    rounds, epochs = (1, 2) if args.quick else (args.rounds, args.epochs)
    quiet()
    torch.set_num_threads(1)
    for make in VARIANTS.values():
        seconds(make(), 2)
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        for name in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
            taken[name].append(seconds(VARIANTS[name](), epochs))
        print(f"  round {number + 1}: " + ", ".join(f"{name} {t[-1]:.2f} s" for name, t in taken.items()), flush=True)
    base = taken["without"]
    ratios = {name: spread([t / b for t, b in zip(times, base, strict=True)]) for name, times in taken.items()}
    print(f"\n{epochs} epochs, {rounds} rounds\n{'':20}{'CPU seconds':>24}{'ratio to without':>26}")
    for name, times in taken.items():
        print(f"{name:20}{show(spread(times)):>24}{show(ratios[name]):>26}")
    result = {"n": rounds, "epochs": epochs, "cpu_seconds": {name: spread(times) for name, times in taken.items()}}
    store("monitor_cost", {**result, "ratios": ratios}, args.quick)


if __name__ == "__main__":
    main()
