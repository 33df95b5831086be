"""`experiment=lr_effects`: a grid of rates and seeds, trained one after another, and the table of what the rate did."""

import csv
import io
import math
import secrets
import time
from copy import deepcopy
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from rich.console import Console

from lr_lightning.app.config import Config
from lr_lightning.app.lr_effects_report import as_text, csv_rows, draw
from lr_lightning.app.output import output_root
from lr_lightning.app.record import sweep_record
from lr_lightning.app.schemas.study import StudyConfig, rates, reference
from lr_lightning.app.summary import Outcome
from lr_lightning.app.train import train
from lr_lightning.callbacks.diverged import Diverged
from lr_lightning.diagnosis.effects import Trial, claims, table
from lr_lightning.tracking.files import write_atomically

__all__ = ["run_study"]


def run_study(config: Config) -> list[Trial]:
    """Train every rate with every seed; then write the table, the claims and the figure, and log them as a run.

    Each seed goes through all rates before the next one does: a minute in which the machine is busy falls on several
    rates, not on all runs of one, whose time would then look like an effect of the rate.

    All lies in a folder of its own below ``config.output_root``; ``trials.csv`` grows with every run. In MLflow each
    run has the tags ``sweep`` and ``trial``, and the table is a run of its own with the same ``sweep``.

    Returns:
        The runs, in the order in which they were made.

    Raises:
        ConfigError: If the input is bad; found in the first run, before it starts.
        Interrupted: On SIGTERM or Ctrl-C: the runs so far are in ``trials.csv``.
    """
    node = config.study or StudyConfig()
    grid = [(lr, seed) for seed in node.seeds for lr in rates(node)]
    name = f"{datetime.now():%Y%m%d-%H%M%S}-lr_effects-{config.data.name}-{secrets.token_hex(2)}"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"lr_effects: {len(rates(node))} rates × {len(node.seeds)} seeds on {config.data.name}, the others against "
        f"{reference(node):g}, {name}"
    )
    trials: list[Trial] = []
    began = time.monotonic()
    folder: Path | None = None
    for number, (lr, seed) in enumerate(grid, 1):
        outcome = _train(config, lr, seed, name, number)
        folder = folder or _folder(config, name)
        trials.append(_trial(lr, seed, outcome))
        write_atomically(folder / "trials.csv", _trials_csv(trials))
        left = (time.monotonic() - began) / number * (len(grid) - number)
        console.print(_line(number, len(grid), trials[-1], left))
    if folder is not None:
        _conclude(config, node, folder, trials, console)
    return trials


def _train(config: Config, lr: float, seed: int, sweep: str, number: int) -> Outcome:
    """One run of the grid; one that diverges is a result."""
    own = deepcopy(config)
    own.study, own.seed, own.optimizer.lr = None, seed, lr
    own.trainer.progress = "none"
    own.tracking.tags = {**own.tracking.tags, "study": "lr_effects", "sweep": sweep, "trial": str(number - 1)}
    try:
        result = train(own, report=False)
    except Diverged as e:
        outcome: Outcome = e.outcome or Outcome()
        return outcome
    return Outcome(result.summary, result.history, result.verdict)


def _trial(lr: float, seed: int, outcome: Outcome) -> Trial:
    summary, verdict, history = outcome.summary, outcome.verdict, outcome.history
    points = history.points if history is not None else ()
    steps_to_target = summary.get("steps_to_target", math.inf)
    devices = summary.get("device_seconds", math.nan) / summary.get("train_seconds", math.nan)
    label = verdict.label if verdict is not None else "diverged"
    detail = verdict.detail if verdict is not None and label in ("underfitting", "overfitting") else ""
    median = summary.get("grad_norm_p50", math.nan)
    return Trial(
        lr=lr,
        seed=seed,
        verdict=f"{label} ({detail})" if detail else label,
        diverged=label == "diverged",
        steps=int(summary.get("steps", 0)),
        device_seconds=summary.get("device_seconds", math.nan),
        spikes=int(summary.get("spikes", 0)),
        grad_ratio=summary.get("grad_norm_p95", math.nan) / median if median > 0 else math.nan,
        steps_to_target=steps_to_target,
        device_seconds_to_target=summary.get("seconds_to_target", math.inf) * (devices if devices > 0 else 1.0),
        val_loss=points[-1].val_loss if points else math.nan,
        probe_loss=points[-1].probe_loss if points else math.nan,
        curve=tuple((p.probe_loss, p.val_loss) for p in points),
    )


def _line(number: int, count: int, trial: Trial, left: float) -> str:
    reached = (
        f"target at step {trial.steps_to_target:.0f}" if trial.steps_to_target < math.inf else "target not reached"
    )
    return (
        f"[{number}/{count}] lr {trial.lr:g} seed {trial.seed}: validation loss {trial.val_loss:.4g}, "
        f"{trial.verdict}, {reached}, {trial.device_seconds:.1f} s, about {left:.0f} s left"
    )


def _folder(config: Config, name: str) -> Path:
    folder = output_root(config) / name
    folder.mkdir()
    return folder


def _conclude(config: Config, node: StudyConfig, folder: Path, trials: list[Trial], console: Console) -> None:
    target = config.callbacks.cost.target if config.callbacks.cost is not None else None
    rows, found = table(trials, node.level), claims(trials, reference(node))
    why = "the middle of the grid" if node.reference is None else "study.reference"
    text = as_text(rows, found, trials, node.level, str(target), (reference(node), why))
    write_atomically(folder / "table.csv", csv_rows(rows))
    write_atomically(folder / "table.txt", text)
    files = ["trials.csv", "table.csv", "table.txt"]
    try:
        figure = draw(trials, rows)
        figure.savefig(folder / "lr_effects.png", dpi=120)
        files.append("lr_effects.png")
    except ImportError:
        console.print("no figure: it needs matplotlib, pip install 'lr-lightning[plot]'")
    console.print(text)
    with sweep_record(config, folder / "record", folder.name, "lr_effects") as logger:
        for file in files:
            logger.log_artifact(folder / file)
        logger.set_tags({"mlflow.note.content": f"```\n{text}\n```"})
        held = sum(claim.outcome == "held" for claim in found)
        logger.log_summary({"runs": len(trials), "claims": len(found), "claims_held": held})
    console.print(f"output {folder}: {', '.join(files)}")


def _trials_csv(trials: list[Trial]) -> str:
    names = [f.name for f in fields(Trial) if f.name != "curve"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(trial, name) for name in names] for trial in trials])
    return out.getvalue()
