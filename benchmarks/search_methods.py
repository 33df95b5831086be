"""How near do a grid of five learning rates, 20 random and 20 Bayesian trials come to a dense sweep? What does it cost?

Run: ``python -m benchmarks.search_methods [--quick]`` (about eight minutes). Digits, cosine, 6 epochs, one key: the
learning rate from 1e-4 to 10. The objective is the best validation loss. All searches of a seed train with that seed,
and the dense sweep has 49 learning rates on a log grid.

``--overhead`` measures instead what a search takes beyond its trials. ``scripts/search.py`` trains a grid of seven
learning rates (25 epochs each, about 5 s) with one worker, and then of twelve; a single process trains the same trials
in a loop of ``train()``. Compared are, each from the start of the interpreter to the end of the last of its processes,

* the time from the start of the first trial to the end of the last one with the trials' own time, which is the sum of
  the seconds of each ``train()`` with all that an ordinary run does (loading the data, opening and closing the record);
* the wall time of the whole command with the trials' own time; and the same without what any search takes once: the
  wall time of the same command with a single trial, less that trial;
* the wall time of the search with that of the single process;
* the CPU seconds of the search, those of all its processes, with those of the single process.

The last two include the imports, the smoke test, the study and the table at the end. The runs are recorded as CSV: the
comparison that ends a search with MLflow is a command like ``scripts/compare.py``, and is not measured here.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import torch

from benchmarks.report import at_least_one, store
from benchmarks.searches import ROOT, Found, search

SPACE = "search.space.optimizer.lr={log: [1e-4, 10]"
METHODS = {
    "dense sweep": ["search=grid", f"{SPACE}, points: 49}}"],
    "grid of 5": ["search=grid", f"{SPACE}, points: 5}}"],
    "random, 20": ["search=random", "n_trials=20", f"{SPACE}}}"],
    "TPE, 20": ["search=bayes", "n_trials=20", f"{SPACE}}}"],
    "GP, 20": ["search=bayes", "search.sampler=gp", "n_trials=20", f"{SPACE}}}"],
}
SEEDS = 3
REPEATS, EPOCHS = 3, 25

SINGLE = """
import sys
from pathlib import Path
from lr_lightning.app.composition import load_config, prepare
root, lrs, words = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
prepare(root)
from lr_lightning.app.run.train import train
for lr in lrs:
    train(load_config(root, [*words, f"optimizer.lr={lr}"]), report=False)
"""


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one seed of the grid of 5, an epoch a trial, nothing stored"
    )
    parser.add_argument("--overhead", action="store_true", help="measure what a search takes beyond its trials")
    parser.add_argument("--trials", type=at_least_one, nargs="+", default=[7, 12], help="of the searches of --overhead")
    arguments = parser.parse_args()
    measure_overhead(arguments.quick, arguments.trials) if arguments.overhead else compare_methods(arguments.quick)


def compare_methods(quick: bool) -> None:
    """Compare what the methods find."""
    torch.set_num_threads(1)
    words = ["search.objective=val/loss", "search.direction=minimize", "search.pruners=[]", "test=false"]
    words += [f"trainer.max_epochs={1 if quick else 6}", "callbacks.checkpoint=null", "sweep=x"]
    found: dict[str, list[Found]] = {name: [] for name in METHODS if not quick or name == "grid of 5"}
    for seed in range(1 if quick else SEEDS):
        for name in found:
            found[name].append(search(*METHODS[name], *words, f"seed={seed}", f"search.seed={seed}"))
            print(f"seed {seed} {name:<12} {found[name][-1]}", flush=True)
    print(f"\n{'method':<12} {'trials':>6} {'best loss':>24} {'its lr':>22} {'beyond the trials':>18}")
    for name, runs in found.items():
        losses, lrs = np.array([r.best for r in runs]), [r.lr for r in runs]
        beyond = float(np.median([r.beyond for r in runs]))
        print(
            f"{name:<12} {runs[0].trials:>6} {losses.mean():>9.4f} ({losses.min():.4f} to {losses.max():.4f}) "
            f"{', '.join(f'{lr:.2g}' for lr in lrs):>22} {beyond:>18.1%}"
        )
    store("search_methods", {name: [vars(run) for run in runs] for name, runs in found.items()}, quick)


def measure_overhead(quick: bool, counts: Sequence[int] = (7, 12)) -> None:
    """Measure what a search takes beyond its trials."""
    rows: dict[str, list[dict[str, float]]] = {}
    for count in (2,) if quick else counts:
        for _ in range(1 if quick else REPEATS):
            row = _overhead(count, 1 if quick else EPOCHS)
            rows.setdefault(str(count), []).append(row)
            print(f"{count} trials {row}", flush=True)
    heads = ("first to last trial", "whole command", "without one start", "beyond one process", "CPU of one process")
    print(f"\n{'trials':>6} {''.join(f'{head:>21}' for head in heads)}")
    for count, found in rows.items():
        median = {key: float(np.median([row[key] for row in found])) for key in found[0]}
        shares = ("beyond_trials", "beyond_trials_whole", "beyond_trials_and_start", "beyond_single")
        print(f"{count:>6} {''.join(f'{median[key]:>21.1%}' for key in shares)}{median['cpu']:>20.2f}x")
    store("search_overhead", {"epochs": EPOCHS, "trials": rows}, quick)


def _overhead(count: int, epochs: int) -> dict[str, float]:
    words = [f"trainer.max_epochs={epochs}", "tracking=csv", "trainer.progress=none", "trainer.accelerator=cpu"]
    lrs = ",".join(f"{lr:.3g}" for lr in np.geomspace(1e-3, 1, count))
    with tempfile.TemporaryDirectory() as place:
        words += [f"tracking.root={place}/mlruns", f"output_root={place}/outputs"]
        single = _timed("-c", SINGLE, str(ROOT), lrs, *words)
        script = str(ROOT / "scripts" / "search.py")
        alone = _timed(script, "search=grid", "sweep=one", "optimizer.lr=choice(0.03)", *words)
        start = alone[0] - _trial_seconds(Path(place) / "outputs" / "one")
        searched = _timed(script, "search=grid", "sweep=s", f"optimizer.lr={lrs}", *words)
        trials = _trial_seconds(Path(place) / "outputs" / "s")
        ended = optuna.load_study(study_name="s", storage=f"sqlite:///{place}/mlruns/search.db").get_trials()
        starts = [trial.datetime_start for trial in ended if trial.datetime_start is not None]
        ends = [trial.datetime_complete for trial in ended if trial.datetime_complete is not None]
        seconds = (max(ends) - min(starts)).total_seconds()
    return {
        "trial_seconds": trials,
        "search_seconds": searched[0],
        "single_seconds": single[0],
        "start_seconds": start,
        "beyond_trials": seconds / trials - 1,
        "beyond_trials_whole": searched[0] / trials - 1,
        "beyond_trials_and_start": (searched[0] - start) / trials - 1,
        "beyond_single": searched[0] / single[0] - 1,
        "cpu": searched[1] / single[1],
    }


def _trial_seconds(folder: Path) -> float:
    """Return the seconds of all trials of a search together."""
    with (folder / "trials.csv").open() as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def _timed(*command: str) -> tuple[float, float]:
    """Return the wall time and the CPU seconds of a Python command with all its children."""
    before, began = os.times(), time.monotonic()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command], check=True, env=env, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - began, cpu


if __name__ == "__main__":
    main()
