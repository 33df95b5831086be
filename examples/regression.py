"""The plugin for a regression: per_example_loss tells the monitor what to measure on probe and validation set.

python examples/regression.py
"""

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lr_lightning import LRFinder, LRSchedule, OverfittingMonitor, ScheduleAwareStopping, StepRecorder
from lr_lightning.schedules import WSD

Batch = tuple[Tensor, Tensor]


class Regressor(L.LightningModule):
    """A wide net for y = sin(3x) + noise."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(1, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return predictions [B, 1] for x [B, 1]."""
        y: Tensor = self.net(x)
        return y

    def per_example_loss(self, batch: Batch) -> Tensor:
        """Return the squared error of each example, [B]."""
        x, y = batch
        return (self(x) - y).square().squeeze(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean squared error of a batch."""
        return self.per_example_loss(batch).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log val/loss."""
        self.log("val/loss", self.per_example_loss(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam without a scheduler."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main(logs: str = "logs", max_epochs: int = 30) -> L.Trainer:
    """Train, and stop early if the validation loss does not improve for long, but not before the cooldown."""
    L.seed_everything(0, verbose=False)
    x = torch.rand(640, 1) * 4 - 2
    train, val = random_split(TensorDataset(x, torch.sin(3 * x) + 0.1 * torch.randn_like(x)), (512, 128))
    monitor = OverfittingMonitor(chance=0.6)  # the variance of y: the loss of a model that predicts its mean
    trainer = L.Trainer(
        max_epochs=max_epochs,
        log_every_n_steps=1,
        callbacks=[
            LRFinder(),
            LRSchedule(WSD(warmup="5%", cooldown="20%")),
            StepRecorder(),
            monitor,
            ScheduleAwareStopping("val/loss", patience=10),
        ],
        logger=CSVLogger(logs, name="regression"),
    )
    trainer.fit(Regressor(), DataLoader(train, 32, shuffle=True), DataLoader(val, 128))
    print(monitor.verdict.text())
    return trainer


if __name__ == "__main__":
    main()
