"""Decay the learning rate, or grow the batch instead: same epochs, same accuracy, fewer updates?

Run: ``python -m benchmarks.batch_growth [--cifar10 FOLDER] [--epochs 30] [--seeds 6] [--jobs 2] [--report]
[--quick]``. Every finished training is stored at once, and the same command continues where it stopped. SGD with
momentum. One arm divides the learning rate by five at 30, 60 and 80 % of the epochs, the other multiplies the batch by
five there. Digits, or CIFAR-10 with resnet9. The difference is paired by seed, since both arms start from the same
weights and see the same images in the same order until the first milestone.

Source: Smith, Kindermans, Ying & Le 2017, arXiv 1711.00489, section 5.1.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import at_least_one, store
from benchmarks.smith_table import difference, in_words
from benchmarks.trainings import percent, quoted, train
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.schedules import Constant, MultiStep

AT = ("30%", "60%", "80%")


ARMS = ("decay", "growth")


def pieces(folder: Path | None, epochs: int, seeds: int) -> list[Piece]:
    """Return one training for each seed and arm."""
    data = str(folder) if folder else None
    return [
        Piece(key(data, epochs, arm, seed), {"cifar10": data, "epochs": epochs, "arm": arm, "seed": seed})
        for seed in range(seeds)
        for arm in ARMS
    ]


def key(folder: str | None, epochs: int, arm: str, seed: int) -> str:
    """Return the name of one training in the stored results."""
    return f"{'CIFAR-10' if folder else 'digits'}, {epochs} epochs, {arm}, seed {seed}"


def train_arm(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one arm with one seed."""
    words = ["optimizer.lr=0.05", "data.batch_size=32"]
    if settings["cifar10"]:
        files = [quoted(Path(settings["cifar10"]) / name) for name in ("train.parquet", "test.parquet")]
        words = ["data=parquet", f"data.train={files[0]}", f"data.test={files[1]}", "data.batch_size=128"]
        words += ["model=resnet9", "data.crop_padding=4", "data.flip=true", "optimizer.lr=0.1"]
    grows = settings["arm"] == "growth"
    schedule = Constant() if grows else MultiStep(at=AT, gamma=0.2)
    callbacks = [BatchSizeSchedule(AT, 5.0, max_batch_size=None)] if grows else []
    words.append(f"seed={settings['seed']}")
    made = train(words, schedule, epochs=settings["epochs"], callbacks=callbacks, checkpoints=folder)
    return {"updates": made.steps, "test_accuracy": made.accuracy, "seconds": made.seconds}


def main() -> None:
    """Train what is not stored yet, print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--epochs", type=at_least_one, default=30)
    parser.add_argument("--seeds", type=at_least_one, default=6)
    parser.add_argument("--quick", action="store_true", help="5 epochs, 2 seeds, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    epochs, seeds = (5, 2) if args.quick else (args.epochs, args.seeds)
    wanted = pieces(args.cifar10, epochs, seeds)
    records = finish_or_read("batch_growth", wanted, "benchmarks.batch_growth:train_arm", args)
    both = [s for s in range(seeds) if all(key(args.cifar10, epochs, arm, s) in records for arm in ARMS)]
    if not both:
        raise SystemExit("no seed of both arms is finished yet; run the same command without --report to continue")
    found = {arm: [records[key(args.cifar10, epochs, arm, seed)]["result"] for seed in both] for arm in ARMS}
    name = "CIFAR-10" if args.cifar10 else "digits"
    print(f"\n{name}, {epochs} epochs, {len(both)} seeds: test accuracy in percent, mean ± 95 % t interval")
    for arm, runs in found.items():
        timed = [run["seconds"] for run in runs if run["seconds"] is not None]
        seconds = f"{sum(timed) / len(timed):8.1f} s" if timed else "resumed"
        accuracy = percent([run["test_accuracy"] for run in runs])
        print(f"{arm:<7} {runs[0]['updates']:>6,} updates {accuracy:>14} {seconds}")
    accuracies = {arm: [run["test_accuracy"] for run in runs] for arm, runs in found.items()}
    claim = difference(accuracies["growth"], accuracies["decay"])
    print(f"growth − decay: {in_words(claim)}")
    result = {
        "data": name,
        "epochs": epochs,
        "updates": {arm: runs[0]["updates"] for arm, runs in found.items()},
        "test_accuracy": accuracies,
        "seconds": {arm: [run["seconds"] for run in runs] for arm, runs in found.items()},
        "difference": claim,
    }
    store(f"batch_growth{'_cifar10' if args.cifar10 else ''}", result, args.quick)


if __name__ == "__main__":
    main()
