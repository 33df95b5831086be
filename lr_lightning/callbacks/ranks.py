"""Numbers from all ranks to all. Every rank must call these, also one that has nothing to give."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

__all__ = ["each_rank", "from_all_ranks", "mean_over_ranks"]


def each_rank(trainer: Trainer, values: Sequence[float]) -> list[list[float]]:
    """The values of each rank, rank by rank; as many on all of them, in float64."""
    if trainer.world_size == 1:
        return [list(map(float, values))]
    mine = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    every: list[list[float]] = trainer.strategy.all_gather(mine).cpu().tolist()
    return every


def mean_over_ranks(trainer: Trainer, value: float | Tensor | None) -> float | None:
    """The mean over the ranks that have a value; None where none has."""
    rows = each_rank(trainer, [0.0, 0.0] if value is None else [float(value), 1.0])
    known = sum(have for _, have in rows)
    return sum(own for own, _ in rows) / known if known else None


def from_all_ranks(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows of all ranks, which may differ in number and be none, one rank after the other."""
    if trainer.world_size == 1:
        return rows
    counts: Any = trainer.strategy.all_gather(torch.tensor(len(rows), device=rows.device)).flatten().tolist()
    if not max(counts):
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    every = trainer.strategy.all_gather(padded)
    return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])
