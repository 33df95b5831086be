"""What does each pruner save in a search, and which good trials does it lose? By replaying whole trainings.

Run: ``python -m benchmarks.pruning_replay --cifar10 FOLDER [--jobs 2] [--report] [--quick]``. For each of
:data:`PROBLEMS`, trials with a random learning rate (over 3.5 decades), schedule and weight decay train for 12 epochs
to their end, each with the validation loss and its preview (what a cooldown would reach) after every epoch. Every
finished trial is stored at once. Then searches are replayed: 12 of a problem's trials in a random order, one after
another, with the search's own code for each pruner. A trial that is not pruned is the same in all of them.

A *good* trial is the best one of its search and each whose loss is at most 5 % above it (whose error is, or by at most
half a point). The table gives the share of the epochs that pruning saves, the share of the good trials that it ends,
how often it ends the best trial, and how much worse the best trial is that came to its end. The last line replays each
problem with the constants of ``cooled`` that were chosen on the other problems.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from optuna.trial import TrialState
from torch import Tensor, nn

from benchmarks import whole_run_cells as cells
from benchmarks.cooldown_preview import CELLS, SHARE, Cell, Run, previewed
from benchmarks.finder_problems import batches, mlp
from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from benchmarks.whole_run_cells import Split
from benchmarks.whole_run_truth import evaluate
from lr_lightning.callbacks.cooldown_preview import RunningAverage
from lr_lightning.diagnosis.early_stopping import Phases, out_of_reach
from lr_lightning.schedules import WSD, Clock, Constant, Cosine, Linear, OneCycle, Schedule, Triangular
from lr_lightning.search import methods
from lr_lightning.search.methods import TrialPruner, ValidationReport, pruner_of

EPOCHS, TRIALS = 12, 24
SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(),
    "cosine": Cosine(),
    "linear": Linear(),
    "one_cycle": OneCycle(),
    "triangular": Triangular(0.1, 1),
    "wsd": WSD(),
}
_NOISY_MLP = Cell(cells.teacher, 0.2, lambda: mlp(24, 96, 96, 10, norm=True), cells.momentum, 64, (0.01, 0.03, 0.1))


def pixels_mlp() -> nn.Module:
    """An MLP on pictures of 16 x 16."""
    return nn.Sequential(nn.Flatten(), mlp(768, 64, 10))


PROBLEMS = {
    "teacher MLP SGD": CELLS["teacher MLP SGD"],
    "teacher MLP AdamW": Cell(cells.teacher, 0.0, lambda: mlp(24, 128, 10), cells.adamw, 64, (0.0005, 0.002, 0.008)),
    "teacher BN-MLP momentum, noise 20 %": _NOISY_MLP,
    "digits BN-CNN momentum": CELLS["digits BN-CNN momentum"],
    "digits MLP momentum, noise 20 %": CELLS["digits MLP momentum, noise 20 %"],
    "digits LN-MLP AdamW": CELLS["digits LN-MLP AdamW"],
    "cifar16 MLP momentum": Cell(cells.cifar16, 0.0, pixels_mlp, cells.momentum, 64, (0.003, 0.01, 0.03)),
    "cifar16 MLP AdamW, noise 20 %": Cell(cells.cifar16, 0.2, pixels_mlp, cells.adamw, 64, (0.0005, 0.002, 0.008)),
    "cifar16 GN-CNN AdamW": CELLS["cifar16 GN-CNN AdamW"],
    "markov transformer AdamW": CELLS["markov transformer AdamW"],
    "cifar16 BN-CNN momentum, noise 20 %": CELLS["cifar16 BN-CNN momentum, noise 20 %"],
}
_FEWER = {"cifar16 GN-CNN AdamW": 16, "markov transformer AdamW": 16, "cifar16 BN-CNN momentum, noise 20 %": 12}
"""Trials of the problems whose trials take longest; they come last."""
SEARCH, REPLAYS, PATIENCE, GOOD, HALF_A_POINT = 12, 20, 0.25, 1.05, 0.005
ARMS = {
    "verdict": (["verdict"], False),
    "median": (["median"], False),
    "hyperband": (["hyperband"], False),
    "cooled": (["cooled"], True),
    "cooled, of raw losses": (["cooled"], False),
}
"""The pruners, and whether they read the preview."""
HOPES, NEARS, MOST_LOST = (1.0, 1.5, 2.0), (0.02, 0.05, 0.1), 0.025
"""Values for the two constants of ``cooled``; a choice may lose that share of the good trials of the other problems."""


def draw(problem: str, trial: int) -> dict[str, Any]:
    """Draw the settings of a trial."""
    random = np.random.default_rng([*problem.encode(), trial])
    lrs = PROBLEMS[problem].lrs
    return {
        "lr": float(f"{np.exp(random.uniform(np.log(lrs[0] / 30), np.log(lrs[-1] * 10))):.3g}"),
        "schedule": str(random.choice(list(SCHEDULES))),
        "weight_decay": float(f"{10 ** random.uniform(-5, -2):.3g}"),
    }


def small(split: Split) -> Split:
    """Return the first examples of a split, so that a trial takes seconds."""
    (x, y), (val_x, val_y) = split.train, split.val
    return Split((x[:1300], y[:1300]), (val_x[:500], val_y[:500]))


def train(settings: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Train a trial to its end.

    Returns:
        Its settings, and ``curve``: after each epoch the validation loss and error, and the preview of both. A run that
        diverges ends early.
    """
    if settings.get("cifar10"):
        cells.CIFAR10 = Path(settings["cifar10"])
    cell, drawn = PROBLEMS[settings["problem"]], draw(settings["problem"], settings["trial"])
    split = small(cell.data(cell.noise))
    run = Run(cell, drawn["lr"], settings["trial"], split)
    run.optimizer.param_groups[0]["weight_decay"] = drawn["weight_decay"]
    an_epoch = len(split.train[0]) // cell.batch_size
    schedule, clock = SCHEDULES[drawn["schedule"]], Clock(total=an_epoch * EPOCHS, steps_per_epoch=an_epoch)
    order: Iterator[Tensor] = batches(len(split.train[0]), cell.batch_size, 1000 + settings["trial"])
    average = RunningAverage(run.net.named_parameters(), SHARE)
    curve: list[list[float]] = []
    for step in range(an_epoch * settings["epochs"]):
        run.step(next(order), schedule(step, clock))
        average.update(run.net.named_parameters())
        if (step + 1) % an_epoch == 0:
            found = [*evaluate(run.net, *split.val), *previewed(run, average)[:2]]
            if not np.isfinite(found[0]):
                break
            curve.append(found)
    return {**drawn, "curve": curve}


def pieces(cifar10: Path | None, quick: bool) -> list[Piece]:
    """Return the trials of all problems."""
    problems = [name for name in PROBLEMS if cifar10 or not name.startswith("cifar")]
    extra = {"cifar10": str(cifar10)} if cifar10 else {}
    epochs, trials = (3, 6) if quick else (EPOCHS, TRIALS)
    wanted = [(problem, trial) for trial in range(trials) for problem in (problems[::3] if quick else problems)]
    wanted = [(problem, trial) for problem, trial in wanted if trial < _FEWER.get(problem, trials)]
    wanted.sort(key=lambda each: [*_FEWER].index(each[0]) if each[0] in _FEWER else -1)
    return [
        Piece(f"{problem}, trial {trial}", {"problem": problem, "trial": trial, "epochs": epochs, **extra})
        for problem, trial in wanted
    ]


# ------------------------------------------------------------------------------------------------------------- replay

Trial = Mapping[str, Any]


def replay(trials: Sequence[Trial], pruners: list[str], *, preview: bool, accuracy: bool) -> tuple[int, list[bool]]:
    """Run a search of trained trials, one after another.

    Args:
        trials: What :func:`train` returned of each, in the order of the search.
        pruners: As in ``search.pruners``.
        preview: Whether they read the preview of each validation.
        accuracy: Whether the objective is the best accuracy, or else the lowest loss.

    Returns:
        The epochs trained, and which trials were pruned.
    """
    study = optuna.create_study(
        direction="maximize" if accuracy else "minimize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=pruner_of(pruners, EPOCHS, PATIENCE),
        study_name="replay",
    )
    epochs, pruned = 0, []
    for trial in trials:
        handle, counts = study.ask(), comparable(trial["schedule"])
        handle.set_user_attr("run", {"phase": trial["schedule"]})
        pruner = TrialPruner(handle, pruners, higher=accuracy, patience=PATIENCE, reports={})
        done, reason = len(trial["curve"]), None
        for epoch, losses in enumerate(trial["curve"][: EPOCHS - 1], 1):
            value = losses[2 * preview + accuracy]
            report = ValidationReport(1 - value if accuracy else value, epoch, epoch / EPOCHS, counts[epoch - 1])
            if (reason := pruner(report)) is not None:
                done = epoch
                break
        pruned.append(reason is not None)
        epochs += done
        ended = reason is None and done == EPOCHS
        best = min(losses[accuracy] for losses in trial["curve"]) if ended else None
        value = None if best is None else 1 - best if accuracy else best
        study.tell(handle, value, state=TrialState.COMPLETE if ended else TrialState.PRUNED)
    return epochs, pruned


@cache
def comparable(schedule: str) -> list[bool]:
    """Return of each epoch whether its validation can be compared with those of runs of the same schedule."""
    clock, length = Clock(total=100 * EPOCHS, steps_per_epoch=100), 100
    phases = Phases(partial(SCHEDULES[schedule], clock=clock), clock.total)
    return [phases.counts(length * epoch, length * (epoch - 1)) for epoch in range(1, EPOCHS + 1)]


def figures(trials: Sequence[Trial], arm: str, *, accuracy: bool) -> dict[str, float]:
    """Replay searches of one problem with one pruner.

    Returns:
        The means of ``epochs_saved``, ``best_lost`` and ``worse`` (of the loss as a share, of the accuracy in points /
        100) over searches; ``good_lost``, the share of all good trials; ``good``, the mean number of good trials.
    """
    pruners, preview = ARMS[arm]
    random, saved, lost, good_ones, best_lost, worse = np.random.default_rng(0), [], 0, 0, [], []
    for _ in range(REPLAYS):
        chosen = [trials[i] for i in random.permutation(len(trials))[:SEARCH]]
        ends = np.array([_end(trial, accuracy) for trial in chosen])
        epochs, pruned = replay(chosen, pruners, preview=preview, accuracy=accuracy)
        best = ends.min()
        good = ends <= max(GOOD * best, best + HALF_A_POINT * accuracy)
        saved.append(1 - epochs / sum(len(trial["curve"]) for trial in chosen))
        lost, good_ones = lost + int((good & pruned).sum()), good_ones + int(good.sum())
        best_lost.append(pruned[int(ends.argmin())])
        kept = ends[~np.array(pruned)].min()
        worse.append(kept - best if accuracy else kept / best - 1)
    return {
        "epochs_saved": float(np.mean(saved)),
        "good_lost": lost / good_ones,
        "best_lost": float(np.mean(best_lost)),
        "worse": float(np.mean(worse)),
        "good": good_ones / REPLAYS,
    }


def _end(trial: Trial, accuracy: bool) -> float:
    """Return the lowest loss, or error, of a trial; infinite if it diverged."""
    return min(losses[accuracy] for losses in trial["curve"]) if len(trial["curve"]) == EPOCHS else math.inf


def mean_over(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over problems, and the largest share of good trials that one of them lost."""
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return means | {"most_lost": max(row["good_lost"] for row in rows), "n": len(rows)}


def held_out(trials: Mapping[str, Sequence[Trial]]) -> dict[str, Any]:
    """Choose the constants of ``cooled`` on all problems but one, and replay that one with them; for each problem.

    The choice is the one that saves most of those that lose at most :data:`MOST_LOST` of the good trials.

    Returns:
        The figures, the choices, and the figures of each choice on all problems.
    """
    every: dict[tuple[float, float], dict[str, dict[str, float]]] = {}
    for choice in product(HOPES, NEARS):
        rule = partial(out_of_reach, hope=choice[0], near=choice[1])
        with patch.object(methods, "out_of_reach", rule):
            every[choice] = {problem: figures(found, "cooled", accuracy=False) for problem, found in trials.items()}
    rows, choices = [], {}
    for problem in trials:
        others = {c: mean_over([row for p, row in by.items() if p != problem]) for c, by in every.items()}
        allowed = [choice for choice, row in others.items() if row["good_lost"] <= MOST_LOST]
        choices[problem] = max(allowed, key=lambda choice: others[choice]["epochs_saved"])
        rows.append(every[choices[problem]][problem])
    grid = [{"hope": c[0], "near": c[1], **mean_over(list(by.values()))} for c, by in every.items()]
    return {"figures": mean_over(rows), "choices": choices, "grid": grid}


def say(arm: str, row: Mapping[str, float]) -> None:
    """Print a line of the table."""
    print(
        f"{arm:<32} {row['epochs_saved']:>5.0%} {row['good_lost']:>10.1%} {row['most_lost']:>7.0%} "
        f"{row['best_lost']:>10.1%} {row['worse']:>7.1%}",
        flush=True,
    )


def main() -> None:
    """Train what is not stored yet, replay, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cifar10", type=Path, metavar="FOLDER", help="with train.parquet; adds the problems of CIFAR-10"
    )
    parser.add_argument("--quick", action="store_true", help="few trials of few epochs, nothing replayed or stored")
    add_options(parser)
    args = parser.parse_args()
    wanted = pieces(args.cifar10, args.quick)
    records = finish_or_read("pruning_replay", wanted, "benchmarks.pruning_replay:train", args)
    if args.quick:
        print(f"{len(records)} trials, trained for 3 epochs")
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials: dict[str, list[Trial]] = {}
    for piece in wanted:
        if piece.key in records:
            trials.setdefault(piece.settings["problem"], []).append(records[piece.key]["result"])
    trials = {problem: found for problem, found in trials.items() if len(found) >= SEARCH}
    if not trials:
        raise SystemExit("too few trials are finished yet; run the same command without --report to continue")
    result: dict[str, Any] = {"epochs": EPOCHS, "search": SEARCH, "replays": REPLAYS}
    result["trials"] = {problem: len(found) for problem, found in trials.items()}
    for objective in ("loss", "accuracy"):
        print(f"{'best ' + objective:<32} saved  good lost  (most)  best lost   worse")
        result[objective] = {}
        for arm in ARMS:
            by_problem = {p: figures(found, arm, accuracy=objective == "accuracy") for p, found in trials.items()}
            result[objective][arm] = {"figures": mean_over(list(by_problem.values())), "problems": by_problem}
            say(arm, result[objective][arm]["figures"])
    result["held_out"] = held_out(trials)
    say("cooled, chosen on the others", result["held_out"]["figures"])
    store("pruning_replay", result, args.quick)


if __name__ == "__main__":
    main()
