"""The cells of ``benchmarks.whole_run``: trainings in which only the learning rate is open.

All cells were written before the first of them was run, and none was dropped afterwards. Every second one is sealed:
its results may be trained and stored at any time, but no rule is chosen, tuned or judged on them before the end of the
work on the rules. ``SEALED`` names them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, RMSprop

from benchmarks.finder_held_out import Patches, depthwise, layer_norm_mlp
from benchmarks.finder_problems import Transformer, markov, mlp, plain_cnn
from lr_lightning.schedules import WSD, Constant, Cosine, Linear, OneCycle, Schedule, Warmup
from lr_lightning.training.decode import EncodedImages, Format
from lr_lightning.training.models import CifarResNet, SmallCNN
from lr_lightning.training.sources import parquet


@dataclass(frozen=True)
class Split:
    """Inputs and targets for training and for validation; validation targets are never noisy."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cell:
    """A training in which only the learning rate is open.

    Attributes:
        name: Unique.
        data: From the share of random training labels to the data.
        net: Makes the network, with torch's global generator.
        optimizer: Makes the optimizer from parameters and ``lr=``.
        batch_size: Examples an update.
        steps: Updates of the whole run.
        schedule: The factor of the learning rate over the run.
        noise: Share of training labels that are replaced by random ones.
    """

    name: str
    data: Callable[[float], Split]
    net: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    batch_size: int
    steps: int
    schedule: Schedule
    noise: float = 0.0


# ------------------------------------------------------------------------------------------------------------- data

CIFAR10: Path | None = None
"""Folder with train.parquet; set by the command."""


def _noisy(y: Tensor, share: float, classes: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    other = torch.randint(0, classes, y.shape, generator=random)
    return torch.where(torch.rand(y.shape, generator=random) < share, other, y)


def _split(x: Tensor, y: Tensor, train: int, noise: float, classes: int) -> Split:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    a, b = order[:train], order[train:]
    return Split((x[a].contiguous(), _noisy(y[a], noise, classes)), (x[b].contiguous(), y[b]))


@cache
def digits(noise: float) -> Split:
    """1,297 and 500 pictures of 8 x 8."""
    x, y = load_digits(return_X_y=True)
    x = torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32).view(-1, 1, 8, 8)
    return _split(x, torch.tensor(y, dtype=torch.int64), 1297, noise, 10)


@cache
def flat_digits(noise: float) -> Split:
    """The digits as rows of 64."""
    split = digits(noise)
    return Split((split.train[0].flatten(1), split.train[1]), (split.val[0].flatten(1), split.val[1]))


@cache
def _pixels(count: int) -> tuple[Tensor, Tensor]:
    if CIFAR10 is None:
        raise SystemExit("--cifar10: give the folder with train.parquet; these cells need it")
    images = parquet(CIFAR10 / "train.parquet").train
    pixels = EncodedImages(images, Format(3, 32, 32)).take(np.arange(count)).float()
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    return pixels, torch.from_numpy(images.labels[:count].astype(np.int64))


@cache
def cifar16(noise: float) -> Split:
    """5,000 and 1,000 pictures of CIFAR-10, halved to 16 x 16."""
    x, y = _pixels(6000)
    return _split(F.avg_pool2d(x, 2), y, 5000, noise, 10)


@cache
def cifar32(noise: float) -> Split:
    """8,000 and 1,000 pictures of CIFAR-10."""
    x, y = _pixels(9000)
    return _split(x, y, 8000, noise, 10)


@cache
def teacher(noise: float) -> Split:
    """4,000 and 1,000 normal vectors of 24, labelled by the largest of ten outputs of a random tanh net."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 24, generator=random)
    first = torch.randn(24, 48, generator=random) / math.sqrt(6)
    second = torch.randn(48, 10, generator=random)
    return _split(x, (torch.tanh(x @ first) @ second).argmax(1), 4000, noise, 10)


@cache
def sequences(noise: float) -> Split:
    """1,200 and 300 sequences of 24 symbols, in which the last two decide on the next."""
    x, y = markov()
    return _split(x, y, 1200, noise, 16)


# ------------------------------------------------------------------------------------------------------------- nets


def bn_cnn(channels: int, size: int, width: int) -> nn.Module:
    """A small CNN with batch norm."""
    return SmallCNN(channels, 10, (size, size), width)


def residual(channels: int, size: int) -> nn.Module:
    """A residual network of eight layers."""
    return CifarResNet(channels, 10, (size, size), 1)


class Attention(nn.Module):
    """A one-layer vision transformer over the 4 x 4 patches of a 16 x 16 picture."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(3, 48, 4, stride=4), nn.Parameter(0.02 * torch.randn(16, 48))
        self.layer = nn.TransformerEncoderLayer(48, 4, 96, 0.0, activation="gelu", batch_first=True, norm_first=True)
        self.norm, self.out = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape [batch, 10]."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.out(self.norm(self.layer(tokens)).mean(1))
        return logits


# ------------------------------------------------------------------------------------------------------------ cells

momentum = partial(SGD, momentum=0.9)
decayed = partial(SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
adamw = partial(AdamW, weight_decay=0.01)

constant, one_cycle, wsd = Constant(), OneCycle(), WSD()
cosine, linear = Warmup("5%", then=Cosine(1, 0)), Warmup("5%", then=Linear(1, 0))

bn16, plain16 = partial(bn_cnn, 3, 16, 12), partial(plain_cnn, 3, 12)
bn8, plain8 = partial(bn_cnn, 1, 8, 8), partial(plain_cnn, 1, 8)

_CELLS = [
    # digits
    Cell("digits BN-CNN momentum 64, 300 cosine", digits, bn8, momentum, 64, 300, cosine),
    Cell("digits BN-CNN momentum 64, 1000 cosine, noise 40 %", digits, bn8, momentum, 64, 1000, cosine, 0.4),
    Cell("digits CNN SGD 32, 1000 linear", digits, plain8, SGD, 32, 1000, linear),
    Cell("digits CNN AdamW 16, 3000 cosine, noise 20 %", digits, plain8, adamw, 16, 3000, cosine, 0.2),
    Cell("digits MLP SGD 64, 300 constant", flat_digits, lambda: mlp(64, 128, 10), SGD, 64, 300, constant),
    Cell("digits MLP RMSprop 64, 1000 wsd", flat_digits, lambda: mlp(64, 128, 10), RMSprop, 64, 1000, wsd),
    Cell("digits LN-MLP AdamW 128, 300 1cycle", flat_digits, layer_norm_mlp, adamw, 128, 300, one_cycle),
    Cell("digits deep BN-MLP momentum 256, 1000 linear", flat_digits,
         lambda: mlp(64, 64, 64, 64, 10, norm=True), momentum, 256, 1000, linear),
    Cell("digits ResNet-8 decayed 32, 300 1cycle", digits, partial(residual, 1, 8), decayed, 32, 300, one_cycle),
    Cell("digits attention AdamW 32, 1000 cosine", digits, Patches, adamw, 32, 1000, cosine),
    Cell("digits depthwise momentum 32, 300 wsd, noise 20 %", digits,
         lambda: depthwise(1, 12), momentum, 32, 300, wsd, 0.2),
    Cell("digits tanh-MLP momentum 16, 3000 constant, noise 40 %", flat_digits,
         lambda: mlp(64, 96, 96, 10, act=nn.Tanh), momentum, 16, 3000, constant, 0.4),
    # synthetic
    Cell("teacher MLP momentum 64, 1000 cosine", teacher, lambda: mlp(24, 128, 10), momentum, 64, 1000, cosine),
    Cell("teacher MLP AdamW 64, 3000 linear, noise 20 %", teacher,
         lambda: mlp(24, 128, 128, 10), adamw, 64, 3000, linear, 0.2),
    Cell("teacher tanh-MLP SGD 16, 1000 wsd", teacher, lambda: mlp(24, 64, 10, act=nn.Tanh), SGD, 16, 1000, wsd),
    Cell("teacher BN-MLP RMSprop 128, 300 cosine", teacher,
         lambda: mlp(24, 96, 96, 10, norm=True), RMSprop, 128, 300, cosine),
    Cell("markov transformer AdamW 16, 1000 linear", sequences, Transformer, adamw, 16, 1000, linear),
    Cell("markov transformer AdamW 32, 300 cosine", sequences, Transformer, adamw, 32, 300, cosine),
    Cell("markov transformer momentum 32, 1000 1cycle", sequences, Transformer, momentum, 32, 1000, one_cycle),
    Cell("teacher MLP SGD 256, 300 linear, noise 40 %", teacher, lambda: mlp(24, 128, 10), SGD, 256, 300, linear, 0.4),
    # CIFAR-10
    Cell("cifar16 BN-CNN momentum 64, 300 cosine", cifar16, bn16, momentum, 64, 300, cosine),
    Cell("cifar16 BN-CNN momentum 64, 1000 linear, noise 20 %", cifar16, bn16, momentum, 64, 1000, linear, 0.2),
    Cell("cifar16 CNN momentum 64, 1000 cosine", cifar16, plain16, momentum, 64, 1000, cosine),
    Cell("cifar16 CNN momentum 64, 3000 cosine", cifar16, plain16, momentum, 64, 3000, cosine),
    Cell("cifar16 CNN AdamW 32, 1000 wsd", cifar16, plain16, adamw, 32, 1000, wsd),
    Cell("cifar16 BN-CNN AdamW 64, 3000 cosine, noise 40 %", cifar16, bn16, adamw, 64, 3000, cosine, 0.4),
    Cell("cifar16 ResNet-8 decayed 64, 1000 cosine", cifar16, partial(residual, 3, 16), decayed, 64, 1000, cosine),
    Cell("cifar16 ResNet-8 AdamW 32, 300 linear", cifar16, partial(residual, 3, 16), adamw, 32, 300, linear),
    Cell("cifar16 attention AdamW 64, 1000 cosine", cifar16, Attention, adamw, 64, 1000, cosine),
    Cell("cifar16 attention momentum 64, 1000 linear", cifar16, Attention, momentum, 64, 1000, linear),
    Cell("cifar16 MLP momentum 128, 300 1cycle", cifar16,
         lambda: nn.Sequential(nn.Flatten(), mlp(768, 64, 64, 10, act=nn.GELU)), momentum, 128, 300, one_cycle),
    Cell("cifar16 MLP RMSprop 64, 1000 constant, noise 20 %", cifar16,
         lambda: nn.Sequential(nn.Flatten(), mlp(768, 64, 10)), RMSprop, 64, 1000, constant, 0.2),
    Cell("cifar16 BN-CNN RMSprop 256, 300 wsd", cifar16, bn16, RMSprop, 256, 300, wsd),
    Cell("cifar16 CNN SGD 16, 3000 linear, noise 20 %", cifar16, plain16, SGD, 16, 3000, linear, 0.2),
    Cell("cifar32 BN-CNN momentum 64, 300 1cycle", cifar32, partial(bn_cnn, 3, 32, 8), momentum, 64, 300, one_cycle),
    Cell("cifar32 CNN AdamW 64, 1000 constant", cifar32, partial(plain_cnn, 3, 8), adamw, 64, 1000, constant),
]  # fmt: skip
CELLS = {cell.name: cell for cell in _CELLS}
SEALED = frozenset(list(CELLS)[1::2])
"""Every second cell, by its place in the list."""
