"""A tiny module and data for callbacks in a real Trainer."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a Trainer that leaves and shows nothing."""


class Tiny(LightningModule):
    """A linear classifier with dropout, so that training draws from the global generator."""

    def __init__(self, lr: float = 0.1, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 2))
        self.lr = lr
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val/loss", cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Memory(Logger):
    """Keeps what is logged, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int | None, float]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows += [(key, step, float(value)) for key, value in metrics.items()]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def of(self, key: str) -> list[tuple[int | None, float]]:
        return [(step, value) for name, step, value in self.rows if name == key]


def loader(batch_size: int = 10) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size)


def trainer(tmp_path: Any, callbacks: list[Any], logger: Any = False, **options: Any) -> Trainer:
    settings = {**QUIET, "max_epochs": 2, "logger": logger, **options}
    return Trainer(default_root_dir=tmp_path, callbacks=callbacks, **settings)


def falling(step: int, clock: Any) -> float:
    """A schedule that is a plain function."""
    return 1.0 / (1 + step)
