"""How well does the running average of the weights foretell what a cooldown would reach?

Run: ``python -m benchmarks.cooldown_preview --cifar10 FOLDER [--jobs 2] [--report] [--quick]``. For every cell of
:data:`CELLS` (a net, an optimizer, data, label noise), three learning rates and two seeds, a trunk trains at a constant
learning rate. For each planned length L the trunk's state after 0.8 L updates is evaluated three ways on the validation
data: as it is, as the running average of its weights (the preview), and after a real cooldown of 0.2 L updates, linear
to 0, from that state and with the next batches. Every finished trunk is stored at once.

The table gives, for the preview and for the raw weights, the rank correlation with the real cooldown within each cell
and over all, and the mean difference of the losses with a 95 % interval over cells. A cell whose runs overfit (the
cooldown lowers the training loss and raises the validation loss) is listed apart.
"""

import argparse
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from benchmarks import whole_run_cells as cells
from benchmarks.finder_held_out import layer_norm_mlp
from benchmarks.finder_problems import Transformer, batches, mlp
from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from benchmarks.whole_run_cells import Split, adamw, momentum
from benchmarks.whole_run_truth import evaluate
from lr_lightning.callbacks import batch_norm
from lr_lightning.callbacks.cooldown_preview import RunningAverage

LENGTHS = (250, 500, 1000, 2000)
COOLDOWN = 0.2
SEEDS = 2
SHARES = (0.03, 0.06, 0.1, 0.15)
"""Half-lives of the average as shares of the updates so far; the preview's own default is 0.06."""
SHARE = 0.06


@dataclass(frozen=True)
class Cell:
    """A training whose learning rate stays open: data, share of random labels, net, optimizer, batch size, rates."""

    data: Any
    noise: float
    net: Any
    optimizer: Any
    batch_size: int
    lrs: tuple[float, float, float]


def group_norm_cnn(channels: int, width: int) -> nn.Module:
    """A small CNN with group norm."""

    def block(wide: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.GroupNorm(4, out), nn.ReLU(), nn.MaxPool2d(2)]

    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*block(channels, width), *block(width, 4 * width), *pooled)


CELLS = {
    "digits BN-CNN momentum": Cell(cells.digits, 0.0, cells.bn8, momentum, 64, (0.01, 0.03, 0.1)),
    "digits BN-CNN momentum, noise 20 %": Cell(cells.digits, 0.2, cells.bn8, momentum, 64, (0.01, 0.03, 0.1)),
    "digits LN-MLP AdamW": Cell(cells.flat_digits, 0.0, layer_norm_mlp, adamw, 64, (0.0005, 0.002, 0.008)),
    "digits MLP momentum, noise 20 %": Cell(
        cells.flat_digits, 0.2, lambda: mlp(64, 128, 10), momentum, 64, (0.01, 0.03, 0.1)
    ),
    "cifar16 BN-CNN momentum": Cell(cells.cifar16, 0.0, cells.bn16, momentum, 64, (0.01, 0.05, 0.2)),
    "cifar16 BN-CNN momentum, noise 20 %": Cell(cells.cifar16, 0.2, cells.bn16, momentum, 64, (0.01, 0.05, 0.2)),
    "cifar16 BN-CNN AdamW": Cell(cells.cifar16, 0.0, cells.bn16, adamw, 64, (0.001, 0.004, 0.015)),
    "cifar16 CNN momentum": Cell(cells.cifar16, 0.0, cells.plain16, momentum, 64, (0.003, 0.01, 0.03)),
    "cifar16 CNN AdamW, noise 20 %": Cell(cells.cifar16, 0.2, cells.plain16, adamw, 64, (0.001, 0.003, 0.01)),
    "cifar16 GN-CNN momentum, noise 20 %": Cell(
        cells.cifar16, 0.2, partial(group_norm_cnn, 3, 12), momentum, 64, (0.01, 0.05, 0.2)
    ),
    "cifar16 GN-CNN AdamW": Cell(cells.cifar16, 0.0, partial(group_norm_cnn, 3, 12), adamw, 64, (0.001, 0.004, 0.015)),
    "cifar16 ResNet-8 momentum": Cell(
        cells.cifar16, 0.0, partial(cells.residual, 3, 16), momentum, 64, (0.01, 0.05, 0.2)
    ),
    "cifar16 attention AdamW": Cell(cells.cifar16, 0.0, cells.Attention, adamw, 64, (0.0005, 0.002, 0.006)),
    "markov transformer AdamW": Cell(cells.sequences, 0.0, Transformer, adamw, 32, (0.0005, 0.002, 0.006)),
    "teacher MLP SGD": Cell(cells.teacher, 0.0, lambda: mlp(24, 128, 10), SGD, 64, (0.05, 0.2, 0.8)),
}  # fmt: skip


class Run:
    """A net in training, whose state can be copied."""

    def __init__(self, cell: Cell, lr: float, seed: int, split: Split) -> None:
        torch.manual_seed(seed)
        self.split, self.lr = split, lr
        self.net = cell.net()
        self.optimizer = cell.optimizer(self.net.parameters(), lr=lr)

    def step(self, index: Tensor, factor: float) -> float:
        """Make one update and return the loss."""
        x, y = self.split.train
        self.optimizer.param_groups[0]["lr"] = self.lr * factor
        loss = F.cross_entropy(self.net(x[index]), y[index])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def copy(self) -> "Run":
        """Return a run that continues from the same state."""
        other = copy.copy(self)
        other.net, other.optimizer = copy.deepcopy((self.net, self.optimizer))
        return other

    def measure(self) -> list[float]:
        """Return the loss and the error on the validation data, and the loss on as many training examples."""
        (x, y), val = self.split.train, self.split.val
        count = min(len(x), len(val[0]))
        return [*evaluate(self.net, *val), evaluate(self.net, x[:count], y[:count])[0]]


def previewed(run: Run, average: RunningAverage) -> list[float]:
    """Measure the average, with BatchNorm statistics estimated anew on training batches."""
    own = copy.deepcopy(run.net.state_dict())
    run.net.load_state_dict(average.values, strict=False)
    norms = batch_norm.tracking_norms(run.net)
    if norms:
        with batch_norm.estimating(run.net, norms), torch.no_grad():
            for part in run.split.train[0][:3200].split(64):
                run.net(part)
    found = run.measure()
    run.net.load_state_dict(own)
    return found


def trunk(settings: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Train one trunk with its cooldowns.

    Returns:
        ``points``: for each length that did not diverge, the length, ``raw``, ``cooled`` and the averages by share,
        each as [validation loss, validation error, training loss].
    """
    if settings.get("cifar10"):
        cells.CIFAR10 = Path(settings["cifar10"])
    cell, lengths = CELLS[settings["cell"]], settings["lengths"]
    split = cell.data(cell.noise)
    run = Run(cell, settings["lr"], settings["seed"], split)
    order: Iterator[Tensor] = batches(len(split.train[0]), cell.batch_size, 1000 + settings["seed"])
    drawn = [next(order) for _ in range(max(lengths) + 1)]
    averages = {share: RunningAverage(run.net.named_parameters(), share) for share in SHARES}
    forks = {round(length * (1 - COOLDOWN)): length for length in lengths}
    points = []
    for step in range(max(forks)):
        if not math.isfinite(run.step(drawn[step], 1.0)):
            break
        for average in averages.values():
            average.update(run.net.named_parameters())
        if length := forks.get(step + 1):
            point: dict[str, Any] = {"length": length, "raw": run.measure()}
            point |= {f"average {share}": previewed(run, average) for share, average in averages.items()}
            cooled, rest = run.copy(), length - step - 1
            for i in range(rest):
                cooled.step(drawn[step + 1 + i], 1 - (i + 1) / rest)
            points.append(point | {"cooled": cooled.measure()})
    return {"points": points}


def pieces(cifar10: Path | None, quick: bool) -> list[Piece]:
    """Return one trunk for each cell, learning rate and seed."""
    wanted = {name: cell for name, cell in CELLS.items() if cifar10 or not name.startswith("cifar")}
    if quick:
        wanted = {name: wanted[name] for name in list(wanted)[2:4]}
    lengths = [20, 40] if quick else list(LENGTHS)
    extra = {"cifar10": str(cifar10)} if cifar10 else {}
    return [
        Piece(f"{name}, lr {lr:g}, seed {seed}", {"cell": name, "lr": lr, "seed": seed, "lengths": lengths, **extra})
        for seed in range(SEEDS)
        for name, cell in wanted.items()
        for lr in cell.lrs
    ]


# -------------------------------------------------------------------------------------------------------------- report

Points = Sequence[Mapping[str, Any]]


def figures(points: Mapping[str, Points], which: str) -> dict[str, Any]:
    """Compare one way to evaluate a trunk with its real cooldowns.

    Args:
        points: Of each cell.
        which: ``"raw"`` or ``"average SHARE"``.

    Returns:
        ``within``, the rank correlation in each cell; ``overall``; ``bias``, the mean over cells of the difference of
        the losses, with its 95 % interval; ``off``, the mean absolute difference.
    """
    pairs = {cell: np.array([[p[which][0], p["cooled"][0]] for p in found]) for cell, found in points.items()}
    within = {cell: float(spearmanr(*pair.T).statistic) for cell, pair in pairs.items()}
    every = np.concatenate(list(pairs.values()))
    biases = np.array([(pair[:, 0] - pair[:, 1]).mean() for pair in pairs.values()])
    picks = np.random.default_rng(0).integers(len(biases), size=(4000, len(biases)))
    low, high = np.quantile(biases[picks].mean(1), [0.025, 0.975])
    return {
        "within": within,
        "overall": float(spearmanr(*every.T).statistic),
        "bias": {"mean": float(biases.mean()), "low": float(low), "high": float(high)},
        "off": float(np.abs(every[:, 0] - every[:, 1]).mean()),
        "n": len(every),
    }


def is_overfitting(point: Mapping[str, Any]) -> bool:
    """Return whether the real cooldown fitted the training data at the cost of the validation loss."""
    preview, cooled = point[f"average {SHARE}"], point["cooled"]
    return bool(cooled[0] > cooled[2] * 1.5 and cooled[0] > preview[0])


def by_rise(points: Mapping[str, Points]) -> dict[str, Any]:
    """Compare the previews that have risen above the lowest one of their run with the others.

    Returns:
        For ``risen`` and ``not risen`` the number ``n``, and of preview − cooldown the mean ``bias``, the mean absolute
        difference ``off`` and the largest difference ``highest``.
    """
    kinds: dict[str, list[float]] = {"not risen": [], "risen": []}
    for found in points.values():
        lowest = math.inf
        for point in found:
            preview = point[f"average {SHARE}"][0]
            lowest = preview if point["length"] == LENGTHS[0] else min(lowest, preview)
            kinds["risen" if preview > lowest else "not risen"].append(preview - point["cooled"][0])
    return {
        kind: {"n": len(d), "bias": float(np.mean(d)), "off": float(np.abs(d).mean()), "highest": float(max(d))}
        for kind, d in kinds.items()
        if d
    }


def main() -> None:
    """Train what is not stored yet, print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="with train.parquet; adds the cells of CIFAR-10")
    parser.add_argument("--quick", action="store_true", help="two cells, two short lengths, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    wanted = pieces(args.cifar10, args.quick)
    records = finish_or_read("cooldown_preview", wanted, "benchmarks.cooldown_preview:trunk", args)
    points: dict[str, list[Mapping[str, Any]]] = {}
    for piece in wanted:
        if piece.key in records:
            points.setdefault(piece.settings["cell"], []).extend(records[piece.key]["result"]["points"])
    if not points:
        raise SystemExit("no trunk is finished yet; run the same command without --report to continue")
    ways = ("raw", *(f"average {share}" for share in SHARES))
    result = {way: figures(points, way) for way in ways}
    for way, found in result.items():
        bias, within = found["bias"], list(found["within"].values())
        print(
            f"{way:<13} n = {found['n']}: rank correlation {found['overall']:.3f} over all, {np.median(within):.3f} "
            f"in the median cell, {min(within):.3f} the worst; loss off by {bias['mean']:+.3f} ({bias['low']:+.3f} to "
            f"{bias['high']:+.3f}), {found['off']:.3f} absolute"
        )
    result["by_rise"] = by_rise(points)
    for kind, found in result["by_rise"].items():
        print(
            f"{kind} from the lowest: n = {found['n']}, loss off by {found['bias']:+.3f}, {found['off']:.3f} absolute"
        )
    own = f"average {SHARE}"
    for cell, runs in points.items():
        off, over = np.mean([p[own][0] - p["cooled"][0] for p in runs]), sum(map(is_overfitting, runs))
        within = result[own]["within"][cell]
        print(f"  {cell:<38} {within:.3f}, off by {off:+.3f}; {over} of {len(runs)} overfit")
    store("cooldown_preview", result, args.quick)


if __name__ == "__main__":
    main()
