"""`experiment=lr_effects`: train a grid of learning rates and seeds, and tabulate what the learning rate does."""

import csv
import io
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lr_lightning._plotting import GREY, PROBE, VALIDATION, VERDICT_COLOURS, YELLOW, new_figure, style_axes
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

_MEASURES = {
    "steps_to_target": "steps to target",
    "device_seconds_to_target": "seconds to target",
    "spikes": "spikes/1000",
    "grad_ratio": "grad p95/p50",
    "val_loss": "val loss",
    "probe_loss": "probe loss",
    "gap": "gap",
    "gap_matched": "gap, matched",
}
"""The fields of a row that are a mean and half the width of its confidence interval, and their headings."""
_WITH_DETAIL = (Label.UNDERFITTING, Label.OVERFITTING)  # the details of other verdicts hold numbers, not kinds


def run_study(config: Config) -> list[Trial]:
    """Train every learning rate with every seed, then write and log the table, the claims and the figure.

    Each seed trains all learning rates before the next seed does. A busy minute of the machine then slows several
    learning rates, and not all runs of one, where it would look like an effect of that learning rate.

    The files go to a new folder below ``config.output_root``; ``trials.csv`` grows with every run. In MLflow each run
    has the tags ``sweep`` and ``trial``, and the table is another run with the same ``sweep``.

    Returns:
        The runs, in the order in which they were trained.

    Raises:
        ConfigError: If the input is bad; the first run finds it before it starts.
        Interrupted: On SIGTERM, Ctrl-C or SIGHUP; ``trials.csv`` holds the runs so far.
    """
    node = config.study or StudyConfig()
    grid = [(lr, seed) for seed in node.seeds for lr in node.all_lrs()]
    name = f"{datetime.now():%Y%m%d-%H%M%S}-lr_effects-{config.data.name}-{secrets.token_hex(2)}"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"lr_effects: {len(node.all_lrs())} learning rates × {len(node.seeds)} seeds on {config.data.name}, the others "
        f"against {node.reference_lr():g}, {name}"
    )
    trials: list[Trial] = []
    began = time.monotonic()
    folder = output_root(config.output_root) / name
    for number, (lr, seed) in enumerate(grid, 1):
        outcome = _train(config, lr, seed, {"study": "lr_effects", "sweep": name, "trial": str(number - 1)})
        folder.mkdir(exist_ok=True)  # only after a first run: bad input leaves no folder
        trials.append(_trial(lr, seed, outcome))
        write_atomically(folder / "trials.csv", _trials_csv(trials))
        left = (time.monotonic() - began) / number * (len(grid) - number)
        console.print(f"[{number}/{len(grid)}] {_line(trials[-1])}, about {left:.0f} s left")
    if trials:
        _conclude(config, node, folder, trials, console)
    return trials


def _train(config: Config, lr: float, seed: int, tags: dict[str, str]) -> RunOutcome:
    """Train one run of the grid; a diverged run is a result too."""
    own = deepcopy(config)
    own.study, own.seed, own.optimizer.lr = None, seed, lr
    own.trainer.progress = "none"
    own.tracking.tags |= tags
    try:
        return train(own, report=False)
    except Diverged as e:
        outcome: RunOutcome = e.outcome or RunOutcome()
        return outcome


def _trial(lr: float, seed: int, outcome: RunOutcome) -> Trial:
    summary, verdict, history = outcome.summary, outcome.verdict, outcome.history
    points = history.points if history is not None else ()
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
        steps_to_target=summary.get("steps_to_target", math.inf),
        device_seconds_to_target=summary.get("seconds_to_target", math.inf) * (devices if devices > 0 else 1.0),
        val_loss=points[-1].val_loss if points else math.nan,
        probe_loss=points[-1].probe_loss if points else math.nan,
        curve=tuple((p.probe_loss, p.val_loss) for p in points),
    )


def _line(trial: Trial) -> str:
    steps = trial.steps_to_target
    reached = f"target at step {steps:.0f}" if steps < math.inf else "target not reached"
    return (
        f"lr {trial.lr:g} seed {trial.seed}: validation loss {trial.val_loss:.4g}, {trial.verdict}, {reached}, "
        f"{trial.device_seconds:.1f} s"
    )


def _conclude(config: Config, node: StudyConfig, folder: Path, trials: list[Trial], console: Console) -> None:
    """Write the table, the claims and the figure, print them, and log them as a run."""
    target = config.callbacks.cost.target if config.callbacks.cost is not None else None
    rows, tested = table(trials, node.level), claims(trials, node.reference_lr())
    origin = "the middle of the grid" if node.reference is None else "study.reference"
    text = as_text(rows, tested, trials, node.level, str(target), (node.reference_lr(), origin))
    write_atomically(folder / "table.csv", csv_rows(rows))
    write_atomically(folder / "table.txt", text)
    files = ["trials.csv", "table.csv", "table.txt"]
    try:
        draw(trials, rows).savefig(folder / "lr_effects.png")
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


def as_text(
    rows: Sequence[Row],
    claims: Sequence[Claim],
    trials: Sequence[Trial],
    level: float,
    target: str,
    reference: tuple[float, str],
) -> str:
    """Return the table and the claims as text.

    Args:
        rows: One for each learning rate.
        claims: The tested claims.
        trials: All runs.
        level: The level of the confidence intervals.
        target: The target that measures the speed.
        reference: The learning rate that the others were compared with, and its origin.
    """
    seeds = max(row.runs for row in rows)
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
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
    notes = [
        f"Mean ± {level:.0%} confidence interval (Student's t) over up to {seeds} seeds; a dash: unknown. "
        "No mean contains diverged runs, and no mean of steps or seconds contains runs that missed the target.",
        f"'matched': at a probe loss of {matched_level(trials):.4g}, which every run that reached the target reached.",
    ]
    return "\n".join([*lines, "", *notes, "", *_claim_lines(claims, trials, *reference), ""])


def _claim_lines(claims: Sequence[Claim], trials: Sequence[Trial], reference: float, origin: str) -> list[str]:
    ours = [t for t in trials if t.lr == reference]
    lost = sum(t.diverged for t in ours)
    lines = [
        f"Which claims hold for this model: the learning rates above and below {reference:g} against it ({origin}: "
        "fixed before any of these runs, because the best one among them would owe some of its lead to luck). Each "
        "line gives the share of the pairs of runs for which the claim is true, the p of a two-sided permutation test "
        f"of the ranks, and p with Holm's correction over all {len(claims)} claims, which decides.",
        *([f"{lost} of the {len(ours)} runs at {reference:g} diverged: give a lower study.reference."] if lost else []),
    ]
    for claim in claims:
        numbers = (
            f"{claim.share:.0%} of pairs, p = {claim.p:.2g}, adjusted {claim.adjusted:.2g}"
            if math.isfinite(claim.share)
            else "no runs to compare"
        )
        compared = f"{claim.runs[0]} against {claim.runs[1]} runs"
        lines.append(f"- {claim.text}: {claim.outcome} ({claim.measure}; {numbers}, {compared})")
    return lines


def _mean_and_half(mean: float, half: float) -> str:
    if not math.isfinite(mean):
        return "–"
    return f"{mean:.3g} ± {half:.2g}" if math.isfinite(half) else f"{mean:.3g}"


def csv_rows(rows: Sequence[Row]) -> str:
    """Return the table as CSV, with a column for each number: ``gap`` and ``gap_ci``, and so on."""
    names = [f.name for f in fields(Row)]
    head = [column for name in names for column in ([name, f"{name}_ci"] if name in _MEASURES else [name])]
    body = []
    for row in rows:
        verdicts = "; ".join(f"{label}: {count}" for label, count in row.verdicts)
        values = {name: verdicts if name == "verdicts" else getattr(row, name) for name in names}
        body.append([cell for name in names for cell in (values[name] if name in _MEASURES else [values[name]])])
    return _csv(head, body)


def _trials_csv(trials: list[Trial]) -> str:
    names = [f.name for f in fields(Trial) if f.name not in ("label", "curve")]
    return _csv(names, ([getattr(trial, name) for name in names] for trial in trials))


def _csv(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([head, *body])
    return out.getvalue()


def draw(trials: Sequence[Trial], rows: Sequence[Row]) -> "Figure":
    """Draw four panels over the learning rate: speed, stability, losses, and the gap at the end and matched.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(11, 7.5, dpi=120)
    (speed, stability), (losses, gaps) = figure.subplots(2, 2, sharex=True)
    _draw_speed(speed, trials)
    _draw_stability(stability, trials)
    _draw_losses(losses, trials, rows)
    _draw_gaps(gaps, trials, rows)
    for axes in (speed, stability, losses, gaps):
        axes.set_xscale("log")
        style_axes(axes, grid=True)
    for axes in (losses, gaps):
        axes.set_xlabel("learning rate")
        axes.legend(frameon=False, fontsize=9)
    return figure


def _colours(trials: Sequence[Trial]) -> list[str]:
    return [VERDICT_COLOURS[t.label] for t in trials]


def _draw_speed(axes: Any, trials: Sequence[Trial]) -> None:
    budget = max(t.steps for t in trials)
    axes.scatter([t.lr for t in trials], [min(t.steps_to_target, budget) for t in trials], c=_colours(trials), s=22)
    late = [t.lr for t in trials if not math.isfinite(t.steps_to_target)]
    if late:
        axes.scatter(late, [budget] * len(late), marker="^", s=60, facecolors="none", edgecolors=GREY)
    axes.set_title("steps to the target (triangles: not reached)", loc="left", fontsize=10)
    used = {t.label for t in trials}
    for label in (label for label in VERDICT_COLOURS if label in used):
        axes.scatter([], [], color=VERDICT_COLOURS[label], s=22, label=label)
    axes.legend(frameon=False, fontsize=8)


def _draw_stability(axes: Any, trials: Sequence[Trial]) -> None:
    worst = max([t.instability for t in trials if not t.diverged], default=0.0) + 1
    spikes = [worst if t.diverged else t.instability for t in trials]
    axes.scatter([t.lr for t in trials], spikes, c=_colours(trials), s=22)
    axes.set_title("spikes in 1000 steps (top: diverged)", loc="left", fontsize=10)


def _draw_losses(axes: Any, trials: Sequence[Trial], rows: Sequence[Row]) -> None:
    lrs = [t.lr for t in trials]
    for name, colour, label in (("val_loss", VALIDATION, "validation"), ("probe_loss", PROBE, "probe")):
        _band(axes, [(r.lr, getattr(r, name)[0], math.nan) for r in rows], colour, label)
        axes.scatter(lrs, [math.nan if t.diverged else getattr(t, name) for t in trials], s=6, color=colour, alpha=0.5)
    axes.set_yscale("log")
    axes.set_title("loss at the end of the budget", loc="left", fontsize=10)


def _draw_gaps(axes: Any, trials: Sequence[Trial], rows: Sequence[Row]) -> None:
    lrs, level = [t.lr for t in trials], matched_level(trials)
    _band(axes, [(r.lr, *r.gap) for r in rows], VALIDATION, "at the end")
    _band(axes, [(r.lr, *r.gap_matched) for r in rows], YELLOW, f"at probe loss {level:.3g}")
    axes.scatter(lrs, [math.nan if t.diverged else t.gap for t in trials], s=6, color=VALIDATION, alpha=0.5)
    axes.scatter(lrs, [matched_gap(t, level) for t in trials], s=6, color=YELLOW, alpha=0.5)
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set_title("gap: validation − probe loss", loc="left", fontsize=10)


def _band(axes: Any, points: Sequence[tuple[float, float, float]], colour: str, label: str) -> None:
    """Draw the known means over the learning rate, with half an interval's width below and above them."""
    known = [(lr, mean, half if math.isfinite(half) else 0.0) for lr, mean, half in points if math.isfinite(mean)]
    lrs = [lr for lr, _, _ in known]
    axes.plot(lrs, [mean for _, mean, _ in known], color=colour, marker="o", ms=4, label=label)
    low, high = [mean - half for _, mean, half in known], [mean + half for _, mean, half in known]
    axes.fill_between(lrs, low, high, color=colour, alpha=0.15, lw=0)
