"""A second and a third set of cells for ``benchmarks.whole_run``, all sealed: other data, other networks.

Each was drawn at random, and committed before any of it was trained, after the sets before it had been opened: what was
then changed with those in view is judged here. The second set is harder: wave forms, rows of digits, spirals and other
images of CIFAR-10; two to ten classes, 300 to 3,000 examples, 10 and 30 % of wrong labels; recurrent and residual
networks, group norm, Adam and Nesterov's momentum. Of the nine kinds of data of the third set, five are the second's
and two the first's (all digits, sequences). Two are new: images of CIFAR-10 that no other cell has, another teacher.
These four have networks of the first set.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop

from benchmarks.finder_held_out import Patches, depthwise
from benchmarks.finder_problems import Transformer, mlp, plain_cnn
from benchmarks.whole_run_cells import (
    Attention,
    Cell,
    Split,
    _pixels,
    _split,
    bn8,
    bn16,
    digits,
    plain8,
    plain16,
    residual,
    sequences,
)
from lr_lightning.schedules import WSD, Constant, Cosine, Linear, OneCycle, Polynomial, Schedule, Warmup
from lr_lightning.training.models import SmallCNN

# ------------------------------------------------------------------------------------------------------------- data


@cache
def cifar8(noise: float) -> Split:
    """3,000 and 1,000 pictures of CIFAR-10, quartered to 8 x 8; none of them is in another cell."""
    x, y = _pixels(13_000)
    return _split(F.avg_pool2d(x[9000:], 4), y[9000:], 3000, noise, 10)


@cache
def cifar16_other(noise: float) -> Split:
    """4,000 and 1,000 pictures of CIFAR-10 at 16 x 16; none of them is in another cell."""
    x, y = _pixels(20_000)
    return _split(F.avg_pool2d(x[15_000:], 2), y[15_000:], 4000, noise, 10)


@cache
def other_teacher(noise: float) -> Split:
    """2,500 and 500 normal vectors of 16, labelled by the largest of six outputs of a random ReLU net."""
    random = torch.Generator().manual_seed(5)
    x = torch.randn(3000, 16, generator=random)
    first, second = torch.randn(16, 64, generator=random) / 2, torch.randn(64, 6, generator=random)
    return _split(x, (torch.relu(x @ first) @ second).argmax(1), 2500, noise, 6)


@cache
def animals(noise: float) -> Split:
    """1,000 and 1,000 pictures of CIFAR-10 at 16 x 16, animals or vehicles."""
    x, y = _pixels(15_000)
    animal = ((y >= 2) & (y <= 7)).long()
    return _split(F.avg_pool2d(x[13_000:], 2), animal[13_000:], 1000, noise, 2)


@cache
def few_digits(noise: float) -> Split:
    """300 and 500 pictures of 8 x 8."""
    split = digits(0.0)
    return Split((split.train[0][:300], _wrong(split.train[1][:300], noise, 10)), split.val)


@cache
def spirals(noise: float) -> Split:
    """2,000 and 1,000 points of five spirals in a plane, beside six coordinates that tell nothing."""
    random = torch.Generator().manual_seed(2)
    y = torch.randint(0, 5, (3000,), generator=random)
    radius = torch.rand(3000, generator=random)
    angle = 2 * math.pi * (y / 5 + radius) + 0.15 * torch.randn(3000, generator=random)
    plane = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) * 2
    return _split(torch.cat([plane, torch.randn(3000, 6, generator=random)], 1), y, 2000, noise, 5)


@cache
def waves(noise: float) -> Split:
    """1,500 and 500 noisy wave forms of 32 values: sine, square, saw tooth or triangle, of any frequency and phase."""
    random = torch.Generator().manual_seed(3)
    y = torch.randint(0, 4, (2000,), generator=random)
    frequency = 1 + 3 * torch.rand(2000, 1, generator=random)
    turn = (torch.linspace(0, 1, 32) * frequency + torch.rand(2000, 1, generator=random)) % 1
    forms = torch.stack([(2 * math.pi * turn).sin(), (turn < 0.5) * 2.0 - 1, 2 * turn - 1, 4 * (turn - 0.5).abs() - 1])
    x = forms[y, torch.arange(2000)] + 0.5 * torch.randn(2000, 32, generator=random)
    return _split(x.unsqueeze(2), y, 1500, noise, 4)


def _wrong(y: Tensor, share: float, classes: int) -> Tensor:
    random = torch.Generator().manual_seed(4)
    other = torch.randint(0, classes, y.shape, generator=random)
    return torch.where(torch.rand(y.shape, generator=random) < share, other, y)


# ------------------------------------------------------------------------------------------------------------- nets


class Recurrent(nn.Module):
    """A GRU over a sequence, [batch, time, features]; rows of a picture are a sequence too."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(features, 32, batch_first=True), nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape [batch, classes]."""
        rows = x.squeeze(1) if x.dim() == 4 else x
        logits: Tensor = self.out(self.gru(rows)[0][:, -1])
        return logits


class ResidualMLP(nn.Module):
    """Four residual blocks of LayerNorm, GELU and two linear layers."""

    def __init__(self, features: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(features, width), nn.Linear(width, classes)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape [batch, classes]."""
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = h + block(h)
        logits: Tensor = self.out(h)
        return logits


def group_norm_cnn(channels: int, classes: int) -> nn.Module:
    """A CNN of three convolutions with group norm."""
    widths = (channels, 16, 24, 32)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, classes))


def _cnn(channels: int, classes: int) -> nn.Module:
    net = plain_cnn(channels, 16)
    assert isinstance(net, nn.Sequential)
    net[-1] = nn.Linear(net[-1].in_features, classes)  # type: ignore[arg-type]
    return net


# ------------------------------------------------------------------------------------------------------------ cells

Net = Callable[[], nn.Module]
_DATA: dict[str, tuple[Callable[[float], Split], dict[str, Net]]] = {
    "cifar8": (
        cifar8,
        {
            "group-norm CNN": lambda: group_norm_cnn(3, 10),
            "CNN": lambda: _cnn(3, 10),
            "residual MLP": lambda: ResidualMLP(192, 10),
        },
    ),
    "animals": (
        animals,
        {"CNN": lambda: _cnn(3, 2), "BN-CNN": lambda: SmallCNN(3, 2, (16, 16), 8)},
    ),
    "few digits": (
        few_digits,
        {
            "GRU": lambda: Recurrent(8, 10),
            "BN-CNN": lambda: SmallCNN(1, 10, (8, 8), 8),
            "group-norm CNN": lambda: group_norm_cnn(1, 10),
        },
    ),
    "spirals": (
        spirals,
        {
            "MLP": lambda: mlp(8, 64, 64, 5),
            "GELU MLP": lambda: mlp(8, 96, 5, act=nn.GELU),
            "residual MLP": lambda: ResidualMLP(8, 5),
        },
    ),
    "waves": (
        waves,
        {
            "GRU": lambda: Recurrent(1, 4),
            "MLP": lambda: nn.Sequential(nn.Flatten(), mlp(32, 64, 64, 4)),
            "BN-MLP": lambda: nn.Sequential(nn.Flatten(), mlp(32, 64, 64, 4, norm=True)),
        },
    ),
}
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": partial(SGD, momentum=0.9),
    "nesterov": partial(SGD, momentum=0.95, nesterov=True, weight_decay=1e-3),
    "SGD": SGD,
    "Adam": Adam,
    "AdamW": partial(AdamW, weight_decay=0.1),
    "RMSprop": partial(RMSprop, momentum=0.9),
}
_SCHEDULES: dict[str, Schedule] = {
    "cosine": Warmup("10%", then=Cosine(1, 0.01)),
    "linear": Warmup("2%", then=Linear(1, 0)),
    "1cycle": OneCycle(),
    "wsd": WSD(),
    "constant": Constant(),
    "polynomial": Polynomial(2, 0),
}


_MORE_DATA: dict[str, tuple[Callable[[float], Split], dict[str, Net]]] = {
    "cifar16 other": (
        cifar16_other,
        {"CNN": plain16, "BN-CNN": bn16, "ResNet-8": partial(residual, 3, 16), "attention": Attention},
    ),
    "all digits": (
        digits,
        {"CNN": plain8, "BN-CNN": bn8, "attention": Patches, "depthwise": lambda: depthwise(1, 12)},
    ),
    "other teacher": (
        other_teacher,
        {"MLP": lambda: mlp(16, 96, 6), "BN-MLP": lambda: mlp(16, 64, 64, 6, norm=True)},
    ),
    "sequences": (sequences, {"transformer": Transformer}),
}


def _drawn(
    count: int, seed: int, data: Mapping[str, tuple[Callable[[float], Split], dict[str, Net]]], lengths: Sequence[int]
) -> dict[str, Cell]:
    """Draw cells: each kind of data equally often, everything else evenly, at most 60,000 examples a training.

    Args:
        count: Of cells.
        seed: Of the draw.
        data: Kinds of data, each with its networks.
        lengths: To choose from, in updates.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for index in range(count):
        kind = list(data)[index % len(data)]
        make, nets = data[kind]
        net = str(rng.choice(list(nets)))
        optimizer, schedule = str(rng.choice(list(_OPTIMIZERS))), str(rng.choice(list(_SCHEDULES)))
        batch = int(rng.choice([16, 24, 48, 96, 192]))
        steps = int(rng.choice([steps for steps in lengths if steps * batch <= 60_000]))
        noise = float(rng.choice([0.0, 0.0, 0.1, 0.3]))
        wrong = f", noise {noise:.0%}".replace("%", " %") if noise else ""
        name = f"{kind} {net} {optimizer} {batch}, {steps} {schedule}{wrong}"
        found[name] = Cell(name, make, nets[net], _OPTIMIZERS[optimizer], batch, steps, _SCHEDULES[schedule], noise)
    return found


SECOND = _drawn(20, 20261130, _DATA, (200, 500, 1000, 1500, 2500))
THIRD = _drawn(18, 20261201, _MORE_DATA | _DATA, (300, 700, 1200, 2000))
