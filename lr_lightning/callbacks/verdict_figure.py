"""The figure of a verdict: probe and validation loss, with the rate under them and the onset marked."""

from matplotlib.figure import Figure

from lr_lightning.diagnosis.history import History
from lr_lightning.diagnosis.verdict import Verdict

__all__ = ["draw"]

_VAL, _PROBE, _LR, _MARK = "#d1495b", "#2e6f95", "#5a5a5a", "#edae49"


def draw(history: History, verdict: Verdict) -> Figure:
    """Draw a run's losses over its epochs, without pyplot, so that no window and no global state is made.

    Args:
        history: At least one validation.
        verdict: The verdict on it.

    Returns:
        A figure of two panels.
    """
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    epochs = [p.epoch for p in history.points]
    val, probe = [p.val_loss for p in history.points], [p.probe_loss for p in history.points]
    marker = "o" if len(epochs) < 40 else None
    losses.plot(epochs, val, color=_VAL, marker=marker, ms=3, label="validation")
    losses.plot(epochs, probe, color=_PROBE, marker=marker, ms=3, label="probe (training examples)")
    if history.chance is not None:
        losses.axhline(history.chance, color="#999999", ls=":", lw=1, label="chance")
    if verdict.onset_epoch is not None:
        losses.axvline(verdict.onset_epoch, color=_MARK, lw=2, label=f"onset, epoch {verdict.onset_epoch:g}")
    positive = [v for v in (*val, *probe) if v > 0]
    if positive and len(positive) == len(val) + len(probe) and max(positive) > 20 * min(positive):
        losses.set_yscale("log")
    losses.set_ylabel("loss")
    losses.legend(frameon=False, fontsize=9)
    detail = f" ({verdict.detail})" if verdict.detail else ""
    losses.set_title(f"{verdict.label}{detail}", loc="left", fontsize=11)
    known = [(p.epoch, p.lr) for p in history.points if p.lr is not None]
    if known:
        rates.plot([e for e, _ in known], [lr for _, lr in known], color=_LR, marker=marker, ms=3)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch")
    for axes in (losses, rates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure
