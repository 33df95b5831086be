"""The picture of a range test."""

from typing import TYPE_CHECKING, Any

from lr_lightning.lr_finder.results import GridTest, RangeTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "draw_grid"]

_POINTS, _CURVE, _SUGGESTION, _BOUNDS = (
    "#9a9a9a",
    "#0072B2",
    "#D55E00",
    "#009E73",
)  # Okabe & Ito: told apart by everybody
_LABELS = {"loss": "training loss", "val_loss": "validation loss", "accuracy": "validation accuracy"}


def _new_figure() -> "Figure":
    """An empty figure, without a window.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError(
            "matplotlib, which draws pictures, is not installed: pip install 'lr-lightning[plot]'."
        ) from e
    return Figure(figsize=(8, 4.8), layout="constrained", dpi=120)


def draw(test: RangeTest, ax: "Axes | None" = None) -> "Figure":
    """Draw the points, the smoothed curve, the suggestion with its interval, and the bounds of a cyclical schedule.

    Args:
        test: What to draw.
        ax: Where; a new figure by default.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure: Any = _new_figure() if ax is None else ax.figure
    axes: Any = figure.add_subplot() if ax is None else ax
    for i, run in enumerate(test.runs):
        label = "recorded" if len(test.runs) == 1 else "each repeat"
        axes.plot(
            test.grid[: len(run)], run, ".", color=_POINTS, markersize=4, alpha=0.8, label=label if i == 0 else None
        )
    if len(test.smoothed):
        axes.plot(test.lrs[: len(test.smoothed)], test.smoothed, color=_CURVE, linewidth=2, label="smoothed")
    if test.mode == "exponential":
        axes.set_xscale("log")
    axes.set_xlim(test.grid[0], test.grid[-1])
    _limit(axes, test)
    _mark(axes, test)
    axes.set_xlabel("learning rate")
    axes.set_ylabel(_LABELS[test.metric])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_title(test), loc="left", fontsize=10, wrap=True)
    if ax is None:
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    else:
        axes.legend(loc="best", frameon=False, fontsize=9)
    return figure  # type: ignore[no-any-return]


def _title(test: RangeTest) -> str:
    when = f" at epoch {test.epoch}" if test.epoch else ""
    if test.suggestion is not None:
        return f"Range test{when}: {test.describe()}"
    return f"Range test{when}: no suggestion. {test.reason}"


def _mark(axes: Any, test: RangeTest) -> None:
    if test.base_lr is not None and test.max_lr is not None:
        for value, name, style in ((test.base_lr, "base_lr", ":"), (test.max_lr, "max_lr", "--")):
            axes.axvline(value, color=_BOUNDS, linestyle=style, linewidth=1.5, label=f"{name} {value:.2g}")
    if test.suggestion is None:
        return
    if test.interval is not None:
        axes.axvspan(*test.interval, color=_SUGGESTION, alpha=0.15, linewidth=0)
    axes.axvline(test.suggestion, color=_SUGGESTION, linewidth=2, label=f"suggestion {test.suggestion:.2g}")


def _limit(axes: Any, test: RangeTest) -> None:
    """Keep what diverged from flattening the rest: the axis ends a little beyond where the test began."""
    points = [value for run in test.runs for value in run]
    if test.metric == "accuracy" or not points:
        return
    low, start = min(points), max(max(run[: len(run) // 4 or 1]) for run in test.runs if run)
    room = (start - low) or abs(start) or 1.0
    axes.set_ylim(low - 0.05 * room, start + 0.35 * room)


def draw_grid(test: GridTest, ax: "Axes | None" = None) -> "Figure":
    """Draw the final value against the rate and, in a new figure, the training losses of every rate beside it.

    Args:
        test: What to draw.
        ax: Where to draw the former alone.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure: Any = _new_figure() if ax is None else ax.figure
    left, right = figure.subplots(1, 2) if ax is None else (ax, None)
    means, errors = test.losses, [2 * error for error in test.errors]
    left.errorbar(test.lrs, means, errors, fmt="o-", color=_CURVE, markersize=4, capsize=2, label="± 2 standard errors")
    gone = [lr for lr, mean in zip(test.lrs, means, strict=True) if mean != mean]
    left.plot(gone, [1.0] * len(gone), "x", color="#000000", transform=left.get_xaxis_transform(), clip_on=False)
    if test.suggestion is not None and test.interval is not None:
        left.axvspan(*test.interval, color=_SUGGESTION, alpha=0.15, linewidth=0)
        left.axvline(test.suggestion, color=_SUGGESTION, linewidth=2, label=f"best {test.suggestion:.2g}")
    if test.metric != "accuracy":
        low = min((mean for mean in means if mean == mean), default=0.0)
        top = max(test.start, low)
        left.set_ylim(low - 0.1 * (top - low or 1.0), top + 0.5 * (top - low or 1.0))  # what diverged lies outside
    left.set_xscale("log")
    left.set_xlabel("learning rate" + (" (x: diverged)" if gone else ""))
    left.set_ylabel(f"{_LABELS[test.metric]} after {test.num_steps} steps")
    left.spines[["top", "right"]].set_visible(False)
    left.legend(loc="best", frameon=False, fontsize=9)
    if right is not None:
        _draw_curves(figure, right, test)
        figure.suptitle(f"LR grid: {test.describe()}", x=0.01, ha="left", fontsize=10, wrap=True)
    return figure  # type: ignore[no-any-return]


def _draw_curves(figure: Any, axes: Any, test: GridTest) -> None:
    """Every rate's training loss; which rate it is, a colour from dark (low) to bright (high) says."""
    import matplotlib
    from matplotlib.colors import LogNorm

    colours = matplotlib.colormaps["cividis"]
    norm = LogNorm(test.lrs[0], test.lrs[-1])
    for lr, runs in zip(test.lrs, test.curves, strict=True):
        axes.plot(runs[0], color=colours(norm(lr)), linewidth=1)
    axes.set_ylim(min(min(run) for runs in test.curves for run in runs if run), 1.5 * test.start)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=axes, label="learning rate")
