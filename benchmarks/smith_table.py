"""The five rows of Smith's table on CIFAR-10: is a cyclical rate as good at 25,000 steps as a fixed one at 70,000?

Run: ``python -m benchmarks.smith_table --cifar10 FOLDER [--scale 1.0] [--seeds 6] [--quick]``. Network, initialisation,
multipliers, batch and inputs are those of Caffe's cifar10_full (``experiment=smith``), no augmentation, batch 100.
``--scale`` shortens all lengths alike, the steps of a schedule with them: 1.0 are the 232,000 steps a seed of the
paper's table, 0.02 a first look on a CPU. The figure is the test accuracy of the last weights.

Source: Smith 2017, arXiv 1506.01186, table 1 and section 4.1. The rows as they are read here: fixed (0.001 to 60,000, a
tenth to 65,000, a hundredth to 70,000), triangular2 (0.001 to 0.006, stepsize 2,000), decay (0.006, down linearly to
0.001 in one stepsize, then fixed), exp (0.006 · 0.99994^t), exp_range (0.001 to 0.006, stepsize 2,000, gamma 0.99994).
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import at_least_one, store
from benchmarks.trainings import images, percent, train
from lr_lightning.diagnosis.statistics import bootstrap_ci, sign_flip_p
from lr_lightning.schedules import Constant, Exponential, Join, Linear, MultiStep, Schedule, Triangular

GAMMA = 0.99994
PAPER = {"fixed": 81.4, "triangular2": 81.4, "decay": 78.5, "exp": 79.1, "exp_range": 82.2}


def rows(scale: float) -> dict[str, tuple[float, int, Schedule]]:
    """Name to peak rate, steps and schedule."""

    def steps(count: int) -> int:
        return max(2, round(count * scale))

    cycle = {"up": steps(2000), "base": 1 / 6}
    gamma = GAMMA ** (1 / scale)
    return {
        "fixed": (0.001, steps(70_000), MultiStep(at=(steps(60_000), steps(65_000)), gamma=0.1)),
        "triangular2": (0.006, steps(25_000), Triangular(**cycle, mode="triangular2")),
        "decay": (0.006, steps(25_000), Join((Linear(1, 1 / 6), steps(2000)), (Constant(1 / 6), None))),
        "exp": (0.006, steps(70_000), Exponential(end=GAMMA**70_000)),
        "exp_range": (0.006, steps(42_000), Triangular(**cycle, mode="exp_range", gamma=gamma)),
    }


def measure(data: Sequence[str], scale: float, seeds: int) -> Iterator[dict[str, Any]]:
    """Train every row with every seed; the result so far after each seed.

    Args:
        data: Overrides that choose the data.
        scale: Shortens all lengths alike.
        seeds: How many.
    """
    found: dict[str, list[float]] = {}
    lengths: dict[str, int] = {}
    for seed in range(seeds):
        for name, (peak, steps, schedule) in rows(scale).items():
            words = ["experiment=smith", *data, f"optimizer.lr={peak}", f"seed={seed}"]
            made = train(words, schedule, steps=steps)
            found.setdefault(name, []).append(made.accuracy)
            lengths[name] = made.steps
            print(f"seed {seed} {name:<12} {made.steps:>6} steps {made.accuracy:.2%} {made.seconds:.0f} s", flush=True)
        claims = {
            "triangular2 − fixed (claim: ≥ −0.5)": difference(found["triangular2"], found["fixed"]),
            "triangular2 − decay (claim: > 0)": difference(found["triangular2"], found["decay"]),
        }
        accuracies = {name: list(values) for name, values in found.items()}
        yield {"scale": scale, "seeds": seed + 1, "steps": dict(lengths), "test_accuracy": accuracies, "claims": claims}


def show_table(result: dict[str, Any]) -> None:
    """The rows beside the paper's, and the two claims."""
    print(f"\nscale {result['scale']:g}, {result['seeds']} seeds: test accuracy in percent, mean ± 95 % t interval")
    print(f"{'schedule':<12} {'steps':>7} {'here':>14} {'paper (at scale 1)':>20}")
    for name, values in result["test_accuracy"].items():
        print(f"{name:<12} {result['steps'][name]:>7,} {percent(values):>14} {PAPER[name]:>20.1f}")
    for text, claim in result["claims"].items():
        print(f"{text}: {in_words(claim)}")


def main() -> None:
    """Train every row with every seed, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cifar10", type=Path, help="folder with train.parquet and test.parquet; needed but by --quick"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shortens all lengths alike")
    parser.add_argument("--seeds", type=at_least_one, default=6)
    parser.add_argument("--quick", action="store_true", help="scale 0.002, one seed, nothing stored; digits by default")
    args = parser.parse_args()
    if args.cifar10 is None and not args.quick:
        parser.error("--cifar10: give the folder with train.parquet and test.parquet, or --quick for the digits")
    scale, seeds = (0.002, 1) if args.quick else (args.scale, args.seeds)
    result: dict[str, Any] = {}
    for found in measure(images(args.cifar10), scale, seeds):
        result = found
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
