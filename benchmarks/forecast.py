"""Can the end of a run be forecast, for schedules and lengths that were not run?

Run: ``python -m benchmarks.forecast [--jobs 2] [--report] [--quick]``. For each of :data:`PROBLEMS` and two seeds, a
trunk trains at a constant learning rate for 1,000 updates, with one fork: a cooldown, linear to 0, over 200 updates
from update 500. That is what a forecast may read. It is asked for the losses at the end of :data:`TARGETS`, other
schedules of 500 and 1,000 updates, which are trained as well. Every finished training is stored at once.

Four forecasts:

- *law*: the multi-power law (Luo et al. 2025, arXiv 2503.12811), fitted to the losses of trunk and fork,
- *left out*: the same law, fitted to the ends of all other schedules as well, which is the most that it can know,
- *preview*: the loss of the average of the trunk's weights where the trunk had the same sum of learning rates, and
  beyond the trunk by a power law fitted to it,
- *all alike*: the loss at the end of the fork.

The errors are compared with the noise: how much the same training differs between the two seeds.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from benchmarks.cooldown_preview import CELLS, SHARE, Run, previewed
from benchmarks.finder_problems import batches
from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from lr_lightning.callbacks.cooldown_preview import RunningAverage
from lr_lightning.schedules import WSD, Clock, Cosine, Exponential, Linear, MultiStep, Schedule

TRUNK, FORK, COOLDOWN, POINT, SEEDS = 1000, 500, 200, 25, 2
PROBLEMS = ("teacher MLP SGD", "digits LN-MLP AdamW", "digits BN-CNN momentum")
SCHEDULES: dict[str, Schedule] = {
    "cosine": Cosine(),
    "linear": Linear(),
    "wsd": WSD(warmup=0),
    "multistep": MultiStep(("50%", "75%"), 0.3),
    "exponential": Exponential(0.01),
}
TARGETS = [(schedule, length) for length in (500, 1000) for schedule in SCHEDULES]
Losses = NDArray[np.float64]
WAYS = ("law", "left out", "preview", "all alike")


def train(settings: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Train the trunk with its fork, or one of the targets.

    Returns:
        ``curve`` of the trunk: [updates, losses, losses of the average], ``fork`` and ``end``: losses; each as
        [validation loss, validation error, training loss].
    """
    cell, seed, length = CELLS[settings["problem"]], settings["seed"], settings["length"]
    run = Run(cell, cell.lrs[1], seed, cell.data(cell.noise))
    order: Iterator[Tensor] = batches(len(run.split.train[0]), cell.batch_size, 1000 + seed)
    drawn = [next(order) for _ in range(length)]
    if settings["schedule"] != "trunk":
        for index, factor in zip(drawn, factors(settings["schedule"], length), strict=True):
            run.step(index, float(factor))
        return {"end": run.measure()}
    average = RunningAverage(run.net.named_parameters(), SHARE)
    curve, fork = [], []
    for step, index in enumerate(drawn, 1):
        run.step(index, 1.0)
        average.update(run.net.named_parameters())
        if step % POINT == 0:
            curve.append([step, run.measure(), previewed(run, average)])
        if step == length * FORK // TRUNK:
            other, cooldown = run.copy(), length * COOLDOWN // TRUNK
            for i in range(cooldown):
                other.step(drawn[step + i], 1 - (i + 1) / cooldown)
                if (i + 1) % POINT == 0:
                    fork.append([step + i + 1, other.measure()])
    return {"curve": curve, "fork": fork}


def factors(schedule: str, length: int) -> Losses:
    """Return the factors of a schedule of this length; ``trunk`` and ``fork`` are two of them."""
    if schedule == "trunk":
        return np.ones(length)
    if schedule == "fork":
        return np.append(np.ones(length - COOLDOWN), 1 - np.arange(1, COOLDOWN + 1) / COOLDOWN)
    return np.array([SCHEDULES[schedule](step, Clock(total=length)) for step in range(length)])


def pieces(quick: bool) -> list[Piece]:
    """Return the trunk and the targets of each problem and seed."""
    runs = [("trunk", TRUNK), *TARGETS]
    return [
        Piece(
            f"{problem}, {schedule} {length}, seed {seed}",
            {"problem": problem, "schedule": schedule, "length": length, "seed": seed},
            cost=length,
        )
        for problem in (PROBLEMS[:1] if quick else PROBLEMS)
        for seed in range(SEEDS)
        for schedule, length in (runs[:3] if quick else runs)
    ]


# ------------------------------------------------------------------------------------------------------- the forecasts


@dataclass(frozen=True)
class Point:
    """What the multi-power law reads of a schedule up to an update; sums of factors are in hundreds.

    Attributes:
        total: Sum of the factors.
        drops: By how much the factor fell, of each update at which it did.
        factors: The factor after each of these falls.
        since: Sum of the factors from then on.
    """

    total: float
    drops: Losses
    factors: Losses
    since: Losses

    @classmethod
    def of(cls, shape: Losses, made: int) -> "Point":
        """Read a schedule after some updates."""
        sums, drops = np.cumsum(shape[:made]) / 100, -np.diff(shape[:made])
        (at,) = np.nonzero(drops)
        return cls(float(sums[-1]), drops[at], np.maximum(shape[at + 1], 1e-6), sums[-1] - sums[at])


Known = tuple[Point, float]
"""A point, and the loss there."""


def multi_power(theta: Losses, point: Point) -> float:
    """Return the multi-power law's loss.

    Formula: L0 + A·S₁^−α − B·Σ_k (η_{k−1} − η_k)·(1 − (C·η_k^−γ·S_k + 1)^−β), where η is the factor, and S_k its sum
    from update k on. ``theta`` has the logarithms of L0, A, α, B, C, β, γ.
    """
    floor, scale, alpha, drop, speed, beta, gamma = np.exp(theta)
    gained = 1 - (speed * point.factors**-gamma * point.since + 1) ** -beta
    return float(floor + scale * point.total**-alpha - drop * (point.drops * gained).sum())


def fitted(known: Sequence[Known]) -> Losses:
    """Fit the law to losses, by their logarithms."""
    losses = np.log([loss for _, loss in known])

    def misses(theta: Losses) -> Losses:
        return np.log([max(multi_power(theta, point), 1e-6) for point, _ in known]) - losses

    low = math.exp(losses.min())
    starts = [np.log([low * share, low, alpha, low, 1.0, 0.5, 0.5]) for share, alpha in ((0.7, 0.3), (0.3, 1.0))]
    bounds = (np.full(7, -12.0), np.array([5.0, 5.0, 1.5, 5.0, 5.0, 1.5, 1.0]))
    fits = [
        least_squares(misses, np.clip(start, -11, 0.9), bounds=bounds, loss="soft_l1", f_scale=0.03, max_nfev=100)
        for start in starts
    ]
    return np.asarray(min(fits, key=lambda fit: float(fit.cost)).x)


def by_preview(steps: Losses, previews: Losses, total: float) -> float:
    """Return the preview where the trunk had this sum of factors."""
    if total <= steps[-1]:
        return float(np.interp(total, steps, previews))

    def misses(theta: Losses) -> Losses:
        floor, scale, alpha = np.exp(theta)
        return np.log(floor + scale * (steps / 100) ** -alpha) - np.log(previews)

    start = np.log([previews.min() / 2, previews.min(), 0.5])
    floor, scale, alpha = np.exp(least_squares(misses, start, loss="soft_l1", f_scale=0.03, max_nfev=100).x)
    return float(floor + scale * (total / 100) ** -alpha)


def forecasts(
    trunk: Mapping[str, Any], ends: Mapping[tuple[str, int], float], kind: int
) -> dict[str, dict[str, float]]:
    """Forecast every target of a problem and seed.

    Args:
        trunk: What :func:`train` returns of it.
        ends: The loss at the end of each target.
        kind: 0: the validation loss; 2: the training loss.

    Returns:
        For each way the loss at the end of each target.
    """
    curve = [(step, raw[kind], preview[kind]) for step, raw, preview in trunk["curve"] if step >= 4 * POINT]
    steps, raw, previews = np.array(curve).T
    shape = factors("fork", FORK + COOLDOWN)
    known: list[Known] = [(Point.of(np.ones(TRUNK), int(step)), loss) for step, loss in zip(steps, raw, strict=True)]
    known += [(Point.of(shape, step), losses[kind]) for step, losses in trunk["fork"]]
    points = {target: Point.of(factors(*target), target[1]) for target in ends}
    law = fitted(known)
    left_out = {name: fitted([*known, *((points[t], ends[t]) for t in ends if t[0] != name)]) for name in SCHEDULES}
    found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for target, point in points.items():
        name = f"{target[0]} {target[1]}"
        found["law"][name] = multi_power(law, point)
        found["left out"][name] = multi_power(left_out[target[0]], point)
        found["preview"][name] = by_preview(steps, previews, 100 * point.total)
        found["all alike"][name] = trunk["fork"][-1][1][kind]
    return found


# -------------------------------------------------------------------------------------------------------------- report


def compare(records: Mapping[str, Mapping[str, Any]], problem: str, kind: int) -> dict[str, Any]:
    """Return the errors of each way on a problem, as shares of the loss, beside the noise of the seeds."""
    ends = [
        {t: records[f"{problem}, {t[0]} {t[1]}, seed {seed}"]["result"]["end"][kind] for t in TARGETS}
        for seed in range(SEEDS)
    ]
    noise = [abs(math.log(ends[0][target] / ends[1][target])) for target in TARGETS]
    errors: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed, own in enumerate(ends):
        trunk = records[f"{problem}, trunk {TRUNK}, seed {seed}"]["result"]
        for way, found in forecasts(trunk, own, kind).items():
            errors[way] += [abs(math.log(max(found[f"{t[0]} {t[1]}"], 1e-6) / own[t])) for t in TARGETS]
    return {"noise": interval(noise), **{way: interval(each) for way, each in errors.items()}}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean with its 95 % bootstrap interval, the largest value, and how many there are."""
    found = np.array(values)
    means = found[np.random.default_rng(0).integers(len(found), size=(4000, len(found)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(found.mean()),
        "low": float(low),
        "high": float(high),
        "worst": float(found.max()),
        "n": len(found),
    }


def main() -> None:
    """Train what is not stored yet, print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem, two schedules, nothing compared or stored")
    add_options(parser)
    args = parser.parse_args()
    wanted = pieces(args.quick)
    records = finish_or_read("forecast", wanted, "benchmarks.forecast:train", args)
    finished = {piece.settings["problem"] for piece in wanted} - {
        piece.settings["problem"] for piece in wanted if piece.key not in records
    }
    if args.quick or not finished:
        raise SystemExit(f"{len(records)} of {len(wanted)} trainings; the comparison needs all of a problem")
    result: dict[str, Any] = {}
    for name, kind in (("validation", 0), ("training", 2)):
        result[name] = {problem: compare(records, problem, kind) for problem in PROBLEMS if problem in finished}
        for problem, found in result[name].items():
            print(f"{name} loss, {problem}")
            for way, each in found.items():
                ends = f"({each['low']:.1%} to {each['high']:.1%}), worst {each['worst']:.0%}, n = {each['n']}"
                print(f"  {way:<10} {each['mean']:.1%} {ends}", flush=True)
    store("forecast", result, args.quick)


if __name__ == "__main__":
    main()
