"""What to try next: at most three lines that follow from a verdict's numbers. Pure, and never "stop"."""

from collections.abc import Callable, Mapping

__all__ = ["advise", "can_train_longer", "sufficient_epochs"]

Numbers = Mapping[str, float]

_MOST = 3
_COOLED = 0.2  # of the peak rate: a last rate below it has been cooled down
_OVER = 0.98  # of the planned steps: a run that has come so far is at its end


def advise(label: str, detail: str, numbers: Numbers) -> tuple[str, ...]:
    """The lines of advice for a verdict.

    Args:
        label: The verdict's label.
        detail: Its detail.
        numbers: Its evidence.

    Returns:
        Up to three lines; none where the numbers support none.
    """
    return tuple(_RULES[label](detail, numbers))[:_MOST]


def sufficient_epochs(label: str, detail: str, numbers: Numbers) -> float | None:
    """At which epoch a schedule had better end, where the advice is to shorten the run; None where it is not."""
    if label != "overfitting" or detail in ("receding", "memorised") or "epochs" not in numbers or _high_rate(numbers):
        return None
    length = _length(numbers)
    return length if length < numbers["epochs"] else None


def can_train_longer(label: str, detail: str, numbers: Numbers) -> bool:
    """Whether the advice leaves room for more epochs with the same settings."""
    if label == "overfitting":
        return detail == "receding"
    if label == "underfitting":
        return detail != "limited" and not _hardly_learns(numbers)
    return label == "healthy" or (label == "inconclusive" and not detail.endswith("unstable"))


def _diverged(detail: str, n: Numbers) -> list[str]:
    lines = []
    if "peak_lr" in n:
        rates = ", ".join(f"{n['peak_lr'] / 10**k:.3g}" for k in (1, 2, 3))
        lines.append(f"Lower the rate, which went up to {n['peak_lr']:.3g}, by tens until the loss falls: {rates}, ...")
    else:
        lines.append("Lower the rate by tens until the loss falls.")
    if n.get("learnt_before", 0.0):
        lines.append("It had learnt before: a longer warm-up, or gradient clipping, may hold it at a rate as high.")
    return lines


def _overfitting(detail: str, n: Numbers) -> list[str]:
    length = _length(n)
    lines = []
    if detail == "receding":
        lines.append("The validation loss is falling again: lengthen the run before you shorten it.")
    if detail == "memorised":
        lines.append(
            "The validation is no better than chance: check that the labels are right and fit the validation's."
        )
    if _high_rate(n) and detail != "memorised":
        lines.append(
            f"Cool down: the rate is still {_share(n):.0%} of its peak. Let it fall to 0 by about epoch {length:.0f}."
        )
    elif sufficient_epochs("overfitting", detail, n) is not None:
        lines.append(
            f"Shorten: {'nothing was gained' if detail == 'gap' else 'the validation loss rose'} after epoch "
            f"{_onset(n):.0f} of {n['epochs']:.0f}; a schedule that ends at about {length:.0f} is enough."
        )
    lines.append("Regularise: more or augmented data, dropout, weight decay.")
    if n.get("overconfident"):
        lines.append("Scale the logits by one temperature, or smooth the labels: the gap is overconfidence.")
    return lines


def _underfitting(detail: str, n: Numbers) -> list[str]:
    share = _of_chance(n)
    lines = []
    if detail == "limited":
        if _high_rate(n):
            lines.append(
                f"Cool down: the rate is still {_share(n):.0%} of its peak, which may be what keeps the loss up."
            )
        lines.append(
            f"Use a larger network or regularise less: the probe loss has stopped at {n['probe_loss']:.3g}"
            + (f", {share:.0%} of chance." if share else ".")
        )
        lines.append("If the labels are noisy or the classes overlap, this may be as low as it can get.")
        return lines
    if not detail:
        level = f"{n['probe_loss']:.3g}" + (f", {share:.0%} of chance" if share else "")
        if share > 0.5 and "peak_lr" in n:
            lines.append(f"Raise the rate from {n['peak_lr']:.3g} to {3 * n['peak_lr']:.3g}: little was learnt.")
        lines.append(_longer(n, f"the probe loss is high ({level}), and too noisy to tell whether it still falls"))
        return lines
    if _hardly_learns(n):
        rates = ", ".join(f"{n['peak_lr'] * 10**k:.3g}" for k in (1, 2, 3))
        return [
            f"Raise the rate, which went up to {n['peak_lr']:.3g}, by tens until the loss falls quickly: {rates}, ..."
        ]
    if share > 0.5 and "peak_lr" in n and n["probe_fall"] > 5 * n.get("probe_jitter", 0.0):
        lines.append(
            f"Raise the rate from {n['peak_lr']:.3g} to {3 * n['peak_lr']:.3g}: the loss falls slowly and calmly."
        )
    lines.append(
        _longer(n, f"the probe loss fell by {n['probe_fall']:.2g} since epoch {n['probe_fall_since_epoch']:.0f}")
    )
    return lines


def _collapsed(detail: str, n: Numbers) -> list[str]:
    rate = f" from {n['peak_lr']:.3g} to {n['peak_lr'] / 10:.3g}" if "peak_lr" in n else ""
    return [
        f"Lower the rate{rate}, and warm up: nothing was learnt, and a rate that is too high kills a network's units.",
        "If that changes nothing, look at the network: its size, its initialisation, its last layer.",
    ]


def _healthy(detail: str, n: Numbers) -> list[str]:
    lines = []
    if _high_rate(n):
        lines.append(f"Cool down: the rate is still {_share(n):.0%} of its peak. Let it fall to 0 at the end.")
    if n["val_fall"] > max(2 * n["val_fall_noise"], 0.05 * n["val_loss"]) and not lines:
        lines.append(_longer(n, f"the validation loss still fell by {n['val_fall']:.2g} in the last quarter"))
    return lines


def _inconclusive(detail: str, n: Numbers) -> list[str]:
    if detail.endswith("are needed"):
        return ["Train longer, or validate more often."]
    if detail.endswith("unstable") and "peak_lr" in n:
        return [f"Lower the rate from {n['peak_lr']:.3g} to {n['peak_lr'] / 3:.3g}, or cool it down: the loss swings."]
    if detail.startswith("neither"):
        return ["Give the loss of a model that knows nothing: OverfittingMonitor(chance=...)."]
    return []


def _longer(n: Numbers, why: str) -> str:
    if n.get("planned", 1.0) < _OVER:
        return f"Go on to the end of the run, which is {n['planned']:.0%} done: {why}."
    return f"Lengthen the run, to {2 * n['epochs']:.0f} epochs: {why}."


def _onset(n: Numbers) -> float:
    return n.get("onset_epoch", n.get("best_epoch", 0.0))


def _length(n: Numbers) -> float:
    # A rate that falls to 0 over twice the time learns, in sum, as much as one that stayed at its peak.
    return max(1.0, min(2 * _onset(n), n["epochs"]))


def _of_chance(n: Numbers) -> float:
    return n["probe_loss"] / n["chance_loss"] if n.get("chance_loss") else 0.0


def _hardly_learns(n: Numbers) -> bool:
    return _of_chance(n) > 0.95 and "peak_lr" in n


def _share(n: Numbers) -> float:
    return n["lr"] / n["peak_lr"]


def _high_rate(n: Numbers) -> bool:
    return n.get("peak_lr", 0.0) > 0 and _share(n) > _COOLED


_RULES: dict[str, Callable[[str, Numbers], list[str]]] = {
    "diverged": _diverged,
    "overfitting": _overfitting,
    "underfitting": _underfitting,
    "collapsed": _collapsed,
    "healthy": _healthy,
    "inconclusive": _inconclusive,
}
