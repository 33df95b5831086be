"""The truth of ``benchmarks.whole_run``: one training of a cell, over its whole planned run, with one learning rate."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.finder_problems import batches, descend
from benchmarks.whole_run_cells import Cell
from lr_lightning.schedules import Clock

POINTS = 5
"""Validations of a training, at equal distances, the last one at its end."""


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
    examples, val = len(split.train[0]), split.val
    clock = Clock(total=cell.steps, steps_per_epoch=examples // cell.batch_size)
    torch.manual_seed(seed)
    net = cell.net()
    start = evaluate(net, *val)
    optimizer = cell.optimizer(net.parameters(), lr=lr)
    order = batches(examples, cell.batch_size, 1000 + seed)
    lrs = (lr * cell.schedule(step, clock) for step in range(cell.steps))
    points = {round(cell.steps * (i + 1) / POINTS) for i in range(POINTS)}
    curve: list[list[float]] = []
    losses: list[float] = []
    for step, loss in enumerate(descend(net, optimizer, F.cross_entropy, split.train, order, lrs), 1):
        losses.append(loss)
        if step in points and math.isfinite(loss):
            found = evaluate(net, *val)
            if not math.isfinite(found[0]):
                break
            curve.append([step, *found, float(np.mean(losses))])
            losses = []
    return {"start": start, "curve": curve}
