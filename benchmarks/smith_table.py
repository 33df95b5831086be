"""The rows of Smith's table on CIFAR-10: is a cyclical rate as good at 25,000 steps as a fixed one at 70,000?

Run: ``python -m benchmarks.smith_table --cifar10 FOLDER [--scale 1.0] [--seeds 6] [--precision bf16-mixed] [--jobs 2]
[--report] [--quick]``.
Every finished training is stored at once, and the same command continues where it stopped. Network, initialization,
multipliers, batch and inputs are those of Caffe's cifar10_full (``experiment=smith``), no augmentation, batch 100.
``--scale`` shortens all lengths alike, the steps of a schedule with them: 1.0 are the 232,000 steps a seed of the
paper's table, 0.02 a first look on a CPU. The figure is the test accuracy of the last weights. ``--precision
bf16-mixed`` multiplies in bfloat16 and keeps the weights in float32: half the time on a CPU with AMX. The trainings of
one precision are never mixed with those of another.

Source: Smith 2017, arXiv 1506.01186, table 1 and section 4.1. The rows as they are read here: fixed (0.001 to 60,000, a
tenth to 65,000, a hundredth to 70,000), triangular2 (0.001 to 0.006, stepsize 2,000), decay (0.006, down linearly to
0.001 in one stepsize, then fixed), exp (0.006 · 0.99994^t), exp_range (0.001 to 0.006, stepsize 2,000, gamma 0.99994).
A sixth row, staged_triangular, has the cycles of the author's own solver files: 0.001 to 0.005 (stepsize 2,000) to
16,000, a tenth of that (1,000) to 22,000, a hundredth (500) to 25,000.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import at_least_one, store
from benchmarks.trainings import images, percent, train
from lr_lightning.diagnosis.statistics import bootstrap_ci, sign_flip_p
from lr_lightning.schedules import Constant, Exponential, Join, Linear, MultiStep, Product, Schedule, Triangular

GAMMA = 0.99994
FLOAT32 = "32-true"
ORDER = ("staged_triangular", "fixed", "triangular2", "decay", "exp", "exp_range")
CLAIMS = (
    ("triangular2", "fixed", "≥ −0.5"),
    ("staged_triangular", "fixed", "≥ −0.5"),
    ("triangular2", "decay", "> 0"),
    ("staged_triangular", "decay", "> 0"),
)
PAPER = {"fixed": 81.4, "triangular2": 81.4, "decay": 78.5, "exp": 79.1, "exp_range": 82.2}


def rows(scale: float) -> dict[str, tuple[float, int, Schedule]]:
    """Name to peak rate, steps and schedule."""

    def steps(count: int) -> int:
        return max(2, round(count * scale))

    def cycles(top: float, half: int) -> Schedule:
        return Product(Constant(top), Triangular(up=steps(half), base=1 / 5))

    first = steps(16_000)
    second = max(1, steps(22_000) - first)
    cycle = {"up": steps(2000), "base": 1 / 6}
    gamma = GAMMA ** (1 / scale)
    return {
        "fixed": (0.001, steps(70_000), MultiStep(at=(steps(60_000), steps(65_000)), gamma=0.1)),
        "triangular2": (0.006, steps(25_000), Triangular(**cycle, mode="triangular2")),
        "decay": (0.006, steps(25_000), Join((Linear(1, 1 / 6), steps(2000)), (Constant(1 / 6), None))),
        "exp": (0.006, steps(70_000), Exponential(end=GAMMA**70_000)),
        "staged_triangular": (
            0.005,
            max(steps(25_000), first + second + 1),
            Join((cycles(1.0, 2000), first), (cycles(0.1, 1000), second), (cycles(0.01, 500), None)),
        ),
        "exp_range": (0.006, steps(42_000), Triangular(**cycle, mode="exp_range", gamma=gamma)),
    }


def pieces(data: Sequence[str], scale: float, seeds: int, precision: str = FLOAT32) -> list[Piece]:
    """Return one training for each row and seed.

    The rows that the claims need come first. In each part, all rows of a seed come before those of the next one.

    Args:
        data: Overrides that choose the data.
        scale: Shortens all lengths alike.
        seeds: How many.
        precision: Of the Trainer.
    """
    lengths = {name: steps for name, (_, steps, _) in rows(scale).items()}
    pairs = [(name, seed) for part in (ORDER[:4], ORDER[4:]) for seed in range(seeds) for name in part]
    return [
        Piece(
            key(scale, name, seed, precision),
            {"data": list(data), "scale": scale, "row": name, "seed": seed, "precision": precision},
            lengths[name],
        )
        for name, seed in pairs
    ]


def key(scale: float, row: str, seed: int, precision: str = FLOAT32) -> str:
    """Return the name of one training in the stored results."""
    name = f"scale {scale:g}, {row}, seed {seed}"
    return name if precision == FLOAT32 else f"{name}, {precision}"


def train_row(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one row with one seed.

    Args:
        settings: Of a piece.
        folder: For its checkpoints; None keeps none.
    """
    peak, steps, schedule = rows(settings["scale"])[settings["row"]]
    words = ["experiment=smith", *settings["data"], f"optimizer.lr={peak}", f"seed={settings['seed']}"]
    made = train(words, schedule, steps=steps, checkpoints=folder, precision=settings["precision"])
    return {"steps": made.steps, "test_accuracy": made.accuracy}


def summary(
    records: Mapping[str, dict[str, Any]], scale: float, seeds: int, precision: str = FLOAT32
) -> dict[str, Any]:
    """Return the table's numbers: accuracies by row, and the claims on those seeds that both sides have.

    Args:
        records: The finished trainings, as ``benchmarks.pieces.stored`` gives them.
        scale: Of the rows.
        seeds: How many at most.
        precision: Of the trainings.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in ORDER}
    for name, runs in found.items():
        for seed in range(seeds):
            record = records.get(key(scale, name, seed, precision))
            if record:
                runs[seed] = record["result"]
    whole: dict[str, list[dict[str, Any]]] = {}  # of another scale: what there is at the paper's own lengths
    for name in ORDER if scale != 1 else ():
        made = [records.get(key(1.0, name, seed, precision)) for seed in range(seeds)]
        if any(made):
            whole[name] = [record["result"] for record in made if record]
    claims = {}
    for first, second, text in CLAIMS:
        both = sorted(found[first].keys() & found[second].keys())
        if both:
            sides = [[found[row][seed]["test_accuracy"] for seed in both] for row in (first, second)]
            claims[f"{first} − {second} (claim: {text})"] = difference(*sides)
    return {
        "scale": scale,
        "precision": precision,
        "seeds": max(map(len, found.values())),
        "steps": {name: next(iter(runs.values()))["steps"] for name, runs in found.items() if runs},
        "test_accuracy": {n: [run["test_accuracy"] for run in runs.values()] for n, runs in found.items() if runs},
        "claims": claims,
        "whole": whole,
    }


def show_table(result: dict[str, Any]) -> None:
    """Print the rows beside the paper's, and the claims."""
    print(f"\nscale {result['scale']:g}, {result['precision']}")
    print("test accuracy in percent, mean ± 95 % t interval over n seeds")
    print(f"{'schedule':<18} {'steps':>7} {'n':>3} {'here':>14} {'paper (at scale 1)':>20}")
    for name, values in result["test_accuracy"].items():
        paper = f"{PAPER[name]:.1f}" if name in PAPER else "–"
        print(f"{name:<18} {result['steps'][name]:>7,} {len(values):>3} {percent(values):>14} {paper:>20}")
    for text, claim in result["claims"].items():
        print(f"{text}: {in_words(claim)}")
    for name, runs in result["whole"].items():
        print(f"scale 1, {name}: {percent([run['test_accuracy'] for run in runs])}, n {len(runs)}")


def main() -> None:
    """Train every row with every seed that is not stored yet, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cifar10", type=Path, help="folder with train.parquet and test.parquet; needed but by --quick and --report"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shortens all lengths alike")
    parser.add_argument("--seeds", type=at_least_one, default=6)
    parser.add_argument("--precision", default=FLOAT32, choices=(FLOAT32, "bf16-mixed"), help="of the Trainer")
    parser.add_argument("--quick", action="store_true", help="scale 0.002, one seed, nothing stored; digits by default")
    add_options(parser)
    args = parser.parse_args()
    if args.cifar10 is None and not args.quick and not args.report:
        parser.error("--cifar10: give the folder with train.parquet and test.parquet, or --quick for the digits")
    scale, seeds = (0.002, 1) if args.quick else (args.scale, args.seeds)
    wanted = pieces(images(args.cifar10), scale, seeds, args.precision)
    records = finish_or_read("smith_table", wanted, "benchmarks.smith_table:train_row", args)
    result = summary(records, scale, seeds, args.precision)
    show_table(result)
    store("smith_table", result, args.quick)


def difference(first: list[float], second: list[float]) -> dict[str, Any]:
    """Paired by seed, in points: the mean, its bootstrap interval where there are seeds enough, and sign-flip p."""
    d = 100 * (np.array(first) - np.array(second))
    low, high = bootstrap_ci(d) if d.size >= 3 else (np.nan, np.nan)
    return {"mean": float(d.mean()), "low": float(low), "high": float(high), "p": float(sign_flip_p(d)), "n": d.size}


def in_words(claim: dict[str, Any]) -> str:
    """A paired difference with its interval and p."""
    interval = "" if np.isnan(claim["low"]) else f" ({claim['low']:+.2f} to {claim['high']:+.2f})"
    return f"{claim['mean']:+.2f} points{interval}, p {claim['p']:.3f}, n {claim['n']}"


if __name__ == "__main__":
    main()
