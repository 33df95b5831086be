"""Problems of ``benchmarks.finder_regret``, small trainings in plain torch, and the recordings made of any problem.

All of these have been used for choosing the rule; ``benchmarks.finder_held_out`` has those that were not.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RMSprop

from lr_lightning.training.decode import EncodedImages, Format
from lr_lightning.training.models import CifarResNet, SmallCNN, SmithCNN
from lr_lightning.training.sources import parquet

Data = tuple[Tensor, Tensor]
TRAIN_STEPS = 300
DENSE = np.geomspace(1e-5, 10, 25)  # four learning rates a decade; below, nothing learns in 300 steps


@dataclass(frozen=True)
class Problem:
    """A training whose only open setting is the learning rate."""

    data: Callable[[], Data]
    net: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    batch_size: int
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


# ------------------------------------------------------------------------------------------------------------- data


@cache
def digits(images: bool = False, label_noise: float = 0.0) -> Data:
    x, y = load_digits(return_X_y=True)
    x = (x - x.mean()) / x.std()
    rng = np.random.default_rng(0)
    y = np.where(rng.random(len(y)) < label_noise, rng.integers(0, 10, len(y)), y)
    inputs = torch.tensor(x, dtype=torch.float32)
    return (inputs.view(-1, 1, 8, 8) if images else inputs), torch.tensor(y, dtype=torch.int64)


def digits_rows() -> Data:
    x, y = digits()
    return x.view(-1, 8, 8), y


def digits_themselves() -> Data:
    x, _ = digits()
    return x, x


@cache
def friedman(scale: bool) -> Data:
    x, y = make_friedman1(2000, n_features=10, noise=1.0, random_state=0)
    y = (y - y.mean()) / y.std() if scale else y
    return torch.tensor(x * 2 - 1, dtype=torch.float32), torch.tensor(y[:, None], dtype=torch.float32)


def scaled(x: NDArray[np.float64], y: NDArray[np.int64]) -> Data:
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y, dtype=torch.int64)


@cache
def cancer() -> Data:
    return scaled(*load_breast_cancer(return_X_y=True))


@cache
def diabetes() -> Data:
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y[:, None], dtype=torch.float32)


@cache
def fading_sine() -> Data:
    """A curve whose noise grows from 0.01 to 0.3: its Gaussian likelihood has a negative logarithm below zero."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2000, 1))
    y = np.sin(3 * x) + rng.normal(size=x.shape) * (0.01 + 0.145 * (x + 1))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


@cache
def markov() -> Data:
    """Sequences of 24 symbols out of 16, in which the last two decide on the next."""
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(16, 0.1), size=(16, 16))
    seq = np.zeros((1500, 25), dtype=np.int64)
    seq[:, :2] = rng.integers(0, 16, (1500, 2))
    for t in range(2, 25):
        cumulative = table[seq[:, t - 2], seq[:, t - 1]].cumsum(1)
        seq[:, t] = (rng.random((1500, 1)) > cumulative).sum(1).clip(max=15)
    whole = torch.from_numpy(seq)
    return whole[:, :-1], whole[:, 1:]


@cache
def cifar10(folder: Path) -> Data:
    """The first 3,000 training images of CIFAR-10, halved to 16 x 16."""
    images = parquet(folder / "train.parquet").train
    pixels = EncodedImages(images, Format(3, 32, 32)).take(np.arange(3000)).float()
    x = F.avg_pool2d((pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True), 2)
    return x.contiguous(), torch.from_numpy(images.labels[:3000])


# ------------------------------------------------------------------------------------------------------------- nets


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), *([nn.BatchNorm1d(fan_out)] if norm else []), act()]
    return nn.Sequential(*layers[: -2 if norm else -1])


def plain_cnn(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.gru(x)[0][:, -1])
        return logits


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(16, 32), nn.Parameter(0.02 * torch.randn(24, 32))
        layers = [nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers, self.out = nn.ModuleList(layers), nn.Linear(32, 16)
        self.register_buffer("mask", torch.full((24, 24), -math.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.symbol(x) + self.place
        for layer in self.layers:
            h = layer(h, src_mask=self.mask)
        logits: Tensor = self.out(h).transpose(1, 2)
        return logits


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.symbol, self.two, self.out = nn.Embedding(16, 32), nn.Conv1d(32, 64, 2), nn.Conv1d(64, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(F.relu(self.two(F.pad(self.symbol(x).transpose(1, 2), (1, 0)))))
        return logits


# ------------------------------------------------------------------------------------------------------- the lists


def gaussian_nll(out: Tensor, y: Tensor) -> Tensor:
    """Output: mean and log variance."""
    mean, log_var = out.chunk(2, dim=1)
    return 0.5 * (log_var + (y - mean) ** 2 * torch.exp(-log_var)).mean()


momentum = partial(SGD, momentum=0.9)
pictures = partial(digits, images=True)

PROBLEMS: dict[str, Problem] = {
    "digits: MLP, SGD, 64": Problem(digits, lambda: mlp(64, 128, 10), SGD, 64),
    "digits: MLP, SGD, 8": Problem(digits, lambda: mlp(64, 64, 10), SGD, 8),
    "digits: tanh MLP, momentum, 32": Problem(digits, lambda: mlp(64, 128, 128, 10, act=nn.Tanh), momentum, 32),
    "digits: deep MLP with BN, Adam, 128": Problem(digits, lambda: mlp(64, 64, 64, 64, 10, norm=True), Adam, 128),
    "digits: MLP, RMSprop, 64": Problem(digits, lambda: mlp(64, 128, 10), RMSprop, 64),
    "digits, 30% wrong labels: MLP, Adam, 16": Problem(
        partial(digits, label_noise=0.3), lambda: mlp(64, 128, 10), Adam, 16
    ),
    "digits: CNN with BN, momentum, 64": Problem(pictures, lambda: SmallCNN(1, 10, (8, 8), 8), momentum, 64),
    "digits: CNN, AdamW, 64": Problem(pictures, lambda: plain_cnn(1, 8), AdamW, 64),
    "digits: CNN with BN, SGD, 32": Problem(pictures, lambda: SmallCNN(1, 10, (8, 8), 8), SGD, 32),
    "digits: ResNet-8, momentum, 16": Problem(pictures, lambda: CifarResNet(1, 10, (8, 8), 1), momentum, 16),
    "digits: Smith's CNN, Adam, 16": Problem(pictures, lambda: SmithCNN(1, 10, (8, 8)), Adam, 16),
    "digit rows: GRU, Adam, 64": Problem(digits_rows, Recurrent, Adam, 64),
    "digits: autoencoder, MSE, NAdam, 128": Problem(
        digits_themselves, lambda: mlp(64, 64, 16, 64, 64), NAdam, 128, F.mse_loss
    ),
    "friedman1: MLP, MSE, momentum, 32": Problem(
        partial(friedman, True), lambda: mlp(10, 64, 64, 1), momentum, 32, F.mse_loss
    ),
    "friedman1, raw scale: MLP, MSE, Adam, 64": Problem(
        partial(friedman, False), lambda: mlp(10, 64, 64, 1), Adam, 64, F.mse_loss
    ),
    "diabetes: linear, MSE, SGD, 32": Problem(diabetes, lambda: mlp(10, 1), SGD, 32, F.mse_loss),
    "cancer: logistic, Adagrad, 32": Problem(cancer, lambda: mlp(30, 2), Adagrad, 32),
    "cancer: MLP, momentum, 16": Problem(cancer, lambda: mlp(30, 32, 2), momentum, 16),
    "sine: MLP, Gaussian NLL, Adam, 64": Problem(
        fading_sine, lambda: mlp(1, 64, 64, 2, act=nn.Tanh), Adam, 64, gaussian_nll
    ),
    "sine: MLP, Gaussian NLL, SGD, 64": Problem(
        fading_sine, lambda: mlp(1, 64, 64, 2, act=nn.Tanh), SGD, 64, gaussian_nll
    ),
    "markov: Transformer, AdamW, 16": Problem(markov, Transformer, AdamW, 16),
    "markov: Transformer, momentum, 16": Problem(markov, Transformer, momentum, 16),
    # From here on: read once with the second rule, which was chosen on the others; then used for choosing today's.
    "digits: MLP with BN, SGD, 64": Problem(digits, lambda: mlp(64, 128, 64, 10, norm=True), SGD, 64),
    "digits: CNN, momentum, 32": Problem(pictures, lambda: plain_cnn(1, 8), momentum, 32),
    "digits: deep tanh MLP, Adam, 32": Problem(digits, lambda: mlp(64, 64, 64, 64, 10, act=nn.Tanh), Adam, 32),
    "digits: linear, Adam, 64": Problem(digits, lambda: mlp(64, 10), Adam, 64),
    "digits: MLP, Adagrad, 64": Problem(digits, lambda: mlp(64, 128, 10), Adagrad, 64),
    "digits, 30% wrong labels: CNN with BN, momentum, 16": Problem(
        partial(digits, images=True, label_noise=0.3), lambda: SmallCNN(1, 10, (8, 8), 8), momentum, 16
    ),
    "digits: autoencoder, MSE, momentum, 64": Problem(
        digits_themselves, lambda: mlp(64, 64, 16, 64, 64), momentum, 64, F.mse_loss
    ),
    "digit rows: GRU, RMSprop, 32": Problem(digits_rows, Recurrent, RMSprop, 32),
    "friedman1: MLP, MSE, RMSprop, 64": Problem(
        partial(friedman, True), lambda: mlp(10, 64, 64, 1), RMSprop, 64, F.mse_loss
    ),
    "diabetes: MLP, MSE, Adam, 32": Problem(diabetes, lambda: mlp(10, 64, 1), Adam, 32, F.mse_loss),
    "cancer: MLP, AdamW, 8": Problem(cancer, lambda: mlp(30, 32, 2), AdamW, 8),
    "sine: MLP, Gaussian NLL, momentum, 32": Problem(
        fading_sine, lambda: mlp(1, 64, 64, 2, act=nn.Tanh), momentum, 32, gaussian_nll
    ),
    "markov: convolution, Adam, 32": Problem(markov, lambda: Causal(), Adam, 32),
}


def cifar_problems(folder: Path) -> dict[str, Problem]:
    data = partial(cifar10, folder)
    return {
        "cifar: CNN with BN, momentum, 32": Problem(data, lambda: SmallCNN(3, 10, (16, 16), 16), momentum, 32),
        "cifar: Smith's CNN, Adam, 16": Problem(
            data, lambda: nn.Sequential(nn.AvgPool2d(2), SmithCNN(3, 10, (8, 8))), Adam, 16
        ),
        "cifar: ResNet-8, AdamW, 16": Problem(data, lambda: CifarResNet(3, 10, (16, 16), 1), AdamW, 16),
        "cifar: CNN, RMSprop, 32": Problem(data, lambda: plain_cnn(3, 16), RMSprop, 32),
    }


# ------------------------------------------------------------------------------------------------------ recordings


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


def descend(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: Data,
    order: Iterator[Tensor],
    lrs: Iterable[float],
) -> Iterator[float]:
    """Train one step for each learning rate, and yield the loss before its update; one that is not finite is the last.

    ``order`` yields the indices of each batch.
    """
    x, y = data
    for lr, index in zip(lrs, order, strict=False):
        optimizer.param_groups[0]["lr"] = lr
        value = loss(net(x[index]), y[index])
        number = value.item()
        if math.isfinite(number):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        yield number
        if not math.isfinite(number):
            return


def _run(problem: Problem, lrs: list[float], init: int, order: int) -> tuple[list[float], nn.Module]:
    """Train one step for each learning rate, and return the losses before each update, and the net."""
    data = problem.data()
    torch.manual_seed(init)
    net = problem.net()
    optimizer = problem.optimizer(net.parameters(), lr=lrs[0])
    indices = batches(len(data[0]), problem.batch_size, order)
    return list(descend(net, optimizer, problem.loss, data, indices, lrs)), net


@torch.no_grad()
def _full_loss(problem: Problem, net: nn.Module) -> float:
    """Loss over the training data, in eval mode."""
    x, y = problem.data()
    net.eval()
    parts = [problem.loss(net(a), b) * len(a) for a, b in zip(x.split(1000), y.split(1000), strict=True)]
    return float(sum(parts)) / len(x)


def dense_losses(problem: Problem, lr: float, seeds: range, steps: int = TRAIN_STEPS) -> list[dict[str, float]]:
    """Return each seed's loss before and after a training with a constant learning rate; infinity if it diverged."""
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        start = _full_loss(problem, problem.net())
        losses, net = _run(problem, [lr] * steps, seed, 1000 + seed)
        end = _full_loss(problem, net) if math.isfinite(losses[-1]) else math.inf
        found.append({"start": start, "end": end if math.isfinite(end) else math.inf})
    return found


def sweep(problem: Problem, lrs: list[float], init: int, order: int) -> list[float]:
    """The losses of a range test up to and with the first that is not finite."""
    return _run(problem, lrs, init, order)[0]


def record(problem: Problem, grids: dict[str, list[float]], seeds: range, dense_seeds: range) -> dict[str, Any]:
    """Everything that the report needs of one problem, as plain numbers: ``dense`` and ``sweeps`` (grid, init, run)."""
    return {
        "dense": [dense_losses(problem, float(lr), dense_seeds) for lr in DENSE],
        "sweeps": {
            name: [
                [sweep(problem, lrs, 100 + seed, 2000 + 10 * seed + run) for run in range(3 if len(lrs) == 100 else 1)]
                for seed in seeds
            ]
            for name, lrs in grids.items()
        },
    }
