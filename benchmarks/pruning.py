"""What does pruning save, and what does it cost in the best value found?

Run: ``python -m benchmarks.pruning [--quick]`` (about ten minutes). Random searches on digits over the learning rate
(1e-4 to 1) and four schedules, 16 trials of 12 epochs; without pruning, and with each of the pruners. A trial's values
depend on the search's seed and its number alone, so all arms train the same trials in the same order, and a trial that
is not pruned is the same run, bit for bit. The objective is the best validation loss; the cost of pruning is how much
higher, in percent, the best one is than that of all trials run to their end.
"""

import argparse

import numpy as np
import torch

from benchmarks.report import store
from benchmarks.searches import search

ARMS = {"none": "[]", "verdict": "[verdict]", "median": "[median]", "hyperband": "[hyperband]"}
TRIALS, EPOCHS, SEEDS = 16, 12, 5


def main() -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one pruner, few trials, nothing stored")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    trials, epochs, seeds = (3, 4, 1) if quick else (TRIALS, EPOCHS, SEEDS)
    words = ["search=random", f"n_trials={trials}", "search.objective=val/loss", "search.direction=minimize"]
    words += ["schedule=constant,cosine,triangular,wsd", f"trainer.max_epochs={epochs}", "test=false"]
    words += ["callbacks.checkpoint=null"]
    arms = {arm: pruners for arm, pruners in ARMS.items() if not quick or arm in ("none", "median")}
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        whole = search(*words, f"search.seed={seed}", f"sweep=none{seed}", "search.pruners=[]")
        for arm, pruners in arms.items():
            again = arm != "none"
            run = search(*words, f"search.seed={seed}", "sweep=x", f"search.pruners={pruners}") if again else whole
            rows[arm].append(
                {
                    "epochs_saved": 1 - run.epochs / whole.epochs,
                    "worse_percent": 100 * (run.best / whole.best - 1),
                    "pruned": run.pruned,
                    "beyond": run.beyond,
                }
            )
            print(f"seed {seed} {arm:<10} {rows[arm][-1]}", flush=True)
    print(f"\n{'pruner':<10} {'epochs saved':>20} {'best loss worse by':>28} {'found the best':>15} {'pruned':>7}")
    for arm, found in rows.items():
        saved = np.array([row["epochs_saved"] for row in found])
        worse = np.array([row["worse_percent"] for row in found])
        same = int((worse < 1e-9).sum())
        pruned = float(np.mean([row["pruned"] for row in found]))
        print(
            f"{arm:<10} {saved.mean():>7.0%} ({saved.min():.0%} to {saved.max():.0%}) "
            f"{worse.mean():>9.1f} % ({worse.min():.1f} to {worse.max():.1f}) {same:>8} of {len(found)} {pruned:>7.1f}"
        )
    beyond = [row["beyond"] for row in rows["none"]]
    print(f"time beyond the trials' own, in-process: {np.median(beyond):.1%} (median of {len(beyond)} searches)")
    store("pruning", {"trials": trials, "epochs": epochs, "seeds": seeds, "arms": rows}, quick)


if __name__ == "__main__":
    main()
