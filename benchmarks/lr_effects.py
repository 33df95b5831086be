"""What a high and a low rate do, and which of the textbook's claims hold: the table of `experiment=lr_effects`, stored.

Run: ``python -m benchmarks.lr_effects [--quick]`` (about three minutes). small_cnn on digits, one thread: 11 constant
rates on a log grid from 1e-4 to 10, three seeds, 15 epochs. Each seed goes through all rates before the next one does.
The rates above and below the middle one are compared with it, by the ranks of all runs, two-sided, with Holm's
correction over all claims. What is counted in steps is the same in every run of this benchmark; what is counted in
seconds is not, and moves the adjusted p of the others with it.
"""

import argparse
import math
import tempfile
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.report import store
from benchmarks.trainings import ROOT
from lr_lightning.app.commands.lr_effects import run_study
from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.run.messages import quiet
from lr_lightning.app.schemas.search import StudyConfig
from lr_lightning.diagnosis.lr_claims import Claim, GridRun, claims


def plain(item: GridRun | Claim) -> dict[str, Any]:
    """Its values, without a curve; JSON knows no infinity, so what was never reached, or is not known, is null."""
    finite = {key: not isinstance(value, float) or math.isfinite(value) for key, value in asdict(item).items()}
    return {key: value if finite[key] else None for key, value in asdict(item).items() if key != "curve"}


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
    """Train the grid, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rates, one seed, three epochs, nothing stored")
    quick = parser.parse_args().quick
    prepare(ROOT)
    quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        words = ["experiment=lr_effects", f"output_root={folder}/outputs", f"tracking.root={folder}/mlruns"]
        words += ["trainer=cpu"]
        if quick:
            words += ["study.points=3", "study.seeds=[0]", "trainer.max_epochs=3"]
        config = load_config(ROOT, words)
        trials = run_study(config)
    node = config.study or StudyConfig()
    found = claims(trials, node.reference_lr())
    result = {
        "epochs": config.trainer.max_epochs,
        "reference": node.reference_lr(),
        "claims": [plain(claim) for claim in found],
        "trials": [plain(trial) for trial in trials],
    }
    print(table(result))
    store("lr_effects", result, quick)


if __name__ == "__main__":
    main()
