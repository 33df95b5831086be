"""Fine-tuning: the backbone at a tenth of the head's learning rate, frozen at first, then warmed up.

python examples/fine_tuning.py
"""

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning import LRSchedule, OverfittingMonitor, StepRecorder
from lr_lightning.schedules import Constant, Cosine, Join, Warmup


class FineTuner(L.LightningModule):
    """A pretrained backbone under a new head."""

    def __init__(self, backbone: nn.Module, features: int, classes: int, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.backbone, self.head = backbone, nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        logits: Tensor = self.head(self.backbone(x))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log val/loss."""
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with two named groups of different lr; a schedule multiplies each group's own peak."""
        return torch.optim.AdamW(
            [
                {"params": self.head.parameters(), "lr": self.lr, "name": "head"},
                {"params": self.backbone.parameters(), "lr": self.lr / 10, "name": "backbone"},
            ]
        )


def blobs(classes: int, count: int) -> TensorDataset:
    """Draw points in 16 dimensions around one centre per class; the centres are the same in every call."""
    centres = 2 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, classes, (count,))
    return TensorDataset(centres[labels] + torch.randn(count, 16), labels)


def pretrained() -> nn.Module:
    """Return a backbone trained on eight classes, in place of a downloaded one."""
    backbone = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
    net = nn.Sequential(backbone, nn.Linear(32, 8))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for x, y in DataLoader(blobs(8, 2000), 50):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    return backbone


def main(logs: str = "logs", max_epochs: int = 10) -> L.Trainer:
    """Train the head alone for 20 % of the run, then both."""
    L.seed_everything(0, verbose=False)
    monitor = OverfittingMonitor()
    later = Join((Constant(0.0), "20%"), (Warmup("10%", then=Cosine(end=0.0)), None))
    trainer = L.Trainer(
        max_epochs=max_epochs,
        callbacks=[
            LRSchedule(Warmup("5%", then=Cosine(end=0.0)), groups={"backbone": later}),
            StepRecorder(),  # lr/head and lr/backbone
            monitor,
        ],
        logger=CSVLogger(logs, name="fine_tuning"),
    )
    module = FineTuner(pretrained(), features=32, classes=2)
    trainer.fit(module, DataLoader(blobs(2, 128), 16, shuffle=True), DataLoader(blobs(2, 64), 64))
    print(monitor.verdict.text())
    return trainer


if __name__ == "__main__":
    main()
