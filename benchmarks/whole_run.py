"""Over whole planned runs: how much worse than the best learning rate is the one that a rule suggests?

Run: ``python -m benchmarks.whole_run --cifar10 FOLDER [--jobs 2] [--report] [--rule MODULE:FUNCTION] [--unseal]
[--set second] [--quick]``. For every cell of ``benchmarks.whole_run_cells`` a dense sweep trains the whole planned run,
its schedule included, with each learning rate (three a decade over 1e-5..10, two seeds): the truth. Every finished
training is stored at once, and the same command continues where it stopped. Then every rule of
``benchmarks.whole_run_rules`` answers for every cell whose truth is complete, with three other seeds.

The regret of a learning rate is ``(L(lr) − L(best)) / (L(start) − L(best))``, with L the validation loss after the last
update, the mean over seeds, interpolated in the logarithm of the learning rate. 0 is the best swept one, 1 is no
learning; a diverged run counts as no learning, and so does an answer outside the sweep that is worse. A rule that gives
no answer is charged the regret of 1e-3. The same with the share of errors in place of the loss stands beside it.

Sealed cells take part in the report only with ``--unseal``: no rule may have been chosen on them. ``--set second`` and
``--set third`` take the cells of ``benchmarks.whole_run_later``. All of them are sealed; their trainings have files of
their own.
"""

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import whole_run_cells
from benchmarks.pieces import Piece, add_options, finish_or_read
from benchmarks.report import store
from benchmarks.whole_run_cells import CELLS, SEALED, Cell
from benchmarks.whole_run_later import SECOND, THIRD
from benchmarks.whole_run_rules import RULES, Answer, Rule
from benchmarks.whole_run_truth import train

LRS = [float(f"{lr:.4g}") for lr in np.geomspace(1e-5, 10, 19)]
SEEDS, RULE_SEEDS = 2, 3
FALLBACK = 1e-3
SETS = {"first": ("whole_run", CELLS), "second": ("whole_run_second", SECOND), "third": ("whole_run_third", THIRD)}
ALL = CELLS | SECOND | THIRD
BEST_BAND = 0.01
"""Learning rates whose regret is at most this count as best, where an interval is asked whether it covers the best."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Regret of each learning rate of the sweep: by validation loss and by validation error, shape [19]."""

    loss: Floats
    error: Floats

    def regret(self, lr: float) -> tuple[float, float]:
        """Return the regret by loss and by error of any learning rate."""
        at = np.log(lr)
        return float(np.interp(at, np.log(LRS), self.loss)), float(np.interp(at, np.log(LRS), self.error))

    @property
    def best(self) -> tuple[float, float]:
        """Lowest and highest learning rate of those that are about as good as the best one."""
        good = np.array(LRS)[self.loss <= BEST_BAND]
        return float(good[0]), float(good[-1])


def key(cell: str, lr: float, seed: int) -> str:
    """Return the name of one training in the stored results."""
    return f"{cell}, lr {lr:g}, seed {seed}"


def pieces(cells: Mapping[str, Cell], cifar10: Path | None) -> list[Piece]:
    """Return the trainings of the truth: all learning rates of one seed and cell, then the next cell."""
    extra = {"cifar10": str(cifar10)} if cifar10 else {}
    return [
        Piece(key(name, lr, seed), {"cell": name, "lr": lr, "seed": seed, **extra}, cell.steps)
        for seed in range(SEEDS)
        for name, cell in cells.items()
        for lr in LRS
    ]


def work(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Train one piece."""
    if "cifar10" in settings:
        whole_run_cells.CIFAR10 = Path(settings["cifar10"])
    return train(ALL[settings["cell"]], settings["lr"], settings["seed"])


def truth_of(cell: str, records: Mapping[str, dict[str, Any]]) -> Truth | None:
    """Return the regret of every learning rate of a cell, or None where a training of it is missing.

    Args:
        cell: Its name.
        records: The finished trainings.
    """
    found = [[records.get(key(cell, lr, seed)) for seed in range(SEEDS)] for lr in LRS]
    if any(record is None for row in found for record in row):
        return None
    steps, curves = ALL[cell].steps, []
    for measure in (0, 1):
        start = np.array([[record["result"]["start"][measure] for record in row] for row in found])
        ends = [[_end(record["result"]["curve"], steps, measure) for record in row] for row in found]
        end = np.minimum(ends, start).mean(1)
        best, begin = end.min(), start.mean()
        curves.append((end - best) / max(begin - best, 1e-12))
    return Truth(*curves)


def _end(curve: Sequence[Sequence[float]], steps: int, measure: int) -> float:
    return curve[-1][1 + measure] if curve and curve[-1][0] == steps else np.inf


def judge(truths: Mapping[str, Truth], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Let every rule answer for every cell, and measure the answers.

    Returns:
        Rule to its figures: regret by loss and by error (mean, 95 % interval over cells, worst), the share without an
        answer, how often the interval covers a best learning rate, updates as a share of the run, and the answers.
    """
    figures = {}
    for name, rule in rules.items():
        answers = {cell: [rule(ALL[cell], seed) for seed in range(RULE_SEEDS)] for cell in truths}
        figures[name] = figures_of(answers, truths)
        print(line(name, figures[name]), flush=True)
    return figures


def figures_of(answers: Mapping[str, Sequence[Answer]], truths: Mapping[str, Truth]) -> dict[str, Any]:
    """Return the figures of one rule from its answers."""
    regrets = {c: [truths[c].regret(FALLBACK if a.lr is None else a.lr) for a in given] for c, given in answers.items()}
    pairs = [(cell, answer) for cell, given in answers.items() for answer in given]
    covered = [
        a.interval[0] <= truths[c].best[1] and truths[c].best[0] <= a.interval[1] for c, a in pairs if a.interval
    ]
    return {
        **{
            part: _mean({c: [r[i] for r in rows] for c, rows in regrets.items()})
            for i, part in enumerate(("loss", "error"))
        },
        "unanswered": float(np.mean([answer.lr is None for _, answer in pairs])),
        "coverage": float(np.mean(covered)) if covered else None,
        "updates": float(np.mean([answer.updates / ALL[cell].steps for cell, answer in pairs])),
        "answers": {cell: [answer.lr for answer in given] for cell, given in answers.items()},
    }


def _mean(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    means = np.array([np.mean(row) for row in values.values()])
    picks = np.random.default_rng(0).integers(len(means), size=(4000, len(means)))
    low, high = np.quantile(means[picks].mean(1), [0.025, 0.975])
    worst = max(max(row) for row in values.values())
    return {"mean": float(means.mean()), "low": float(low), "high": float(high), "worst": float(worst)}


def line(name: str, figures: Mapping[str, Any]) -> str:
    """Return one row of the table."""
    loss, error, coverage = figures["loss"], figures["error"], figures["coverage"]
    covers = "–" if coverage is None else f"{coverage:.0%}"
    return (
        f"{name:<22} {loss['mean']:.3f} ({loss['low']:.3f} to {loss['high']:.3f}), worst {loss['worst']:.2f}; errors "
        f"{error['mean']:.3f}, worst {error['worst']:.2f}; unanswered {figures['unanswered']:.0%}; interval covers the "
        f"best {covers}; updates {figures['updates']:.0%} of the run"
    )


def named_rule(text: str) -> tuple[str, Rule]:
    """Return the name and the function that ``--rule module:function`` names."""
    module, _, function = text.partition(":")
    rule: Rule = getattr(importlib.import_module(module), function)
    return text, rule


def main() -> None:
    """Train what is not stored yet, let the rules answer, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="with train.parquet; adds the cells of CIFAR-10")
    parser.add_argument("--rule", action="append", default=[], metavar="MODULE:FUNCTION", help="one more rule; repeat")
    parser.add_argument("--only", action="store_true", help="the rules of --rule alone; nothing is stored")
    parser.add_argument("--unseal", action="store_true", help="report on the sealed cells in place of the open ones")
    parser.add_argument("--set", choices=SETS, default="first", help="of cells; of the later ones all are sealed")
    parser.add_argument("--quick", action="store_true", help="a short cell, few rules, nothing stored")
    add_options(parser)
    args = parser.parse_args()
    whole_run_cells.CIFAR10 = args.cifar10
    pictures = ("cifar", "animals")
    store_name, chosen = SETS[args.set]
    sealed = SEALED if args.set == "first" else set(chosen)
    cells = {name: cell for name, cell in chosen.items() if args.cifar10 or not name.startswith(pictures)}
    rules = dict(map(named_rule, args.rule)) | ({} if args.only else RULES)
    if args.quick:
        name = "digits MLP SGD 64, 300 constant"
        CELLS[name] = replace(CELLS[name], steps=20)
        cells, rules = {name: CELLS[name]}, {n: rules[n] for n in list(rules)[:4]}
    records = finish_or_read(store_name, pieces(cells, args.cifar10), "benchmarks.whole_run:work", args)
    truths = {name: truth for name in cells if (name in sealed) == args.unseal and (truth := truth_of(name, records))}
    if args.set != "first" and not args.unseal:
        print("All of these cells are sealed: --unseal reports on them.")
        return
    if not truths:
        raise SystemExit("no cell is complete yet; run the same command without --report to continue")
    part = args.set if args.set != "first" else "sealed" if args.unseal else "open"
    print(f"{len(truths)} {part} cells, {RULE_SEEDS} seeds a rule; regret by validation loss, 95 % interval over cells")
    result = {"cells": list(truths), "truth": {n: t.loss.tolist() for n, t in truths.items()}, "lrs": LRS}
    result["rules"] = judge(truths, rules)
    store(f"whole_run_{part}", result, args.quick or args.only)


if __name__ == "__main__":
    main()
