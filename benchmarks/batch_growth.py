"""Decay the learning rate, or grow the batch instead: same epochs, same accuracy, fewer updates?

Run: ``python -m benchmarks.batch_growth [--cifar10 FOLDER] [--images 8000] [--optimizer adamw] [--epochs 30]
[--seeds 6] [--jobs 2] [--report] [--quick]``. Every finished training is stored at once, and the same command continues
where it stopped. With SGD and momentum, one arm divides the learning rate by five at 30, 60 and 80 % of the epochs, the
other multiplies the batch by five there. With AdamW, one arm halves the learning rate there, and the other doubles the
batch and divides the learning rate by the square root of two. Digits with small_cnn; all images of CIFAR-10 with
resnet9, or some of them with a ResNet of eight layers. The difference is paired by seed, since both arms start from the
same weights and see the same images in the same order until the first milestone.

Sources: Smith, Kindermans, Ying & Le 2017, arXiv 1711.00489, section 5.1; for AdamW Meterez et al. 2025, 2510.14717.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import at_least_one, store
from benchmarks.smith_table import difference, in_words
from benchmarks.trainings import images, part, percent, train
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.schedules import Constant, MultiStep

AT = ("30%", "60%", "80%")
ARMS = ("decay", "growth")
FACTORS = {"sgd": 5.0, "adamw": 2.0}
ALL_IMAGES = 50_000
RESNET8 = ["model._target_=lr_lightning.training.models.CifarResNet", "+model.kwargs.blocks_per_stage=1"]


@dataclass(frozen=True)
class Setup:
    """What both arms share."""

    cifar10: str | None
    images: int
    optimizer: str
    epochs: int

    def key(self, arm: str, seed: int) -> str:
        """Return the name of one training in the stored results."""
        data = "digits"
        if self.cifar10:
            data = "CIFAR-10" if self.images == ALL_IMAGES else f"{self.images:,} images of CIFAR-10"
        optimizer = "" if self.optimizer == "sgd" else f"{self.optimizer}, "
        return f"{data}, {optimizer}{self.epochs} epochs, {arm}, seed {seed}"

    def pieces(self, seeds: int) -> list[Piece]:
        """Return one training for each seed and arm."""
        both = product(range(seeds), ARMS)
        return [Piece(self.key(arm, seed), {**asdict(self), "arm": arm, "seed": seed}) for seed, arm in both]


def train_arm(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one arm with one seed."""
    adaptive = settings["optimizer"] == "adamw"
    words = ["data.batch_size=32", f"optimizer.lr={0.003 if adaptive else 0.05}"]
    if settings["cifar10"]:
        given, whole = Path(settings["cifar10"]), settings["images"] == ALL_IMAGES
        words = [*images(given if whole else part(given, settings["images"])), "data.crop_padding=4", "data.flip=true"]
        words += ["model=resnet9", f"data.batch_size={128 if whole else 64}"]
        words.append(f"optimizer.lr={0.003 if adaptive else 0.1}")
        words += [] if whole else RESNET8
    factor, grows = FACTORS[settings["optimizer"]], settings["arm"] == "growth"
    schedule = Constant() if grows else MultiStep(at=AT, gamma=1 / factor)
    lr = "inverse_sqrt" if adaptive else "constant"
    callbacks = [BatchSizeSchedule(AT, factor, max_batch_size=None, lr=lr)] if grows else []
    words += [f"optimizer={settings['optimizer']}", f"seed={settings['seed']}"]
    made = train(words, schedule, epochs=settings["epochs"], callbacks=callbacks, checkpoints=folder)
    return {"updates": made.steps, "test_accuracy": made.accuracy, "seconds": made.seconds}


def main() -> None:
    """Train what is not stored yet, print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--images", type=at_least_one, default=ALL_IMAGES, help="of CIFAR-10, to train on")
    parser.add_argument("--optimizer", choices=list(FACTORS), default="sgd")
    parser.add_argument("--epochs", type=at_least_one, default=30)
    parser.add_argument("--seeds", type=at_least_one, default=6)
    parser.add_argument("--quick", action="store_true", help="5 epochs, 2 seeds, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    epochs, seeds = (5, 2) if args.quick else (args.epochs, args.seeds)
    setup = Setup(str(args.cifar10) if args.cifar10 else None, args.images, args.optimizer, epochs)
    records = finish_or_read("batch_growth", setup.pieces(seeds), "benchmarks.batch_growth:train_arm", args)
    both = [s for s in range(seeds) if all(setup.key(arm, s) in records for arm in ARMS)]
    if not both:
        raise SystemExit("no seed of both arms is finished yet; run the same command without --report to continue")
    found = {arm: [records[setup.key(arm, seed)]["result"] for seed in both] for arm in ARMS}
    name = "CIFAR-10" if args.cifar10 else "digits"
    what = f"{name}, {args.optimizer}, {epochs} epochs, {len(both)} seeds"
    print(f"\n{what}: test accuracy in percent, mean ± 95 % t interval")
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
        "images": args.images if args.cifar10 else None,
        "optimizer": args.optimizer,
        "epochs": epochs,
        "updates": {arm: runs[0]["updates"] for arm, runs in found.items()},
        "test_accuracy": accuracies,
        "seconds": {arm: [run["seconds"] for run in runs] for arm, runs in found.items()},
        "difference": claim,
    }
    parts = ["batch_growth", *(["cifar10"] if args.cifar10 else []), *(["adamw"] if args.optimizer == "adamw" else [])]
    store("_".join(parts), result, args.quick)


if __name__ == "__main__":
    main()
