"""How the table of `experiment=lr_effects` is written and drawn."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lr_lightning.diagnosis.effects import Claim, Row, Trial, matched_gap, matched_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_text", "csv_rows", "draw"]

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
    "healthy": "#3a7d44",
    "overfitting": "#d1495b",
    "underfitting": "#2e6f95",
    "collapsed": "#6d597a",
    "diverged": "#222222",
    "inconclusive": "#aaaaaa",
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
    return [_COLOURS[t.verdict.split(" ")[0]] for t in trials]


def _draw_speed(axes: Any, trials: Sequence[Trial]) -> None:
    budget = max(t.steps for t in trials)
    axes.scatter([t.lr for t in trials], [min(t.steps_to_target, budget) for t in trials], c=_colours(trials), s=22)
    late = [t.lr for t in trials if not math.isfinite(t.steps_to_target)]
    if late:
        axes.scatter(late, [budget] * len(late), marker="^", s=60, facecolors="none", edgecolors="#666666")
    axes.set_title("steps to the target (triangles: not reached)", loc="left", fontsize=10)
    used = {t.verdict.split(" ")[0] for t in trials}
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
