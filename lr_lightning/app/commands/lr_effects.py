"""`experiment=lr_effects`: a grid of rates and seeds, trained one after another, and the table of what the rate did."""

import csv
import io
import math
import secrets
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lr_lightning.app.config import Config
from lr_lightning.app.run.output import output_root
from lr_lightning.app.run.record import RunOutcome, sweep_record
from lr_lightning.app.run.train import train
from lr_lightning.app.schemas.search import StudyConfig
from lr_lightning.diagnosis import Label
from lr_lightning.diagnosis.lr_effects import Claim, Finding, Row, Trial, claims, matched_gap, matched_level, table
from lr_lightning.errors import Diverged
from lr_lightning.tracking.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_text", "csv_rows", "draw", "run_study"]


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
    grid = [(lr, seed) for seed in node.seeds for lr in node.all_lrs()]
    name = f"{datetime.now():%Y%m%d-%H%M%S}-lr_effects-{config.data.name}-{secrets.token_hex(2)}"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"lr_effects: {len(node.all_lrs())} rates × {len(node.seeds)} seeds on {config.data.name}, the others against "
        f"{node.reference_lr():g}, {name}"
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


def _train(config: Config, lr: float, seed: int, sweep: str, number: int) -> RunOutcome:
    """One run of the grid; one that diverges is a result."""
    own = deepcopy(config)
    own.study, own.seed, own.optimizer.lr = None, seed, lr
    own.trainer.progress = "none"
    own.tracking.tags = {**own.tracking.tags, "study": "lr_effects", "sweep": sweep, "trial": str(number - 1)}
    try:
        return train(own, report=False)
    except Diverged as e:
        outcome: RunOutcome = e.outcome or RunOutcome()
        return outcome


_WITH_DETAIL = (Label.UNDERFITTING, Label.OVERFITTING)  # the details of other verdicts hold numbers, not kinds


def _trial(lr: float, seed: int, outcome: RunOutcome) -> Trial:
    summary, verdict, history = outcome.summary, outcome.verdict, outcome.history
    points = history.points if history is not None else ()
    steps_to_target = summary.get("steps_to_target", math.inf)
    devices = summary.get("device_seconds", math.nan) / summary.get("train_seconds", math.nan)
    label = verdict.label if verdict is not None else Label.DIVERGED
    median = summary.get("grad_norm_p50", math.nan)
    return Trial(
        lr=lr,
        seed=seed,
        label=label,
        verdict=verdict.headline if verdict is not None and label in _WITH_DETAIL else str(label),
        diverged=label is Label.DIVERGED,
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
    folder = output_root(config.output_root) / name
    folder.mkdir()
    return folder


def _conclude(config: Config, node: StudyConfig, folder: Path, trials: list[Trial], console: Console) -> None:
    target = config.callbacks.cost.target if config.callbacks.cost is not None else None
    rows, found = table(trials, node.level), claims(trials, node.reference_lr())
    why = "the middle of the grid" if node.reference is None else "study.reference"
    text = as_text(rows, found, trials, node.level, str(target), (node.reference_lr(), why))
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
        logger.log_note(f"```\n{text}\n```")
        held = sum(claim.outcome is Finding.HELD for claim in found)
        logger.log_summary({"runs": len(trials), "claims": len(found), "claims_held": held})
    console.print(f"output {folder}: {', '.join(files)}")


def _trials_csv(trials: list[Trial]) -> str:
    names = [f.name for f in fields(Trial) if f.name not in ("label", "curve")]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(trial, name) for name in names] for trial in trials])
    return out.getvalue()


# --- How the table of `experiment=lr_effects` is written and drawn.

_PAIRS = {
    "steps_to_target": "steps to target",
    "device_seconds_to_target": "seconds to target",
    "spikes": "spikes/1000",
    "grad_ratio": "grad p95/p50",
    "val_loss": "val loss",
    "probe_loss": "probe loss",
    "gap": "gap",
    "gap_matched": "gap, matched",
}


def as_text(
    rows: Sequence[Row],
    claims: Sequence[Claim],
    trials: Sequence[Trial],
    level: float,
    target: str,
    reference: tuple[float, str],
) -> str:
    """The table and the claims, to be read.

    Args:
        rows: One for each rate.
        claims: What became of each.
        trials: All runs.
        level: Of the confidence intervals.
        target: By which the speed was measured.
        reference: The rate that the others were compared with, and whence it comes.
    """
    seeds = max(row.runs for row in rows)
    head = ["lr", "runs", "diverged", f"reached {target}", *_PAIRS.values(), "verdicts"]
    body = [
        [
            f"{row.lr:g}",
            str(row.runs),
            str(row.diverged),
            f"{row.reached}/{row.runs}",
            *(_pair(*getattr(row, name)) for name in _PAIRS),
            ", ".join(f"{count}× {label}" for label, count in row.verdicts),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
    matched = matched_level(trials)
    notes = [
        f"Mean ± {level:.0%} confidence interval (Student's) over up to {seeds} seeds; a dash where it is not known. "
        "Runs that diverged are in no mean, and runs that missed the target in no mean of what it took.",
        f"'matched': where the probe loss came down to {matched:.4g}, as every run did that reached the target.",
    ]
    return "\n".join([*lines, "", *notes, "", *_claims(claims, trials, *reference), ""])


def _claims(claims: Sequence[Claim], trials: Sequence[Trial], reference: float, why: str) -> list[str]:
    ours = [t for t in trials if t.lr == reference]
    lost = sum(t.diverged for t in ours)
    lines = [
        f"Which claims held on this model: the rates above and below {reference:g} against it ({why}: fixed before any "
        "of these runs, for the best rate among them would owe some of its lead to luck). In so many of the pairs of "
        "runs; p of a two-sided permutation test of the ranks, and the same adjusted by Holm's correction over all "
        f"{len(claims)} claims, which decides.",
        *([f"{lost} of the {len(ours)} runs at {reference:g} diverged: give a lower study.reference."] if lost else []),
    ]
    for claim in claims:
        numbers = (
            f"{claim.share:.0%} of pairs, p = {claim.p:.2g}, adjusted {claim.adjusted:.2g}"
            if math.isfinite(claim.share)
            else "no runs to compare"
        )
        lines.append(
            f"- {claim.text}: {claim.outcome} ({claim.measure}; {numbers}, "
            f"{claim.runs[0]} against {claim.runs[1]} runs)"
        )
    return lines


def _pair(mean: float, half: float) -> str:
    if not math.isfinite(mean):
        return "–"
    return f"{mean:.3g} ± {half:.2g}" if math.isfinite(half) else f"{mean:.3g}"


def csv_rows(rows: Sequence[Row]) -> str:
    """The table with a column for each number: ``gap`` and ``gap_ci``, and so on."""
    names: list[str] = []
    for f in fields(Row):
        names += [f.name, f"{f.name}_ci"] if f.name in _PAIRS else [f.name]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells: list[object] = []
        for f in fields(Row):
            value = getattr(row, f.name)
            if f.name in _PAIRS:
                cells += value
            else:
                cells.append(
                    "; ".join(f"{label}: {count}" for label, count in value) if f.name == "verdicts" else value
                )
        writer.writerow(cells)
    return out.getvalue()


_COLOURS = {
    Label.HEALTHY: "#3a7d44",
    Label.OVERFITTING: "#d1495b",
    Label.UNDERFITTING: "#2e6f95",
    Label.COLLAPSED: "#6d597a",
    Label.DIVERGED: "#222222",
    Label.INCONCLUSIVE: "#aaaaaa",
}


def draw(trials: Sequence[Trial], rows: Sequence[Row]) -> "Figure":
    """Four panels over the rate: speed, stability, losses, and the gap at the end and at matched probe loss.

    Raises:
        ImportError: There is no matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    (speed, stability), (losses, gaps) = figure.subplots(2, 2, sharex=True)
    _draw_speed(speed, trials)
    _draw_stability(stability, trials)
    _draw_losses(losses, trials, rows)
    _draw_gaps(gaps, trials, rows)
    for axes in (speed, stability, losses, gaps):
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for axes in (losses, gaps):
        axes.set_xlabel("learning rate")
        axes.legend(frameon=False, fontsize=9)
    return figure


def _colours(trials: Sequence[Trial]) -> list[str]:
    return [_COLOURS[t.label] for t in trials]


def _draw_speed(axes: Any, trials: Sequence[Trial]) -> None:
    budget = max(t.steps for t in trials)
    axes.scatter([t.lr for t in trials], [min(t.steps_to_target, budget) for t in trials], c=_colours(trials), s=22)
    late = [t.lr for t in trials if not math.isfinite(t.steps_to_target)]
    if late:
        axes.scatter(late, [budget] * len(late), marker="^", s=60, facecolors="none", edgecolors="#666666")
    axes.set_title("steps to the target (triangles: not reached)", loc="left", fontsize=10)
    used = {t.label for t in trials}
    for label in (label for label in _COLOURS if label in used):
        axes.scatter([], [], color=_COLOURS[label], s=22, label=label)
    axes.legend(frameon=False, fontsize=8)


def _draw_stability(axes: Any, trials: Sequence[Trial]) -> None:
    worst = max([t.instability for t in trials if not t.diverged], default=0.0) + 1
    spikes = [worst if t.diverged else t.instability for t in trials]
    axes.scatter([t.lr for t in trials], spikes, c=_colours(trials), s=22)
    axes.set_title("spikes in 1000 steps (top: diverged)", loc="left", fontsize=10)


def _draw_losses(axes: Any, trials: Sequence[Trial], rows: Sequence[Row]) -> None:
    lrs = [t.lr for t in trials]
    for name, colour, label in (("val_loss", "#d1495b", "validation"), ("probe_loss", "#2e6f95", "probe")):
        means = [(r.lr, getattr(r, name)[0], math.nan) for r in rows]
        _band(axes, means, colour, label)
        axes.scatter(lrs, [math.nan if t.diverged else getattr(t, name) for t in trials], s=6, color=colour, alpha=0.5)
    axes.set_yscale("log")
    axes.set_title("loss at the end of the budget", loc="left", fontsize=10)


def _draw_gaps(axes: Any, trials: Sequence[Trial], rows: Sequence[Row]) -> None:
    lrs, level = [t.lr for t in trials], matched_level(trials)
    at_end, matched = "#d1495b", "#edae49"
    _band(axes, [(r.lr, *r.gap) for r in rows], at_end, "at the end")
    _band(axes, [(r.lr, *r.gap_matched) for r in rows], matched, f"at probe loss {level:.3g}")
    axes.scatter(lrs, [math.nan if t.diverged else t.gap for t in trials], s=6, color=at_end, alpha=0.5)
    axes.scatter(lrs, [matched_gap(t, level) for t in trials], s=6, color=matched, alpha=0.5)
    axes.axhline(0, color="#999999", lw=0.8)
    axes.set_title("gap: validation − probe loss", loc="left", fontsize=10)


def _band(axes: Any, points: Sequence[tuple[float, float, float]], colour: str, label: str) -> None:
    """Means over the rate, those that are known, with their intervals' half widths around them."""
    known = [point for point in points if math.isfinite(point[1])]
    x, mean = [k[0] for k in known], [k[1] for k in known]
    half = [k[2] if math.isfinite(k[2]) else 0.0 for k in known]
    axes.plot(x, mean, color=colour, marker="o", ms=4, label=label)
    low, high = [m - h for m, h in zip(mean, half, strict=True)], [m + h for m, h in zip(mean, half, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
