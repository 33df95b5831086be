"""Which schedule is best at which budget, and how much does it mind a wrong learning rate?

Run: ``python -m benchmarks.schedules [--jobs 2] [--report] [--quick]`` (about half an hour on two cores). Every
finished training is stored at once, and the same command continues where it stopped. Digits with one training label in
five wrong, which keeps the accuracy from its ceiling; small_cnn, SGD with momentum; every schedule × budget × peak
learning rate × seed. For each schedule and budget: the mean test accuracy at the best learning rate (chosen on the
other seeds, so that the choice flatters nobody), and the decades of learning rates that come within a point of it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from benchmarks.trainings import percent, train
from lr_lightning.diagnosis.comparison import good_band
from lr_lightning.schedules import (
    REX,
    WSD,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)
from lr_lightning.schedules.cyclical import ExpRange

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "constant": Constant,
    "multistep": lambda: MultiStep(at=("50%", "75%"), gamma=0.1),
    "exponential": lambda: Exponential(end=0.01),
    "linear": lambda: Warmup("5%", then=Linear(1, 0)),
    "cosine": lambda: Warmup("5%", then=Cosine(1, 0)),
    "wsd": WSD,
    "one_cycle": OneCycle,
    "triangular": lambda: Triangular(base=0.25, up="10%"),
    "triangular2": lambda: Triangular(base=0.25, up="10%", mode="triangular2"),
    "exp_range": lambda: ExpRange(base=0.25, up="10%"),
    "step": lambda: Step(every="34%"),
    "polynomial": lambda: Warmup("5%", then=Polynomial(power=2.0)),
    "inverse_sqrt": lambda: Warmup("5%", then=InverseSqrt("5%")),
    "rex": lambda: Warmup("5%", then=REX()),
    "cosine_restarts": lambda: Restarts(Cosine(), first="14.3%", mult=2),
}
"""As the app's defaults are. A plateau needs a validation, and growing batches have a benchmark of their own."""
LRS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
BUDGETS, SEEDS = (2, 6, 18), 4


def held_out(table: np.ndarray) -> list[float]:
    """For each seed its accuracy at the rate that is best on the other seeds; table is rates × seeds."""
    seeds = range(table.shape[1])
    return [float(table[int(np.argmax(np.delete(table, s, axis=1).mean(axis=1))), s]) for s in seeds]


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a schedule, a column a budget: how accurate at the best rate, and the rates within a point of it.

    Args:
        result: As it is stored.
    """
    rows = {(row["schedule"], row["epochs"]): row for row in result["rows"]}
    budgets = sorted({epochs for _, epochs in rows})
    lines = ["| | " + " | ".join(f"{epochs} epochs" for epochs in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for name in dict.fromkeys(schedule for schedule, _ in rows):
        cells = [_cell(rows[name, epochs]) for epochs in budgets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    low, high = row["good"] or (row["best_rate"], row["best_rate"])
    rates = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    return f"{percent(row['held_out'])} (at {rates})"


def key(epochs: int, schedule: str, lr: float, seed: int) -> str:
    """Return the name of one training in the stored results."""
    return f"{epochs} epochs, {schedule}, lr {lr:g}, seed {seed}"


def train_one(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one schedule with one learning rate and seed."""
    words = ["data.flip_labels=0.2", f"optimizer.lr={settings['lr']}", f"seed={settings['seed']}"]
    made = train(words, SCHEDULES[settings["schedule"]](), epochs=settings["epochs"], checkpoints=folder)
    return {"test_accuracy": made.accuracy}


def row(epochs: int, name: str, lrs: Sequence[float], accuracies: np.ndarray) -> dict[str, Any]:
    """Return a schedule's figures at one budget.

    Args:
        epochs: The budget.
        name: The schedule.
        lrs: Learning rates, shape [R].
        accuracies: Test accuracies, shape [R, seeds].
    """
    means = accuracies.mean(axis=1)
    band = good_band(lrs, means.tolist(), higher=True, tolerance=0.01)
    return {
        "epochs": epochs,
        "schedule": name,
        "held_out": held_out(accuracies),
        "best_rate": lrs[int(np.argmax(means))],
        "good": None if band is None else [band.low, band.high],
        "table": accuracies.tolist(),
    }


def main() -> None:
    """Train what is not stored yet, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two schedules, three rates, one budget, two seeds, nothing stored"
    )
    add_options(parser)
    args = parser.parse_args()
    names = ["constant", "cosine"] if args.quick else list(SCHEDULES)
    budgets, seeds = ((2,), range(2)) if args.quick else (BUDGETS, range(SEEDS))
    lrs = LRS[::2] if args.quick else LRS
    wanted = [
        Piece(key(*values), dict(zip(("epochs", "schedule", "lr", "seed"), values, strict=True)), values[0])
        for values in product(budgets, names, lrs, seeds)
    ]
    records = finish_or_read("schedules", wanted, "benchmarks.schedules:train_one", args)
    rows = []
    for epochs, name in product(budgets, names):
        keys = [[key(epochs, name, lr, seed) for seed in seeds] for lr in lrs]
        if all(one in records for line in keys for one in line):
            found = np.array([[records[one]["result"]["test_accuracy"] for one in line] for line in keys])
            rows.append(row(epochs, name, lrs, found))
            good = rows[-1]["good"]
            print(
                f"{epochs:>3} epochs {name:<12} {percent(rows[-1]['held_out']):>12}  best lr "
                f"{rows[-1]['best_rate']:<6g} within a point: {'–' if good is None else f'{good[0]:g} to {good[1]:g}'}"
            )
    store("schedules", {"rates": lrs, "seeds": len(seeds), "rows": rows}, args.quick)


if __name__ == "__main__":
    main()
