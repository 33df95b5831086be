"""The held-out problems of ``benchmarks.finder_regret``: no rule was chosen on them.

All were written before the first of them was run, for variety, and none was dropped afterwards.
"""

from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_iris, load_wine, make_moons
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RAdam, RMSprop

from benchmarks.finder_problems import Data, Problem, cancer, cifar10, diabetes, digits, mlp, momentum, pictures, scaled

# ------------------------------------------------------------------------------------------------------------- data


@cache
def wine() -> Data:
    return scaled(*load_wine(return_X_y=True))


@cache
def iris() -> Data:
    return scaled(*load_iris(return_X_y=True))


@cache
def moons() -> Data:
    return scaled(*make_moons(1000, noise=0.2, random_state=0))


@cache
def counts() -> Data:
    """Poisson counts with means of about 0.1 to 40."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8))
    y = rng.poisson(np.exp(1.0 + 0.7 * x[:, :1] + 0.5 * np.sin(2 * x[:, 1:2]) - 0.3 * x[:, 2:3] * x[:, 3:4]))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


@cache
def teacher() -> Data:
    """What a random tanh net of width 32 says of normal inputs, three outputs, without noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 20))
    y = np.tanh(x @ rng.normal(size=(20, 32)) / np.sqrt(20)) @ rng.normal(size=(32, 3)) / np.sqrt(32)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


@cache
def words() -> Data:
    """Running text, cut into sequences of 16 of 27 letters: 200 made-up words, each the rarer the later it was made."""
    rng = np.random.default_rng(0)
    lexicon = [rng.integers(1, 27, rng.integers(2, 8)).tolist() for _ in range(200)]
    share = 1 / np.arange(1, 201)
    picks = rng.choice(200, size=10_000, p=share / share.sum())
    letters = [letter for pick in picks for letter in [*lexicon[pick], 0]]
    text = torch.tensor(letters[: len(letters) // 17 * 17]).view(-1, 17)[:2000]
    return text[:, :-1], text[:, 1:]


# ------------------------------------------------------------------------------------------------------------- nets


def depthwise(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width),
        nn.Conv2d(width, 2 * width, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width),
        nn.Conv2d(2 * width, 2 * width, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def group_norm_cnn(width: int) -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(3, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.GroupNorm(4, 2 * width),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def layer_norm_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 96),
        nn.LayerNorm(96),
        nn.GELU(),
        nn.Linear(96, 96),
        nn.LayerNorm(96),
        nn.GELU(),
        nn.Linear(96, 10),
    )


class Patches(nn.Module):
    """A one-layer vision transformer over the 2 x 2 patches of an 8 x 8 picture."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, 24, 2, stride=2), nn.Parameter(0.02 * torch.randn(16, 24))
        self.layer = nn.TransformerEncoderLayer(24, 2, 48, 0.0, activation="gelu", batch_first=True, norm_first=True)
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.out(self.norm(self.layer(tokens)).mean(1))
        return logits


class Letters(nn.Module):
    """Says the next letter, from an embedding and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.letter, self.lstm = nn.Embedding(27, 16), nn.LSTM(16, 32, batch_first=True)
        self.out = nn.Linear(32, 27)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.lstm(self.letter(x))[0]).transpose(1, 2)
        return logits


# --------------------------------------------------------------------------------------------------------- the list

nesterov = partial(SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
smoothed_labels = partial(F.cross_entropy, label_smoothing=0.1)

HELD_OUT: dict[str, Problem] = {
    "wine: MLP, SGD, 16": Problem(wine, lambda: mlp(13, 32, 3), SGD, 16),
    "iris: SiLU MLP, RAdam, 8": Problem(iris, lambda: mlp(4, 16, 16, 3, act=nn.SiLU), RAdam, 8),
    "cancer: linear, hinge, SGD, 64": Problem(cancer, lambda: mlp(30, 2), SGD, 64, F.multi_margin_loss),
    "moons: MLP, RMSprop, 32": Problem(moons, lambda: mlp(2, 32, 32, 2), RMSprop, 32),
    "digits: MLP with LayerNorm, smoothed labels, Nesterov, 64": Problem(
        digits, layer_norm_mlp, nesterov, 64, smoothed_labels
    ),
    "digits: depthwise CNN, Adam, 32": Problem(pictures, lambda: depthwise(1, 12), Adam, 32),
    "digit patches: Transformer, AdamW, 32": Problem(pictures, Patches, AdamW, 32),
    "diabetes: MLP, Huber, Adagrad, 16": Problem(diabetes, lambda: mlp(10, 32, 32, 1), Adagrad, 16, F.huber_loss),
    "counts: MLP, Poisson NLL, Adam, 128": Problem(
        counts, lambda: mlp(8, 48, 48, 1, act=nn.ELU), Adam, 128, F.poisson_nll_loss
    ),
    "teacher: wider student, MSE, momentum, 128": Problem(
        teacher, lambda: mlp(20, 128, 3, act=nn.Tanh), momentum, 128, F.mse_loss
    ),
    "words: LSTM, NAdam, 32": Problem(words, Letters, NAdam, 32),
}


def held_out_cifar(folder: Path) -> dict[str, Problem]:
    data = partial(cifar10, folder)
    return {
        "cifar: CNN with GroupNorm, RAdam, 32": Problem(data, lambda: group_norm_cnn(12), RAdam, 32),
        "cifar: GELU MLP, Nesterov, 64": Problem(
            data, lambda: nn.Sequential(nn.Flatten(), mlp(768, 64, 64, 10, act=nn.GELU)), nesterov, 64
        ),
    }
