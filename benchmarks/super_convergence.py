"""Super-convergence: does 1cycle reach in a tenth of the epochs what a step schedule reaches in all of them?

Run: ``python -m benchmarks.super_convergence --cifar10 FOLDER [--jobs 2] [--report] [--quick]``. Every finished
training is stored at once, and the same command continues where it stopped. small_cnn on 8,000 images of CIFAR-10 at
16 × 16, SGD with momentum: a step schedule (a tenth at 50 and at 75 % of the run) and 1cycle, each at 4, 12 and 40
epochs, with three peak learning rates and six seeds. A schedule's figure is its test accuracy at the learning rate that
is best on the other seeds, so that the choice flatters nobody. Differences are paired by seed.

Source: Smith & Topin 2017, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates" (arXiv
1708.07120), figure 1 and table 1: 1cycle in 10,000 updates beats a step schedule of 80,000, and by more where there is
less data. Its network is a ResNet-56 on all 50,000 images.
"""

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from benchmarks.schedules import held_out
from benchmarks.smith_table import difference, in_words
from benchmarks.trainings import images, part, percent, train
from lr_lightning.schedules import MultiStep, OneCycle

SCHEDULES = {"step": MultiStep(at=("50%", "75%"), gamma=0.1), "1cycle": OneCycle()}
LRS = (0.03, 0.1, 0.3)
EPOCHS, SEEDS = (4, 12, 40), 6
FULL, TENTH = EPOCHS[-1], EPOCHS[0]


def key(schedule: str, epochs: int, lr: float, seed: int) -> str:
    """Return the name of one training in the stored results."""
    return f"{schedule}, {epochs} epochs, lr {lr:g}, seed {seed}"


def work(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one schedule, length, learning rate and seed."""
    data = part(Path(settings["cifar10"]), 8000) if settings["cifar10"] else None
    words = [*images(data), f"optimizer.lr={settings['lr']}", f"seed={settings['seed']}"]
    words += ["data.image_size=16"] if data else []
    made = train(words, SCHEDULES[settings["schedule"]], epochs=settings["epochs"], checkpoints=folder)
    return {"updates": made.steps, "test_accuracy": made.accuracy}


def summary(records: Mapping[str, dict[str, Any]], seeds: int, epochs: tuple[int, ...]) -> dict[str, Any]:
    """Return each arm's accuracies, and the differences that the claim is about.

    Args:
        records: The finished trainings.
        seeds: How many; arms that lack one are left out.
        epochs: Lengths.
    """
    arms: dict[str, list[float]] = {}
    best: dict[str, float] = {}
    for schedule, length in product(SCHEDULES, epochs):
        keys = [[key(schedule, length, lr, seed) for seed in range(seeds)] for lr in LRS]
        if all(one in records for row in keys for one in row):
            found = np.array([[records[one]["result"]["test_accuracy"] for one in row] for row in keys])
            name = f"{schedule}, {length} epochs"
            arms[name] = held_out(found) if seeds > 1 else found.max(0).tolist()
            best[name] = LRS[int(np.argmax(found.mean(1)))]
    full = f"step, {epochs[-1]} epochs"
    pairs = [(f"1cycle, {length} epochs", other) for length in epochs for other in (f"step, {length} epochs", full)]
    differences = {
        f"{first} − {second}": difference(arms[first], arms[second])
        for first, second in dict.fromkeys(pairs)
        if first in arms and second in arms
    }
    return {"seeds": seeds, "best_lr": best, "test_accuracy": arms, "differences": differences}


def main() -> None:
    """Train what is not stored yet, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="with train.parquet and test.parquet")
    parser.add_argument(
        "--quick", action="store_true", help="1 and 2 epochs, one seed, nothing stored; digits by default"
    )
    add_options(parser)
    args = parser.parse_args()
    if args.cifar10 is None and not args.quick and not args.report:
        parser.error("--cifar10: give the folder with train.parquet and test.parquet, or --quick for the digits")
    epochs, seeds = ((1, 2), 1) if args.quick else (EPOCHS, SEEDS)
    folder = str(args.cifar10) if args.cifar10 else None
    wanted = [
        Piece(
            key(schedule, length, lr, seed),
            {"cifar10": folder, "schedule": schedule, "epochs": length, "lr": lr, "seed": seed},
            length + 5,  # the images are read for each training
        )
        for seed in range(seeds)
        for schedule, length, lr in product(SCHEDULES, epochs, LRS)
    ]
    records = finish_or_read("super_convergence", wanted, "benchmarks.super_convergence:work", args)
    missing = [piece.settings["seed"] for piece in wanted if piece.key not in records]
    result = summary(records, min(missing, default=seeds), epochs)  # the seeds that all arms have
    if not result["test_accuracy"]:
        raise SystemExit("no arm is finished yet; run the same command without --report to continue")
    for name, values in result["test_accuracy"].items():
        print(f"{name:<18} test accuracy {percent(values)} (lr {result['best_lr'][name]:g})")
    for name, found in result["differences"].items():
        print(f"{name}: {in_words(found)}")
    store("super_convergence", result, args.quick)


if __name__ == "__main__":
    main()
