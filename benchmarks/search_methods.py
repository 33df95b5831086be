"""How near do a grid of five rates, 20 random and 20 Bayesian trials come to a dense sweep?

Run: ``python -m benchmarks.search_methods [--quick]`` (about eight minutes). Digits, cosine, 6 epochs, one key: the
rate from 1e-4 to 10. The objective is the best validation loss. All searches of a seed train with that seed, and the
dense sweep has 49 rates on a log grid.
"""

import argparse

import numpy as np
import torch

from benchmarks.report import store
from benchmarks.searches import Found, search

SPACE = "search.space.optimizer.lr={log: [1e-4, 10]"
METHODS = {
    "dense sweep": ["search=grid", f"{SPACE}, points: 49}}"],
    "grid of 5": ["search=grid", f"{SPACE}, points: 5}}"],
    "random, 20": ["search=random", "n_trials=20", f"{SPACE}}}"],
    "TPE, 20": ["search=bayes", "n_trials=20", f"{SPACE}}}"],
    "GP, 20": ["search=bayes", "search.sampler=gp", "n_trials=20", f"{SPACE}}}"],
}
SEEDS = 3


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one seed of the grid of 5, an epoch a trial, nothing stored"
    )
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    words = ["search.objective=val/loss", "search.direction=minimize", "search.pruners=[]", "test=false"]
    words += [f"trainer.max_epochs={1 if quick else 6}", "callbacks.checkpoint=null", "sweep=x"]
    found: dict[str, list[Found]] = {name: [] for name in METHODS if not quick or name == "grid of 5"}
    for seed in range(1 if quick else SEEDS):
        for name in found:
            found[name].append(search(*METHODS[name], *words, f"seed={seed}", f"search.seed={seed}"))
            print(f"seed {seed} {name:<12} {found[name][-1]}", flush=True)
    print(f"\n{'method':<12} {'trials':>6} {'best loss':>24} {'its rate':>22} {'beyond the trials':>18}")
    for name, runs in found.items():
        losses, rates = np.array([r.best for r in runs]), [r.lr for r in runs]
        beyond = float(np.median([r.beyond for r in runs]))
        print(
            f"{name:<12} {runs[0].trials:>6} {losses.mean():>9.4f} ({losses.min():.4f} to {losses.max():.4f}) "
            f"{', '.join(f'{lr:.2g}' for lr in rates):>22} {beyond:>18.1%}"
        )
    store("search_methods", {name: [vars(run) for run in runs] for name, runs in found.items()}, quick)


if __name__ == "__main__":
    main()
