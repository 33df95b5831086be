"""Decay the rate, or grow the batch instead: same epochs, same accuracy, fewer updates?

Run: ``python -m benchmarks.batch_growth [--cifar10 FOLDER] [--epochs 30] [--seeds 6] [--quick]``. SGD with momentum.
One arm divides the rate by five at 30, 60 and 80 % of the epochs, the other multiplies the batch by five there. Digits,
or CIFAR-10 with resnet9. The difference is paired by seed, since both arms start from the same weights and see the same
images in the same order until the first milestone.

Source: Smith, Kindermans, Ying & Le 2017, arXiv 1711.00489, section 5.1.
"""

import argparse
from pathlib import Path

from benchmarks.report import at_least_one, store
from benchmarks.smith_table import difference, in_words
from benchmarks.trainings import percent, quoted, train
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.schedules import Constant, MultiStep

AT = ("30%", "60%", "80%")


def main() -> None:
    """Train both arms with every seed, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--epochs", type=at_least_one, default=30)
    parser.add_argument("--seeds", type=at_least_one, default=6)
    parser.add_argument("--quick", action="store_true", help="5 epochs, 2 seeds, nothing stored")
    args = parser.parse_args()
    epochs, seeds = (5, 2) if args.quick else (args.epochs, args.seeds)
    folder = args.cifar10
    words = ["optimizer.lr=0.05", "data.batch_size=32"]
    if folder:
        train_file, test_file = quoted(folder / "train.parquet"), quoted(folder / "test.parquet")
        words = [f"data.train={train_file}", f"data.test={test_file}", "data.batch_size=128"]
        words += ["data=parquet", "model=resnet9", "data.crop_padding=4", "data.flip=true", "optimizer.lr=0.1"]
    arms: dict[str, list[float]] = {"decay": [], "growth": []}
    updates: dict[str, int] = {}
    seconds: dict[str, list[float]] = {"decay": [], "growth": []}
    for seed in range(seeds):
        for arm in arms:
            grows = arm == "growth"
            schedule = Constant() if grows else MultiStep(at=AT, gamma=0.2)
            callbacks = [BatchSizeSchedule(AT, 5.0, max_batch_size=None)] if grows else []
            made = train([*words, f"seed={seed}"], schedule, epochs=epochs, callbacks=callbacks)
            arms[arm].append(made.accuracy)
            seconds[arm].append(made.seconds)
            updates[arm] = made.steps
            print(f"seed {seed} {arm:<7} {made.steps:>6} updates {made.accuracy:.2%} {made.seconds:.1f} s", flush=True)
    name = "CIFAR-10" if folder else "digits"
    print(f"\n{name}, {epochs} epochs, {seeds} seeds: test accuracy in percent, mean ± 95 % t interval")
    for arm, values in arms.items():
        mean = sum(seconds[arm]) / len(seconds[arm])
        print(f"{arm:<7} {updates[arm]:>6,} updates {percent(values):>14} {mean:>8.1f} s")
    claim = difference(arms["growth"], arms["decay"])
    print(f"growth − decay: {in_words(claim)}")
    result = {"data": name, "epochs": epochs, "updates": updates, "test_accuracy": arms, "seconds": seconds}
    store(f"batch_growth{'_cifar10' if folder else ''}", {**result, "difference": claim}, args.quick)


if __name__ == "__main__":
    main()
