"""Over whole planned runs: how much worse than the best learning rate is the one that a rule suggests?

Run: ``python -m benchmarks.whole_run --cifar10 FOLDER [--jobs 2] [--report] [--unseal] [--quick]``. For every cell of
``benchmarks.whole_run_cells`` a dense sweep trains the whole planned run, schedule included, with each learning rate
(three a decade over 1e-5..10, two seeds): the truth. Every finished training is stored at once, and the same command
continues where it stopped.

The regret of a learning rate is ``(L(lr) − L(best)) / (L(start) − L(best))``, with L the validation loss after the last
update, the mean over seeds, interpolated in the logarithm of the learning rate. 0 is the best swept one, 1 is no
learning; a diverged run counts as no learning. The same with the share of errors in place of the loss stands beside it.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import whole_run_cells
from benchmarks.pieces import Piece, add_options, finish
from benchmarks.whole_run_cells import CELLS, Cell
from lr_lightning.schedules import Clock

LRS = [float(f"{lr:.4g}") for lr in np.geomspace(1e-5, 10, 19)]
SEEDS = 2
POINTS = 5
"""Validations of a training, at equal distances, the last one at its end."""


# ------------------------------------------------------------------------------------------------------------ truth


def batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of batches, epoch after epoch, without end; the last incomplete batch of an epoch is left out.

    Args:
        count: Examples.
        size: Examples a batch.
        seed: Of the order.
    """
    order = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=order)[: count // size * size].split(size)


@torch.no_grad()
def evaluate(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean cross entropy and the share of errors, in eval mode."""
    net.eval()
    logits = torch.cat([net(part) for part in x.split(500)])
    net.train()
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) != y).float().mean())


def train(cell: Cell, lr: float, seed: int) -> dict[str, Any]:
    """Train the whole run with one learning rate.

    Returns:
        ``start``, the loss and error on the validation data before the first update, and ``curve``, a list of [updates,
        validation loss, validation error, mean training loss since the point before]. A run that diverges ends early.
    """
    split = cell.data(cell.noise)
    (x, y), val = split.train, split.val
    clock = Clock(total=cell.steps, steps_per_epoch=len(x) // cell.batch_size)
    torch.manual_seed(seed)
    net = cell.net()
    start = evaluate(net, *val)
    optimizer = cell.optimizer(net.parameters(), lr=lr)
    order = batches(len(x), cell.batch_size, 1000 + seed)
    points = {round(cell.steps * (i + 1) / POINTS) for i in range(POINTS)}
    curve: list[list[float]] = []
    losses: list[float] = []
    for step in range(cell.steps):
        index = next(order)
        optimizer.param_groups[0]["lr"] = lr * cell.schedule(step, clock)
        loss = F.cross_entropy(net(x[index]), y[index])
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in points:
            found = evaluate(net, *val)
            if not math.isfinite(found[0]):
                break
            curve.append([step + 1, *found, float(np.mean(losses))])
            losses = []
    return {"start": start, "curve": curve}


def work(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one piece."""
    if "cifar10" in settings:
        whole_run_cells.CIFAR10 = Path(settings["cifar10"])
    return train(CELLS[settings["cell"]], settings["lr"], settings["seed"])


def pieces(cells: Mapping[str, Cell], cifar10: Path | None) -> list[Piece]:
    """Return the trainings of the truth: all learning rates of one seed and cell, then the next cell."""
    extra = {"cifar10": str(cifar10)} if cifar10 else {}
    return [
        Piece(f"{name}, lr {lr:g}, seed {seed}", {"cell": name, "lr": lr, "seed": seed, **extra}, cell.steps)
        for seed in range(SEEDS)
        for name, cell in cells.items()
        for lr in LRS
    ]


def main() -> None:
    """Train what is not stored yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="with train.parquet; adds the cells of CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="two cells, few learning rates, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    whole_run_cells.CIFAR10 = args.cifar10
    cells = {name: cell for name, cell in CELLS.items() if args.cifar10 or not name.startswith("cifar")}
    finish("whole_run", pieces(cells, args.cifar10), "benchmarks.whole_run:work", jobs=args.jobs)


if __name__ == "__main__":
    main()
