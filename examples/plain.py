"""The plugin in a plain Lightning script: find a learning rate, warm up, anneal, and learn whether the net overfits.

python examples/plain.py            # then: tensorboard --logdir logs
"""

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from lr_lightning import LRFinder, LRSchedule, OverfittingMonitor, StepRecorder
from lr_lightning.schedules import Cosine, Warmup


class Classifier(L.LightningModule):
    """A small CNN; nothing in it depends on the plugin."""

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 2] for images [B, 1, H, W]."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log val/loss and val/acc."""
        logits = self(batch[0])
        self.log("val/loss", cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW without a scheduler, as LRSchedule controls the lr."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def stripes(count: int = 768) -> TensorDataset:
    """Draw noisy 8×8 images of horizontal (0) and vertical (1) stripes."""
    labels = torch.randint(0, 2, (count,))
    lines = (torch.arange(8) % 2).float().expand(count, 1, 8, 8)
    images = torch.where(labels.view(-1, 1, 1, 1) == 1, lines, lines.transpose(2, 3))
    return TensorDataset(images + 0.5 * torch.randn_like(images), labels)


def main(logs: str = "logs", max_epochs: int = 5) -> L.Trainer:
    """Train with the lr that was found; TensorBoard and a CSV file get the lr and loss of every step."""
    L.seed_everything(0, verbose=False)
    train, val = random_split(stripes(), (640, 128))
    finder, monitor = LRFinder(), OverfittingMonitor()
    trainer = L.Trainer(
        max_epochs=max_epochs,
        callbacks=[finder, LRSchedule(Warmup("5%", then=Cosine(end=0.0))), StepRecorder(), monitor],
        logger=[TensorBoardLogger(logs, name="plain"), CSVLogger(logs, name="plain")],
    )
    trainer.fit(Classifier(), DataLoader(train, 32, shuffle=True), DataLoader(val, 128))
    print(monitor.verdict.text())
    return trainer


if __name__ == "__main__":
    main()
