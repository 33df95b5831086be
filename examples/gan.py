"""Two optimizers under manual optimization: a GAN on eight Gaussians, a schedule for each optimizer.

python examples/gan.py
"""

import math

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning import LRSchedule, StepRecorder
from lr_lightning.schedules import Constant, Linear, Warmup


class GAN(L.LightningModule):
    """The non-saturating GAN (Goodfellow et al. 2014, arXiv 1406.2661) with a net of two layers on each side."""

    def __init__(self, g_lr: float = 1e-3, d_lr: float = 2e-3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.g_lr, self.d_lr = g_lr, d_lr
        self.generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Update the discriminator twice and the generator once; return the generator's loss."""
        g_opt, d_opt = self.optimizers()  # type: ignore[attr-defined]
        (real,) = batch
        for _ in range(2):
            fake = self.generator(torch.randn(len(real), 8))
            d_loss = softplus(-self.discriminator(real)).mean() + softplus(self.discriminator(fake.detach())).mean()
            d_opt.zero_grad()
            self.manual_backward(d_loss)
            d_opt.step()
        g_loss = softplus(-self.discriminator(self.generator(torch.randn(len(real), 8)))).mean()
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        return g_loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the generator's and the discriminator's optimizer, in the order of LRSchedule's list."""
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.g_lr, betas=(0.5, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.d_lr, betas=(0.5, 0.999)),
        ]


def main(logs: str = "logs", max_epochs: int = 5) -> L.Trainer:
    """Anneal the generator's lr and hold the discriminator's; each optimizer counts its own updates."""
    L.seed_everything(0, verbose=False)
    angles = 2 * math.pi * torch.randint(0, 8, (640,)) / 8
    points = torch.stack([angles.cos(), angles.sin()], 1) + 0.05 * torch.randn(640, 2)
    steps = max_epochs * len(points) // 32
    trainer = L.Trainer(
        max_epochs=max_epochs,
        callbacks=[
            LRSchedule([Warmup("5%", then=Linear(end=0.0)), Constant()], total_steps=[steps, 2 * steps]),
            StepRecorder(),  # lr/group0 and lr/opt1_group0
        ],
        logger=CSVLogger(logs, name="gan"),
    )
    trainer.fit(GAN(), DataLoader(TensorDataset(points), 32, shuffle=True))
    return trainer


if __name__ == "__main__":
    main()
