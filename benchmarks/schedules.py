"""Which schedule is best at which budget, and how much does it mind a wrong rate?

Run: ``python -m benchmarks.schedules [--quick]`` (about half an hour on two cores). Digits with one training label in
five wrong, which keeps the accuracy from its ceiling; small_cnn, SGD with momentum; every schedule × budget × peak rate
× seed. For each schedule and budget: the mean test accuracy at the best of the rates (chosen on the other seeds, so
that the choice flatters nobody), and the decades of rates that come within a point of it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

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
RATES = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
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


def main() -> None:
    """Train everything, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two schedules, three rates, one budget, two seeds, nothing stored"
    )
    quick = parser.parse_args().quick
    names = ["constant", "cosine"] if quick else list(SCHEDULES)
    budgets, seeds = ((2,), 2) if quick else (BUDGETS, SEEDS)
    rates = RATES[::2] if quick else RATES
    rows = []
    for epochs in budgets:
        for name in names:
            table = np.array(
                [
                    [
                        train(
                            ["data.flip_labels=0.2", f"optimizer.lr={lr}", f"seed={seed}"],
                            SCHEDULES[name](),
                            epochs=epochs,
                        ).accuracy
                        for seed in range(seeds)
                    ]
                    for lr in rates
                ]
            )
            means = table.mean(axis=1)
            band = good_band(rates, means.tolist(), higher=True, tolerance=0.01)
            row = {
                "epochs": epochs,
                "schedule": name,
                "held_out": held_out(table),
                "best_rate": rates[int(np.argmax(means))],
                "good": None if band is None else [band.low, band.high],
                "table": table.tolist(),
            }
            rows.append(row)
            good = "–" if band is None else f"{band.low:g} to {band.high:g}"
            print(
                f"{epochs:>3} epochs {name:<12} {percent(row['held_out']):>12}  best rate {row['best_rate']:<6g} "
                f"within a point: {good}",
                flush=True,
            )
    store("schedules", {"rates": rates, "seeds": seeds, "rows": rows}, quick)


if __name__ == "__main__":
    main()
