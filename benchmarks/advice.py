"""Does a verdict's advice help when it is followed?

Run: ``python -m benchmarks.advice --cifar10 FOLDER [--set NAME] [--jobs 2] [--report] [--unseal] [--quick]``. Every
configuration of a set of :data:`SETS` is trained with two seeds and judged. Every advice, and every length that the app
would print as the next command, is followed with the same seed, and the followed run is judged in its turn. Each
finished training is stored at once, so the same command continues where it stopped, also after a rule has changed: then
only the trainings of new advice are missing.

The configurations were drawn at random, once, before any was trained. Of the first set every second one is sealed, of
the others every one: their results are in the report only with ``--unseal``, and no rule was chosen on them. The
second set was drawn where the first one had brought too little of some advice to judge it: learning rates within a
decade of the usual one, small networks, and mostly schedules that stay high or end at 0 late. The third set was drawn
for the same reason: learning rates far too high or too low, and long trainings on few examples. Rules were changed
after it had been opened; the fourth set, drawn alike, judges those, and the fifth what was changed after the fourth.

For each advice the table has: how often it was printed; how often the followed run was better, the same or worse by
validation loss at the end (3 % of it) and by test accuracy (half a point), each seed for itself; how often it was
clearly worse (10 %); and how often the followed run's own verdict sends the user back.
"""

import argparse
import base64
import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, RMSprop

from benchmarks import whole_run_cells as cells
from benchmarks.finder_problems import batches, mlp
from benchmarks.pieces import Piece, add_options, finish, stored
from benchmarks.report import store
from lr_lightning.callbacks import batch_norm
from lr_lightning.callbacks.cooldown_preview import RunningAverage
from lr_lightning.diagnosis import History, Verdict, diagnose
from lr_lightning.diagnosis.history import Point
from lr_lightning.diagnosis.verdict import Advice, Change
from lr_lightning.schedules import WSD, Clock, Constant, Cosine, Join, Linear, OneCycle, Schedule, Triangular, Warmup
from lr_lightning.training.models import SmallCNN

SEEDS = 2
KEEP = 48
"""Examples whose single losses are stored at each validation."""
SAME, CLEARLY, SAME_POINTS = 0.03, 0.1, 0.005

FORK = "constant, then a cooldown"
SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(),
    "cosine": Warmup("5%", then=Cosine(1, 0)),
    "linear": Warmup("5%", then=Linear(1, 0)),
    "wsd": WSD(),
    "one_cycle": OneCycle(),
    "triangular": Triangular(0.25, "10%"),
    FORK: Join((Constant(), None), (Linear(1, 0), "16.6667%")),  # a fifth longer than its trunk
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda p, **k: SGD(p, momentum=0.9, **k),
    "sgd": SGD,
    "adamw": AdamW,
    "rmsprop": RMSprop,
}
_USUAL = {"momentum": -1.5, "sgd": -0.5, "adamw": -2.5, "rmsprop": -3.0}  # decimal logarithm of the usual lr
PREVIEWED = {"constant", "wsd", "triangular"}  # the schedules of which the app previews a cooldown


@dataclass(frozen=True)
class Config:
    """One training.

    Attributes:
        data: ``"digits"``, ``"cifar16"`` or ``"teacher"``.
        noise: Share of training labels that are random.
        size: Training examples.
        net: ``"bn"`` or ``"plain"``, a CNN with and without BatchNorm, or ``"mlp"``.
        width: Of the net.
        optimizer: A key of :data:`OPTIMIZERS`.
        lr: Its peak.
        schedule: A key of :data:`SCHEDULES`.
        epochs: Length.
        warmup: Share of the run in which the learning rate rises to the schedule; 0 for none.
        weight_decay, dropout, smoothing: Regularisation.
    """

    data: str
    noise: float
    size: int
    net: str
    width: int
    optimizer: str
    lr: float
    schedule: str
    epochs: int
    warmup: float = 0.0
    weight_decay: float = 0.0
    dropout: float = 0.0
    smoothing: float = 0.0

    @property
    def key(self) -> str:
        """A name that tells every setting."""
        more = "".join(
            f", {name} {value:g}"
            for name in ("warmup", "weight_decay", "dropout", "smoothing")
            if (value := getattr(self, name))
        )
        return (
            f"{self.data} {self.size} noise {self.noise:g}, {self.net} {self.width}, {self.optimizer} lr {self.lr:g} "
            f"{self.schedule}, {self.epochs} epochs{more}"
        )


def _drawn(count: int) -> list[Config]:
    """Draw the configurations: every axis evenly, the learning rate over five decades around the optimizer's usual."""
    rng = np.random.default_rng(20261129)
    found = []
    for _ in range(count):
        data = str(rng.choice(["digits", "cifar16", "teacher"]))
        optimizer = str(rng.choice(list(_USUAL)))
        found.append(
            Config(
                data,
                float(rng.choice([0.0, 0.0, 0.2, 0.4])),
                int(rng.choice({"digits": [200, 600, 1200], "cifar16": [500, 2000], "teacher": [300, 2000]}[data])),
                "mlp" if data == "teacher" else str(rng.choice(["bn", "plain"])),
                int(rng.choice([16, 64, 256] if data == "teacher" else [4, 8, 16])),
                optimizer,
                float(f"{10 ** (_USUAL[optimizer] + rng.uniform(-2.5, 2.5)):.2g}"),
                str(rng.choice([name for name in SCHEDULES if name != FORK])),
                int(rng.choice([3, 6, 12, 20, 40, 60] if data != "cifar16" else [3, 6, 12, 20, 30])),
            )
        )
    return found


def _drawn_again(count: int) -> list[Config]:
    """Draw the second set: learning rates near the usual one, small networks, constant schedules most often."""
    rng = np.random.default_rng(20261201)
    found = []
    for _ in range(count):
        data = str(rng.choice(["digits", "digits", "digits", "teacher", "teacher", "teacher", "cifar16"]))
        optimizer = str(rng.choice(list(_USUAL)))
        found.append(
            Config(
                data,
                float(rng.choice([0.0, 0.0, 0.0, 0.0, 0.2])),
                int(rng.choice({"digits": [200, 600, 1200], "cifar16": [500], "teacher": [300, 2000]}[data])),
                "mlp" if data == "teacher" else str(rng.choice(["bn", "plain"])),
                int(rng.choice([4, 8, 16, 64] if data == "teacher" else [1, 2, 4, 8] if data == "digits" else [2, 4])),
                optimizer,
                float(f"{10 ** (_USUAL[optimizer] + rng.uniform(-1, 1)):.2g}"),
                str(rng.choice(["constant"] * 3 + ["cosine"] * 2 + ["wsd", "one_cycle", "triangular"])),
                int(rng.choice([5, 10, 20, 40] if data != "cifar16" else [5, 10, 20])),
            )
        )
    return found


def _drawn_where_rare(seed: int, high: int, low: int, hot: int) -> list[Config]:
    """Draw a set for the advice that the first two brought too rarely.

    Args:
        seed: Of the draw.
        high: Configurations whose learning rate is five to a thousand times the usual one.
        low: Those whose learning rate is a tenth to a 300th of the usual one.
        hot: Long trainings on few examples, often with wrong labels, at learning rates that stay high.
    """
    rng = np.random.default_rng(seed)
    found = []
    for kind in ["high"] * high + ["low"] * low + ["hot"] * hot:
        data = str(rng.choice(["digits", "digits", "teacher", "teacher", "cifar16"]))
        optimizer = str(rng.choice(list(_USUAL)))
        shift = rng.uniform(*{"high": (0.7, 3), "low": (-2.5, -1), "hot": (-0.5, 0.5)}[kind])
        sizes = {"digits": [200, 600, 1200], "cifar16": [500, 1000], "teacher": [300, 2000]}[data]
        widths = [16, 64, 256] if data == "teacher" else [4, 8, 16]
        calm = [name for name in SCHEDULES if name != FORK]
        epochs = [5, 10, 20, 40] if data != "cifar16" else [5, 10, 20]
        found.append(
            Config(
                data,
                float(rng.choice([0.0, 0.2, 0.4] if kind == "hot" else [0.0, 0.0, 0.2])),
                int(sizes[0] if kind == "hot" else rng.choice(sizes)),
                "mlp" if data == "teacher" else str(rng.choice(["bn", "plain"])),
                int(rng.choice(widths[1:] if kind == "hot" else widths)),
                optimizer,
                float(f"{10 ** (_USUAL[optimizer] + shift):.2g}"),
                str(rng.choice(["constant", "constant", "wsd", "triangular"] if kind == "hot" else calm)),
                int(rng.choice(epochs[2:] if kind == "hot" else epochs)),
            )
        )
    return found


CONFIGS = {config.key: config for config in _drawn(72)}
SECOND = {config.key: config for config in _drawn_again(80)}
THIRD = {config.key: config for config in _drawn_where_rare(20261203, high=30, low=14, hot=28)}
FOURTH = {config.key: config for config in _drawn_where_rare(20261204, high=24, low=24, hot=24)}
FIFTH = {config.key: config for config in _drawn_where_rare(20261205, high=12, low=12, hot=36)}
SETS = {"first": CONFIGS, "second": SECOND, "third": THIRD, "fourth": FOURTH, "fifth": FIFTH}
SETS["all"] = {key: config for configs in SETS.values() for key, config in configs.items()}
SEALED = frozenset([*list(CONFIGS)[1::2], *SECOND, *THIRD, *FOURTH, *FIFTH])


# ---------------------------------------------------------------------------------------------------------- training


@cache
def _examples(data: str) -> tuple[Tensor, Tensor, int, int]:
    """Return inputs, labels, and how many of the last ones are for validation and for the test."""
    if data == "teacher":
        random = torch.Generator().manual_seed(0)
        x = torch.randn(6000, 24, generator=random)
        first = torch.randn(24, 48, generator=random) / math.sqrt(6)
        return x, (torch.tanh(x @ first) @ torch.randn(48, 10, generator=random)).argmax(1), 1000, 1000
    if data == "digits":
        split = cells.digits(0.0)
        return torch.cat([split.train[0], split.val[0]]), torch.cat([split.train[1], split.val[1]]), 298, 298
    x, y = cells._pixels(6000)
    return F.avg_pool2d(x, 2), y, 1000, 2000


def _parts(config: Config) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the training, probe, validation and test sets; only training labels are noisy, the probe's too."""
    x, y, val, test = _examples(config.data)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    train = x[: config.size], cells._noisy(y[: config.size], config.noise, 10)
    held = len(x) - val - test
    probe = min(config.size, val)
    return {
        "train": train,
        "probe": (train[0][:probe], train[1][:probe]),
        "val": (x[held : held + val], y[held : held + val]),
        "test": (x[held + val :], y[held + val :]),
    }


def _net(config: Config) -> nn.Module:
    channels, side = (1, 8) if config.data == "digits" else (3, 16)
    if config.net == "mlp":
        return mlp(24, config.width, config.width, 10)
    if config.net == "bn":
        return SmallCNN(channels, 10, (side, side), config.width, config.dropout)
    w = config.width
    return nn.Sequential(
        *(nn.Conv2d(channels, 2 * w, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * w, 4 * w, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(16 * w, 10)),
    )


@torch.no_grad()
def _evaluate(net: nn.Module, part: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    """Return the losses of the examples and the accuracy."""
    net.eval()
    logits = torch.cat([net(x) for x in part[0].split(500)])
    net.train()
    return F.cross_entropy(logits, part[1], reduction="none"), float((logits.argmax(1) == part[1]).float().mean())


def train(config: Config, seed: int) -> dict[str, Any]:
    """Train a configuration and return its history, the test accuracy at its end, and what diverged."""
    parts = _parts(config)
    x, y = parts["train"]
    size = min(32, config.size)
    clock = Clock(total=config.epochs * (config.size // size), steps_per_epoch=config.size // size)
    schedule = SCHEDULES[config.schedule]
    schedule = Warmup(f"{config.warmup:.0%}", then=schedule) if config.warmup else schedule
    torch.manual_seed(seed)
    net = _net(config)
    optimizer = OPTIMIZERS[config.optimizer](net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    average = RunningAverage(net.named_parameters()) if config.schedule in PREVIEWED else None
    order: Iterator[Tensor] = batches(len(x), size, 1000 + seed)
    points, start, diverged, step = [], math.nan, None, 0
    for epoch in range(config.epochs):
        for _ in range(config.size // size):
            index = next(order)
            lr = optimizer.param_groups[0]["lr"] = config.lr * schedule(step, clock)
            loss = F.cross_entropy(net(x[index]), y[index], label_smoothing=config.smoothing)
            if step == 0:
                start = loss.item()
            if not math.isfinite(loss.item()):
                diverged = f"train/loss became {loss.item()} at step {step}"
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if average is not None:
                average.update(net.named_parameters())
            step += 1
        if diverged:
            break
        cooled = {} if average is None else {"cooled_loss": _if_cooled(net, average, parts)}
        points.append(_point(net, parts, epoch + 1, step, lr) | cooled)
    accuracy = math.nan if diverged else _evaluate(net, parts["test"])[1]
    return {"points": points, "start": start, "diverged": diverged, "total": clock.total, "test": accuracy}


def _if_cooled(net: nn.Module, average: RunningAverage, parts: Mapping[str, Any]) -> float:
    """Return the validation loss of the averaged weights, with BatchNorm statistics of their own."""
    cooled = copy.deepcopy(net)
    cooled.load_state_dict(average.values, strict=False)
    if norms := batch_norm.tracking_norms(cooled):
        with batch_norm.estimating(cooled, norms), torch.no_grad():
            for x in parts["train"][0].split(100):
                cooled(x)
    return _evaluate(cooled, parts["val"])[0].double().mean().item()


def _point(net: nn.Module, parts: Mapping[str, Any], epoch: int, step: int, lr: float) -> dict[str, Any]:
    point: dict[str, Any] = {"epoch": epoch, "step": step, "lr": lr}
    for name in ("val", "probe"):
        losses, accuracy = _evaluate(net, parts[name])
        stride = -(-len(losses) // KEEP)
        rows = losses[::stride].to(torch.float16).numpy()
        point |= {f"{name}_loss": losses.double().mean().item(), f"{name}_acc": accuracy, f"{name}_size": len(losses)}
        point[f"{name}_losses"] = base64.b64encode(rows.tobytes()).decode()
    return point


def history(config: Config, result: Mapping[str, Any]) -> History:
    """Return a stored training as the input of a verdict."""
    points = []
    for point in result["points"]:
        rows = {
            key: np.frombuffer(base64.b64decode(point[key]), np.float16).astype(np.float32)
            for key in ("val_losses", "probe_losses")
        }
        points.append(Point(**{**point, **rows, "epoch": float(point["epoch"])}))
    y = _parts(config)["probe"][1]
    shares = torch.bincount(y, minlength=10).double() / len(y)
    chance = float(-(shares[shares > 0] * shares[shares > 0].log()).sum())
    start = result["start"] if math.isfinite(result["start"]) else None
    return History(tuple(points), chance, start, result["total"], result["diverged"], peak_lr=config.lr)


# --------------------------------------------------------------------------------------------------- following advice


def followed(config: Config, change: Change) -> Config:
    """Return the configuration that an advice asks for."""
    return replace(
        config,
        lr=float(f"{config.lr * (change.lr or 1):.4g}"),
        epochs=max(1, change.epochs or config.epochs),
        schedule=change.schedule or config.schedule,
        warmup=0.1 if change.warmup else config.warmup,
        width=config.width * (change.width or 1),
        smoothing=change.label_smoothing or config.smoothing,
        dropout=0.3 if change.regularise and config.net != "mlp" else config.dropout,
        weight_decay=0.01 if change.regularise and config.net == "mlp" else config.weight_decay,
    )


_WORDS = {
    "COOL_DOWN": "cool down: the schedule wsd",
    "COOL_DOWN (fork)": "cool down: a fork of the run, a fifth longer",
    "COOL_DOWN_EARLIER": "cool down where the validation loss was lowest: the schedule wsd",
    "LARGER_OR_LONGER": "two runs to try: twice the width",
    "LARGER_OR_LONGER (1)": "two runs to try: twice the epochs",
    "LARGER_OR_LONGER (either)": "the better one of these two",
    "LOWER_LR": "lower it tenfold until the loss falls: the run diverged before its first validation",
    "LOWER_LR_AND_WARM_UP": "two runs to try, as nothing was learned: a tenth of the learning rate, and a warmup",
    "LOWER_LR_AND_WARM_UP (1)": "two runs to try, as nothing was learned: a hundredth, and a warmup",
    "LOWER_LR_AND_WARM_UP (either)": "the better one of these two",
    "LOWER_LR_TENFOLD": "lower the learning rate tenfold until the loss falls",
    "LOWER_OR_COOL_DOWN": "two runs to try, as the loss swings: a third of the learning rate",
    "LOWER_OR_COOL_DOWN (1)": "two runs to try, as the loss swings: the schedule wsd",
    "LOWER_OR_COOL_DOWN (either)": "the better one of these two",
    "RAISE_CALM_LR": "raise the learning rate threefold: the loss falls slowly and smoothly",
    "RAISE_LR_BY_TENS": "two runs to try, as almost nothing was learned: ten times the learning rate",
    "RAISE_LR_BY_TENS (1)": "two runs to try, as almost nothing was learned: a hundred times the learning rate",
    "RAISE_LR_BY_TENS (either)": "the better one of these two",
    "REGULARISE": "regularise (dropout 0.3, or weight decay 0.01 for an MLP)",
    "SCALE_LOGITS": "smooth the labels",
    "SHORTEN_OR_REGULARISE": "two runs to try: shortened to the epoch of the lowest validation loss",
    "SHORTEN_OR_REGULARISE (1)": "two runs to try: regularised (dropout 0.3, or weight decay 0.01 for an MLP)",
    "SHORTEN_OR_REGULARISE (either)": "the better one of these two",
}
_SHORTER = {Advice.SHORTEN_OR_REGULARISE, Advice.COOL_DOWN_EARLIER}
_LONGER = {Advice.LARGER_OR_LONGER}
_UNTIL = {Advice.LOWER_LR, Advice.LOWER_LR_TENFOLD}


def sends_back(before: Config, advice: Advice, new: Config, after: Verdict) -> bool:
    """Return whether the followed run's verdict sends the user back.

    That is to the learning rate of the first run, or beyond it; one between the two runs narrows the choice down. Of
    lengths, it is any advice for the opposite.

    Args:
        before: The first run.
        advice: Its advice.
        new: The run that followed it.
        after: The verdict on that.
    """
    changes = [change.lr for one in after.advice for change in after.changes(one) if change.lr is not None]
    step = math.log(new.lr / before.lr)
    over = [step != 0 and (step + math.log(factor)) * step <= 1e-6 for factor in changes]
    given = set(after.advice)
    shorter = advice in _SHORTER and new.epochs < before.epochs
    return any(over) or (shorter and bool(given & _LONGER)) or (advice in _LONGER and bool(given & _SHORTER))


def steps_of(config: Config, verdict: Verdict) -> dict[str, list[Config]]:
    """Return the next runs that a verdict asks for, by the name of the advice: of two to choose from, by both names.

    "Tenfold until" is followed up to three times, until the loss is clearly lower; the others once. The app prints two
    commands for a cooldown, a new run and a fork: as the trunk of a fork is the first run, one training is both.
    """
    found = {}
    for advice in verdict.advice:
        for place, change in enumerate(verdict.changes(advice)):
            tries = [followed(config, change)]
            while advice in _UNTIL and len(tries) < 3:
                tries.append(followed(tries[-1], change))
            found[f"{advice.name}{f' ({place})' if place else ''}"] = tries
        if advice is Advice.COOL_DOWN and config.schedule == "constant":
            fork = replace(config, schedule=FORK, epochs=round(1.2 * config.epochs))
            found[f"{advice.name} (fork)"] = [fork]
    return found


def piece(config: Config, seed: int, cifar10: Path | None) -> Piece:
    """Return one training; its cost is its updates, with those of pictures counted four times."""
    settings = {**asdict(config), "seed": seed, **({"cifar10": str(cifar10)} if cifar10 else {})}
    weight = 4 if config.data == "cifar16" else 1
    return Piece(f"{config.key}, seed {seed}", settings, weight * config.epochs * (config.size // 32 + 5))


def work(settings: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Train one piece."""
    given = dict(settings)
    if "cifar10" in given:
        cells.CIFAR10 = Path(given.pop("cifar10"))
    seed = given.pop("seed")
    return train(Config(**given), seed)


# -------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Followed:
    """An advice that was followed once: the change of the loss, in its logarithm, and of the test accuracy."""

    name: str
    loss: float
    accuracy: float
    back: bool


def _end(result: Mapping[str, Any]) -> tuple[float, float]:
    """Return the validation loss at the end and the test accuracy; those of ten random classes for a diverged run."""
    loss = result["points"][-1]["val_loss"] if result["points"] and not result["diverged"] else math.inf
    bad = not math.isfinite(loss)
    return (math.log(10) * 10, 0.1) if bad else (min(loss, math.log(10) * 10), result["test"])


def follow(configs: Mapping[str, Config], records: Mapping[str, Any], cifar10: Path | None) -> list[Followed]:
    """Return what following each advice brought, as far as it has been trained."""
    found = []
    for config in configs.values():
        own = [records.get(piece(config, seed, cifar10).key) for seed in range(SEEDS)]
        if None in own:
            continue
        for seed, record in enumerate(filter(None, own)):
            verdict, first = diagnose(history(config, record["result"])), len(found)
            for name, tries in steps_of(config, verdict).items():
                (loss, acc), last = _end(record["result"]), None
                for new in tries:
                    if (after := records.get(piece(new, seed, cifar10).key)) is None:
                        break
                    (new_loss, new_acc), last = _end(after["result"]), (new, after)
                    if new_loss < loss * (1 - CLEARLY):
                        break
                if last is None:
                    continue
                later = diagnose(history(last[0], last[1]["result"]))
                back = sends_back(config, Advice[name.partition(" ")[0]], last[0], later)
                change = math.log(max(new_loss, 1e-6) / max(loss, 1e-6))
                found.append(Followed(name, change, new_acc - acc, back))
            for advice in verdict.advice:
                both = [one for one in found[first:] if one.name in (advice.name, f"{advice.name} (1)")]
                if len(both) == 2:
                    found.append(replace(min(both, key=lambda one: one.loss), name=f"{advice.name} (either)"))
    return found


def table(found: Sequence[Followed]) -> dict[str, dict[str, float]]:
    """Return the figures of each advice."""
    by_name: dict[str, list[Followed]] = defaultdict(list)
    for one in found:
        by_name[one.name].append(one)
    figures = {}
    for name, rows in sorted(by_name.items()):
        loss = np.array([one.loss for one in rows])
        acc = np.array([one.accuracy for one in rows])
        figures[name] = {
            "followed": len(rows),
            "better": float((loss < -SAME).mean()),
            "same": float((abs(loss) <= SAME).mean()),
            "worse": float((loss > SAME).mean()),
            "clearly_worse": float((loss > CLEARLY).mean()),
            "accuracy_better": float((acc > SAME_POINTS).mean()),
            "accuracy_worse": float((acc < -SAME_POINTS).mean()),
            "sent_back": float(np.mean([one.back for one in rows])),
            "median_loss_ratio": float(np.exp(np.median(loss))),
        }
    return figures


def markdown(result: Mapping[str, Any]) -> str:
    """Return a row for each advice of a stored result.

    Args:
        result: As it is stored.
    """
    columns = ("better by 3 %", "worse by 3 %", "worse by 10 %", "test accuracy better", "worse", "sent back")
    keys = ("better", "worse", "clearly_worse", "accuracy_better", "accuracy_worse", "sent_back")
    lines = [f"| advice | followed | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for name, row in result["advice"].items():
        shares = " | ".join(f"{row[key]:.0%}".replace("%", " %") for key in keys)
        lines.append(f"| {_WORDS[name]} | {row['followed']:.0f} | {shares} |")
    return "\n".join(lines)


def agreement(configs: Mapping[str, Config], records: Mapping[str, Any], cifar10: Path | None) -> dict[str, float]:
    """Return the share of configurations whose seeds get the same label, and of those where they do or one is near.

    ``near`` is the share of all verdicts that name a border.
    """
    same, said, near = [], [], []
    for config in configs.values():
        own = [records.get(piece(config, seed, cifar10).key) for seed in range(SEEDS)]
        verdicts = [diagnose(history(config, record["result"])) for record in own if record]
        if len(verdicts) == SEEDS:
            same.append(len({verdict.label for verdict in verdicts}) == 1)
            said.append(same[-1] or any(verdict.near for verdict in verdicts))
            near += [bool(verdict.near) for verdict in verdicts]
    shares = {"agree": same, "agree_or_near": said, "near": near}
    return {name: float(np.mean(values)) if values else math.nan for name, values in shares.items()}


def main() -> None:
    """Train what is not stored yet, follow every advice, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="with train.parquet; adds CIFAR-10")
    parser.add_argument("--set", choices=SETS, default="all", help="of configurations")
    parser.add_argument("--unseal", action="store_true", help="report on the sealed ones in place of the open ones")
    parser.add_argument("--quick", action="store_true", help="two short configurations, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    cells.CIFAR10 = args.cifar10
    configs = {key: c for key, c in SETS[args.set].items() if args.cifar10 or c.data != "cifar16"}
    if args.quick:
        short = [replace(c, epochs=4, size=200) for c in configs.values() if c.data == "teacher"][:2]
        configs = {config.key: config for config in short}
        records: dict[str, Any] = {}
        for config in short:
            for seed in range(SEEDS):
                records[piece(config, seed, None).key] = {"result": train(config, seed)}
    else:
        own = [piece(config, seed, args.cifar10) for config in configs.values() for seed in range(SEEDS)]
        train_all = partial(finish, "advice", work="benchmarks.advice:work", jobs=args.jobs)
        records = stored("advice") if args.report else train_all(own)
    nexts = _next_pieces(configs, records, args.cifar10)
    if args.quick:
        records |= {p.key: {"result": work(p.settings)} for p in nexts}
    elif not args.report:
        records = train_all(nexts)
    chosen = configs if args.quick else {k: c for k, c in configs.items() if (k in SEALED) == args.unseal}
    if not chosen:
        print("All of these configurations are sealed: --unseal reports on them.")
        return
    part = args.set if args.unseal else "open"
    store(f"advice_{part}", _report(chosen, records, args.cifar10), args.quick)


def _report(configs: Mapping[str, Config], records: Mapping[str, Any], cifar10: Path | None) -> dict[str, Any]:
    """Print what came out, and return it."""
    found = table(follow(configs, records, cifar10))
    for name, row in found.items():
        print(
            f"{name:<26} followed {row['followed']:3.0f}: better {row['better']:4.0%}, same {row['same']:4.0%}, worse "
            f"{row['worse']:4.0%} (clearly {row['clearly_worse']:.0%}); test accuracy better "
            f"{row['accuracy_better']:.0%}, worse {row['accuracy_worse']:.0%}; sent back {row['sent_back']:.0%}"
        )
    shares = agreement(configs, records, cifar10)
    verdicts = [
        diagnose(history(config, record["result"]))
        for config in configs.values()
        for seed in range(SEEDS)
        if (record := records.get(piece(config, seed, cifar10).key))
    ]
    labels = Counter(str(verdict.label) for verdict in verdicts)
    printed = Counter(advice.name for verdict in verdicts for advice in verdict.advice)
    print(
        f"verdicts: {dict(labels)}; both seeds agree in {shares['agree']:.0%} of {len(configs)} configurations, or one "
        f"names a border in {shares['agree_or_near']:.0%}; {shares['near']:.0%} of all verdicts name one"
    )
    print(f"printed: {dict(printed)}")
    return {"advice": found, **shares, "labels": dict(labels), "printed": dict(printed)}


def _next_pieces(configs: Mapping[str, Config], records: Mapping[str, Any], cifar10: Path | None) -> list[Piece]:
    """Return the trainings that the verdicts ask for."""
    found: dict[str, Piece] = {}
    for config in configs.values():
        for seed in range(SEEDS):
            if record := records.get(piece(config, seed, cifar10).key):
                verdict = diagnose(history(config, record["result"]))
                for new in (new for tries in steps_of(config, verdict).values() for new in tries):
                    one = piece(new, seed, cifar10)
                    found.setdefault(one.key, one)
    return list(found.values())


if __name__ == "__main__":
    main()
