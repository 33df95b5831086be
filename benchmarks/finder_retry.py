"""What is it worth that LRFinder tests a wider range once, where its reading asks for one?

Run: ``python -m benchmarks.finder_retry [--quick]`` (about five minutes). For the quicker held-out problems of
``benchmarks.finder_held_out`` range tests of 100 steps are recorded over 1e-6..10 and 1e-5..1 and over the wider ranges
that ``retry=True`` would ask for, three seeds each. The regret is that of ``benchmarks.finder_regret``, against a dense
sweep of two seeds; no answer is charged that of 1e-3. The rule had been checked on these problems before; the factor of
ten was fixed before this was measured, and not varied.
"""

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.finder_held_out import HELD_OUT
from benchmarks.finder_problems import record
from benchmarks.finder_regret import QUICK, RANGES, grid_name, regret, regret_curve, until_stop
from benchmarks.report import store
from lr_lightning.lr_finder.results import RangeTest

SLOW = ("digits: depthwise CNN, Adam, 32", "digit patches: Transformer, AdamW, 32", "words: LSTM, NAdam, 32")
STEPS, SEEDS, FACTOR = 100, 3, 10.0

Range = tuple[float, float]


def ranges() -> list[Range]:
    """The first ranges, and every one that a second test may have."""
    wider = [each for low, high in RANGES for each in ((low, high * FACTOR), (low / FACTOR, high))]
    return list(dict.fromkeys([*RANGES, *wider]))


def search(sweeps: dict[str, Any], seed: int, first: Range) -> tuple[float | None, float | None, bool]:
    """The answer to the first test, that with a second one, and whether there was one."""

    def test(ends: Range) -> RangeTest:
        run = sweeps[grid_name(STEPS, *ends)][seed][0]
        return RangeTest(tuple(np.geomspace(*ends, STEPS).tolist()), (tuple(until_stop(run)),))

    found = test(first)
    wider = found.wider(FACTOR)
    if wider is None:
        return found.suggestion, found.suggestion, False
    low, high = wider  # the ends of a grid are exact, the product of one and the factor need not be
    near = min(ranges(), key=lambda ends: abs(np.log(ends[0] / low)) + abs(np.log(ends[1] / high)))
    return found.suggestion, test(near).suggestion, True


def main() -> None:
    """Record, read, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem, one seed, nothing stored")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    seeds = 1 if quick else SEEDS
    names = [name for name in HELD_OUT if (name in QUICK if quick else name not in SLOW)]
    grids = {grid_name(STEPS, *ends): np.geomspace(*ends, STEPS).tolist() for ends in ranges()}
    rows: dict[Range, list[list[float]]] = {ends: [] for ends in RANGES}
    for name in names:
        recorded = record(HELD_OUT[name], grids, range(seeds), range(1 if quick else 2))
        curve = regret_curve(recorded["dense"])
        for ends in RANGES:
            for seed in range(seeds):
                one, two, again = search(recorded["sweeps"], seed, ends)
                rows[ends].append([one is None, two is None, regret(curve, one), regret(curve, two), again])
        print(f"recorded {name}", flush=True)
    keys = ("no_answer_once", "no_answer_with_retry", "regret_once", "regret_with_retry", "retried")
    result: dict[str, Any] = {"problems": names, "seeds": seeds}
    for (low, high), each in rows.items():
        values = np.asarray(each, dtype=np.float64)
        result[f"{low:g}..{high:g}"] = {
            **{key: float(mean) for key, mean in zip(keys, values.mean(0), strict=True)},
            "worst_once": float(values[:, 2].max()),
            "worst_with_retry": float(values[:, 3].max()),
        }
        print(f"{low:g}..{high:g}: {result[f'{low:g}..{high:g}']}")
    store("finder_retry", result, quick)


if __name__ == "__main__":
    main()
