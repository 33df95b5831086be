"""Record the real curves in curves/: python -m tests.diagnosis.record_curves [name ...]. Minutes on two cores."""

import sys
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning import LRSchedule, OverfittingMonitor
from lr_lightning.diagnosis.statistics import stratified_subset
from lr_lightning.schedules import WSD, Constant, Cosine, Schedule, Triangular, Warmup
from lr_lightning.training.classifier import LitClassifier
from lr_lightning.training.models import small_cnn
from lr_lightning.training.sources import digits
from tests.diagnosis.recorded import save


def _data(images: int, random_labels: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    raw = digits()
    x = torch.from_numpy(raw.train.array).float() / 128 - 1
    y = torch.from_numpy(raw.train.labels)
    held_out = torch.from_numpy(stratified_subset(raw.train.labels, 300, 1))
    rest = np.setdiff1d(np.arange(len(y)), held_out.numpy())
    mine = torch.from_numpy(rest[stratified_subset(raw.train.labels[rest], images, seed)])
    labels = y[mine].clone()
    if random_labels:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(images, generator=generator) < random_labels
        labels[drawn] = torch.randint(10, (int(drawn.sum()),), generator=generator)
    return TensorDataset(x[mine], labels), TensorDataset(x[held_out], y[held_out])


def train(
    images: int = 1000,
    random_labels: float = 0.0,
    lr: float = 0.05,
    epochs: int = 20,
    net: Callable[[], torch.nn.Module] = lambda: small_cnn(1, 10, (8, 8), width=8),
    schedule: Schedule | None = None,
    weight_decay: float = 5e-4,
    optimizer: str = "sgd",
    seed: int = 0,
    batch: int = 50,
) -> OverfittingMonitor:
    train_set, val_set = _data(images, random_labels, seed)
    seed_everything(seed, verbose=False)
    monitor = OverfittingMonitor()

    def make(module: torch.nn.Module) -> torch.optim.Optimizer:
        if optimizer == "adam":
            return torch.optim.Adam(module.parameters(), lr=lr)
        return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)

    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, LRSchedule(schedule or Constant())],
    )
    trainer.fit(
        LitClassifier(net(), make, 10),
        DataLoader(train_set, batch_size=min(batch, images), shuffle=True),
        DataLoader(val_set, batch_size=300),
    )
    return monitor


def mlp(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10)
    )


RUNS: dict[str, dict[str, Any]] = {
    "true_60_mlp": {"images": 60, "epochs": 300, "net": lambda: mlp(64), "lr": 0.05, "weight_decay": 0.0},
    "true_60_cosine": {"images": 60, "epochs": 200, "schedule": Warmup("5%", Cosine())},
    "random_60": {"images": 60, "random_labels": 1.0, "epochs": 150},
    "random_300_cosine": {"images": 300, "random_labels": 1.0, "epochs": 60, "schedule": Warmup("5%", Cosine())},
    "noisy_300": {"images": 300, "random_labels": 0.4, "epochs": 100},
    "tiny_lr": {"lr": 1e-5, "epochs": 20},
    "tiny_lr_cosine": {"lr": 1e-5, "epochs": 20, "schedule": Warmup("5%", Cosine())},
    "small_lr": {"lr": 3e-4, "epochs": 10, "schedule": Warmup("5%", Cosine())},
    "tiny_lr_mlp": {"lr": 1e-4, "epochs": 15, "net": lambda: mlp(64)},
    "tiny_net": {"net": lambda: mlp(1), "epochs": 60},
    "tiny_net_2": {"net": lambda: mlp(2), "epochs": 80, "schedule": Warmup("5%", Cosine())},
    "tiny_net_cnn": {
        "net": lambda: small_cnn(1, 10, (8, 8), width=1),
        "epochs": 60,
        "schedule": Warmup("5%", Cosine()),
    },
    "lr_1e3": {"lr": 1e3, "epochs": 6},
    "lr_10_mlp": {"lr": 10.0, "epochs": 10, "net": lambda: mlp(64)},
    "lr_1_mlp": {"lr": 1.5, "epochs": 15, "net": lambda: mlp(64)},
    "good_cosine": {"epochs": 15, "schedule": Warmup("5%", Cosine())},
    "good_constant": {"epochs": 15},
    "good_wsd": {"epochs": 20, "schedule": WSD()},
    "good_triangular": {"epochs": 20, "schedule": Triangular(base=0.1, up="10%")},
    "short_adam": {"epochs": 15, "optimizer": "adam", "lr": 1e-3},
    "good_long": {"epochs": 60, "schedule": Warmup("5%", Cosine())},
}


def record(name: str) -> None:
    monitor = train(**RUNS[name])
    save(name, monitor.history)
    print(f"{name}: {monitor.verdict.text()}", flush=True)


if __name__ == "__main__":
    for each in sys.argv[1:] or RUNS:
        record(each)
