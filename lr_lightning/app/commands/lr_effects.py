"""`experiment=lr_effects`: train a grid of learning rates and seeds, and tabulate what the learning rate does."""

import math
import secrets
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lr_lightning._plotting import GREY, PROBE, VALIDATION, VERDICT_COLOURS, YELLOW, new_figure, style_axes
from lr_lightning.app.config import Config
from lr_lightning.app.run.checkpoints import make_output_root
from lr_lightning.app.run.record import RunOutcome, sweep_record
from lr_lightning.app.run.train import train
from lr_lightning.app.schemas.search import LREffectsConfig
from lr_lightning.diagnosis import Label
from lr_lightning.diagnosis.lr_claims import Claim, Finding, GridRun, Row, claims, matched_gap, matched_level, table
from lr_lightning.errors import Diverged
from lr_lightning.lr_finder.results import write_csv
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import LR_EFFECTS_TAG

__all__ = ["results_as_text", "run_grid", "train_one"]

_MEASURES = {  # the fields of a row that are a mean and half the width of its confidence interval, and their headings
    "steps_to_target": "steps to target",
    "device_seconds_to_target": "seconds to target",
    "spikes": "spikes/1000",
    "grad_ratio": "grad p95/p50",
    "val_loss": "val loss",
    "probe_loss": "probe loss",
    "gap": "gap",
    "gap_matched": "gap, matched",
}
_WITH_DETAIL = (Label.UNDERFITTING, Label.OVERFITTING)  # the details of other verdicts hold numbers, not kinds


def run_grid(config: Config) -> list[GridRun]:
    """Train every learning rate with every seed, then write and log the table, the claims and the figure.

    Each seed trains all learning rates before the next seed does. A busy minute of the machine then slows several
    learning rates, and not all runs of one, where it would look like an effect of that learning rate.

    The first run finds bad input before it starts. The files go to a new folder below ``config.output_root``;
    ``trials.csv`` grows with every run. In MLflow the runs and the record of their table share the tag ``sweep``.
    """
    node = config.lr_effects or LREffectsConfig()
    lrs, reference = node.all_lrs(), node.reference_lr()
    grid = [(lr, seed) for seed in node.seeds for lr in lrs]
    name = f"{datetime.now():%Y%m%d-%H%M%S}-lr_effects-{config.data.name}-{secrets.token_hex(2)}"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"lr_effects: {len(lrs)} learning rates × {len(node.seeds)} seeds on {config.data.name}, the others against "
        f"{reference:g}, {name}"
    )
    trials: list[GridRun] = []
    began = time.monotonic()
    folder = make_output_root(config.output_root) / name
    for number, (lr, seed) in enumerate(grid, 1):
        trial = train_one(config, lr, seed, {LR_EFFECTS_TAG: "lr_effects", "sweep": name, "trial": str(number - 1)})
        folder.mkdir(exist_ok=True)  # only after a first run: bad input leaves no folder
        trials.append(trial)
        kept = [f.name for f in fields(GridRun) if f.name not in ("label", "curve")]
        cells = [[getattr(each, key) for key in kept] for each in trials]
        write_atomically(folder / "trials.csv", write_csv(kept, cells))
        left = (time.monotonic() - began) / number * (len(grid) - number)
        steps = trial.steps_to_target
        reached = f"target at step {steps:.0f}" if steps < math.inf else "target not reached"
        console.print(
            f"[{number}/{len(grid)}] lr {lr:g} seed {seed}: validation loss {trial.val_loss:.4g}, {trial.verdict}, "
            f"{reached}, {trial.device_seconds:.1f} s, about {left:.0f} s left"
        )
    if trials:
        _conclude(config, node, folder, trials, console)
    return trials


def train_one(config: Config, lr: float, seed: int, tags: dict[str, str]) -> GridRun:
    """Train one run of the grid, and measure it; a diverged run is a result too."""
    own = deepcopy(config)
    own.lr_effects, own.seed, own.optimizer.lr = None, seed, lr
    own.trainer.progress = "none"
    own.tracking.tags |= tags
    try:
        outcome = train(own, report=False)
    except Diverged as e:
        outcome = e.outcome or RunOutcome()
    return _trial(lr, seed, outcome)


def _trial(lr: float, seed: int, outcome: RunOutcome) -> GridRun:
    summary, verdict, history = outcome.summary, outcome.verdict, outcome.history
    points = history.points if history is not None else ()
    devices = summary.get("device_seconds", math.nan) / summary.get("train_seconds", math.nan)
    label = verdict.label if verdict is not None else Label.DIVERGED
    median = summary.get("grad_norm_p50", math.nan)
    return GridRun(
        lr=lr,
        seed=seed,
        label=label,
        verdict=verdict.headline if verdict is not None and label in _WITH_DETAIL else str(label),
        diverged=label is Label.DIVERGED,
        steps=int(summary.get("steps", 0)),
        device_seconds=summary.get("device_seconds", math.nan),
        spikes=int(summary.get("spikes", 0)),
        grad_ratio=summary.get("grad_norm_p95", math.nan) / median if median > 0 else math.nan,
        steps_to_target=summary.get("steps_to_target", math.inf),
        device_seconds_to_target=summary.get("seconds_to_target", math.inf) * (devices if devices > 0 else 1.0),
        val_loss=points[-1].val_loss if points else math.nan,
        probe_loss=points[-1].probe_loss if points else math.nan,
        curve=tuple((p.probe_loss, p.val_loss) for p in points),
    )


def _conclude(config: Config, node: LREffectsConfig, folder: Path, trials: list[GridRun], console: Console) -> None:
    """Write the table, the claims and the figure, print them, and log them as a run."""
    target = config.callbacks.cost.target if config.callbacks.cost is not None else None
    rows, tested = table(trials, node.level), claims(trials, node.reference_lr())
    origin = "the middle of the grid" if node.reference is None else "lr_effects.reference"
    text = results_as_text(rows, tested, trials, node.level, str(target), (node.reference_lr(), origin))
    named = [_cells(row) for row in rows]
    write_atomically(folder / "table.csv", write_csv(list(named[0]), [each.values() for each in named]))
    write_atomically(folder / "table.txt", text)
    files = ["trials.csv", "table.csv", "table.txt"]
    try:
        _draw(trials, rows).savefig(folder / "lr_effects.png")
        files.append("lr_effects.png")
    except ImportError:
        console.print("no figure: it needs matplotlib, pip install 'lr-lightning[plot]'")
    console.print(text)
    with sweep_record(config, folder / "record", folder.name, "lr_effects") as logger:
        for file in files:
            logger.log_artifact(folder / file)
        logger.log_note(f"```\n{text}\n```")
        held = sum(claim.outcome is Finding.HELD for claim in tested)
        logger.log_summary({"runs": len(trials), "claims": len(tested), "claims_held": held})
    console.print(f"output {folder}: {', '.join(files)}")


def results_as_text(
    rows: Sequence[Row],
    claims: Sequence[Claim],
    trials: Sequence[GridRun],
    level: float,
    target: str,
    reference: tuple[float, str],
) -> str:
    """Return the table and the claims as text; ``reference`` is the learning rate of comparison and its origin."""
    head = ["lr", "runs", "diverged", f"reached {target}", *_MEASURES.values(), "verdicts"]
    body = [
        [
            f"{row.lr:g}",
            str(row.runs),
            str(row.diverged),
            f"{row.reached}/{row.runs}",
            *(_mean_and_half(*getattr(row, name)) for name in _MEASURES),
            ", ".join(f"{count}× {label}" for label, count in row.verdicts),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *body)]
    notes = [
        f"Mean ± {level:.0%} confidence interval (Student's t) over up to {max(row.runs for row in rows)} seeds; a "
        "dash: unknown. No mean contains diverged runs, and none of steps or seconds contains runs that missed the "
        "target.",
        f"'matched': at a probe loss of {matched_level(trials):.4g}, which every run that reached the target reached.",
    ]
    lr, origin = reference
    ours = [t for t in trials if t.lr == lr]
    lost = sum(t.diverged for t in ours)
    found = [
        f"Which claims hold for this model: the learning rates above and below {lr:g} against it ({origin}: "
        "fixed before any of these runs, because the best one among them would owe some of its lead to luck). Each "
        "line gives the share of the pairs of runs for which the claim is true, the p of a two-sided permutation test "
        f"of the ranks, and p with Holm's correction over all {len(claims)} claims, which decides.",
        *([f"{lost} of the {len(ours)} runs at {lr:g} diverged: give a lower lr_effects.reference."] if lost else []),
    ]
    for claim in claims:
        numbers = "no runs to compare"
        if math.isfinite(claim.share):
            numbers = f"{claim.share:.0%} of pairs, p = {claim.p:.2g}, adjusted {claim.adjusted:.2g}"
        compared = f"{claim.runs[0]} against {claim.runs[1]} runs"
        found.append(f"- {claim.text}: {claim.outcome} ({claim.measure}; {numbers}, {compared})")
    return "\n".join([*lines, "", *notes, "", *found, ""])


def _mean_and_half(mean: float, half: float) -> str:
    text = f"{mean:.3g} ± {half:.2g}" if math.isfinite(half) else f"{mean:.3g}"
    return text if math.isfinite(mean) else "–"


def _cells(row: Row) -> dict[str, object]:
    """Return a row with a cell for each number: ``gap`` and ``gap_ci``, and so on."""
    cells: dict[str, object] = {}
    for name in (f.name for f in fields(Row)):
        value = getattr(row, name)
        cells |= {name: value[0], f"{name}_ci": value[1]} if name in _MEASURES else {name: value}
    return cells | {"verdicts": "; ".join(f"{label}: {count}" for label, count in row.verdicts)}


def _draw(trials: Sequence[GridRun], rows: Sequence[Row]) -> Any:
    """Draw four panels over the learning rate: speed, stability, losses, and the gap at the end and matched."""
    figure = new_figure(11, 7.5, dpi=120)
    (speed, stability), (losses, gaps) = figure.subplots(2, 2, sharex=True)
    lrs, level = [t.lr for t in trials], matched_level(trials)
    coloured: dict[str, Any] = {"c": [VERDICT_COLOURS[t.label] for t in trials], "s": 22}

    speed.set_title("steps to the target (triangles: not reached)", loc="left", fontsize=10)
    budget = max(t.steps for t in trials)
    speed.scatter(lrs, [min(t.steps_to_target, budget) for t in trials], **coloured)
    late = [t.lr for t in trials if not math.isfinite(t.steps_to_target)]
    speed.scatter(late, [budget] * len(late), marker="^", s=60, facecolors="none", edgecolors=GREY)
    for label in [label for label in VERDICT_COLOURS if any(t.label == label for t in trials)]:
        speed.scatter([], [], color=VERDICT_COLOURS[label], s=22, label=label)
    speed.legend(frameon=False, fontsize=8)

    stability.set_title("spikes in 1000 steps (top: diverged)", loc="left", fontsize=10)
    worst = max([t.instability for t in trials if not t.diverged], default=0.0) + 1
    stability.scatter(lrs, [min(t.instability, worst) for t in trials], **coloured)

    losses.set_title("loss at the end of the budget", loc="left", fontsize=10)
    losses.set_yscale("log")
    for name, colour, label in (("val_loss", VALIDATION, "validation"), ("probe_loss", PROBE, "probe")):
        _draw_means(losses, [(r.lr, getattr(r, name)[0], 0.0) for r in rows], colour, label)
        values = [math.nan if t.diverged else getattr(t, name) for t in trials]
        losses.scatter(lrs, values, s=6, color=colour, alpha=0.5)

    gaps.set_title("gap: validation − probe loss", loc="left", fontsize=10)
    _draw_means(gaps, [(r.lr, *r.gap) for r in rows], VALIDATION, "at the end")
    _draw_means(gaps, [(r.lr, *r.gap_matched) for r in rows], YELLOW, f"at probe loss {level:.3g}")
    gaps.scatter(lrs, [math.nan if t.diverged else t.gap for t in trials], s=6, color=VALIDATION, alpha=0.5)
    gaps.scatter(lrs, [matched_gap(t, level) for t in trials], s=6, color=YELLOW, alpha=0.5)
    gaps.axhline(0, color=GREY, lw=0.8)

    for axes in (speed, stability, losses, gaps):
        axes.set_xscale("log")
        style_axes(axes, grid=True)
    for axes in (losses, gaps):
        axes.set_xlabel("learning rate")
        axes.legend(frameon=False, fontsize=9)
    return figure


def _draw_means(axes: Any, points: Sequence[tuple[float, float, float]], colour: str, label: str) -> None:
    """Draw the known means over the learning rate, with half an interval's width below and above them."""
    lrs, means, halves = np.array([p for p in points if math.isfinite(p[1])]).reshape(-1, 3).T
    halves = np.nan_to_num(halves, posinf=0.0)  # of one run nothing is known
    axes.plot(lrs, means, color=colour, marker="o", ms=4, label=label)
    axes.fill_between(lrs, means - halves, means + halves, color=colour, alpha=0.15, lw=0)
