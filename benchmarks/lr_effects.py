"""What a high and a low learning rate do, and which of the textbook's claims hold.

Run: ``python -m benchmarks.lr_effects [--cifar10 FOLDER] [--schedule cosine] [--jobs 2] [--report] [--quick]``. Every
finished training is stored at once, and the same command continues where it stopped. small_cnn, one thread: 11 peak
learning rates on a log grid from 1e-4 to 10, three seeds, 15 epochs; the digits, or 8,000 images of CIFAR-10 at 16 × 16
(and 2,000 for validation). The learning rate stays constant, or decays on a cosine. Each seed goes through all learning
rates before the next one does.

The learning rates above and below the middle one are compared with it, by the ranks of all runs, two-sided, with Holm's
correction over all claims. What is counted in steps is the same in every run of this benchmark; what is counted in
seconds is not, and moves the adjusted p of the others with it.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from benchmarks.trainings import ROOT, part, quoted
from lr_lightning.app.commands.lr_effects import train_one
from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.config import Config
from lr_lightning.app.run.messages import quiet
from lr_lightning.app.schemas.search import LREffectsConfig
from lr_lightning.diagnosis.lr_claims import Claim, GridRun, claims
from lr_lightning.diagnosis.verdict import Label

GRID = LREffectsConfig()
SCHEDULES = ("constant", "cosine")


def config_of(folder: str | None, schedule: str, epochs: int) -> Config:
    """Return the config of the grid; learning rate and seed are set for each training."""
    words = ["experiment=lr_effects", "tracking=none", "trainer=cpu", "trainer.threads=1", f"schedule={schedule}"]
    if folder:
        train = quoted(part(Path(folder), 10_000) / "train.parquet")
        words += ["data=parquet", f"data.train={train}", "data.val_fraction=0.2", "data.image_size=16"]
        words.append("callbacks.cost.target='val/acc>=0.45'")
    return load_config(ROOT, [*words, f"trainer.max_epochs={epochs}"])


def work(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one learning rate with one seed."""
    prepare(ROOT)
    quiet()
    config = config_of(settings["cifar10"], settings["schedule"], settings["epochs"])
    return plain(train_one(config, settings["lr"], settings["seed"], {}))


def plain(item: GridRun | Claim) -> dict[str, Any]:
    """Its values; JSON knows no infinity, so what was never reached, or is not known, is null."""
    finite = {key: not isinstance(value, float) or math.isfinite(value) for key, value in asdict(item).items()}
    return {key: value if finite[key] else None for key, value in asdict(item).items()}


def trial_of(result: Mapping[str, Any]) -> GridRun:
    """Return what :func:`plain` wrote."""
    missing = {"steps_to_target": math.inf, "device_seconds_to_target": math.inf}
    values = {key: missing.get(key, math.nan) if value is None else value for key, value in result.items()}
    curve = tuple((probe, val) for probe, val in values["curve"])
    return GridRun(**(values | {"label": Label(values["label"]), "curve": curve}))


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a claim, with what became of it.

    Args:
        result: As it is stored.
    """
    lines = ["| | by | of the pairs | adjusted p | |", "|---|---|---|---|---|"]
    for claim in result["claims"]:
        share = "–" if claim["share"] is None else f"{claim['share']:.0%}"
        cells = (claim["text"], claim["measure"], share, f"{claim['adjusted']:.2g}", claim["outcome"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is not stored yet, print and store the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="with train.parquet and test.parquet")
    parser.add_argument("--schedule", choices=SCHEDULES, default="constant")
    parser.add_argument("--quick", action="store_true", help="three rates, one seed, three epochs, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    lrs, seeds, epochs = (GRID.all_lrs()[::5], [0], 3) if args.quick else (GRID.all_lrs(), GRID.seeds, 15)
    data, folder = ("CIFAR-10", str(args.cifar10)) if args.cifar10 else ("digits", None)
    name = f"{data}, {args.schedule}"
    wanted = [
        Piece(
            f"{name}, lr {lr:g}, seed {seed}",
            {"cifar10": folder, "schedule": args.schedule, "epochs": epochs, "lr": lr, "seed": seed},
        )
        for seed in seeds
        for lr in lrs
    ]
    records = finish_or_read("lr_effects", wanted, "benchmarks.lr_effects:work", args)
    trials = [trial_of(records[piece.key]["result"]) for piece in wanted if piece.key in records]
    reference = GRID.reference_lr()
    if all(trial.lr != reference for trial in trials):
        raise SystemExit("no run at the reference is finished; run the same command without --report to continue")
    result = {
        "data": data,
        "schedule": args.schedule,
        "epochs": epochs,
        "reference": reference,
        "claims": [plain(claim) for claim in claims(trials, reference)],
        "trials": [plain(trial) for trial in trials],
    }
    print(table(result))
    parts = ["lr_effects", *(["cifar10"] if folder else []), *([args.schedule] if args.schedule != "constant" else [])]
    store("_".join(parts), result, args.quick)


if __name__ == "__main__":
    main()
