"""Temperature scaling: how much of a loss is overconfidence. Pure functions of logits and labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scaling", "entropy", "fit_temperature", "scale_gap", "scaled_losses"]

Floats = NDArray[np.float64]
_RANGE = (-5.0, 5.0)  # of log T: beyond it every prediction is uniform or one-hot


@dataclass(frozen=True)
class Scaling:
    """The effect of one temperature on the gap.

    Attributes:
        temperature: T, by which the logits are divided; above 1 if the network is overconfident.
        val_loss: Validation loss at T.
        gap: Validation minus probe loss, both at T.
        noise: Standard error of ``gap``.
        overconfident: Whether T is above 1, the gap is gone (within its noise, or below a tenth of its former size),
            and the validation loss at T is below 90 % of chance. A T that makes every prediction uniform removes any
            gap.
    """

    temperature: float
    val_loss: float
    gap: float
    noise: float
    overconfident: bool


def scaled_losses(logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float) -> Floats:
    """Return the cross-entropy of each example at a temperature, in nats.

    Args:
        logits: Shape [N, classes].
        labels: Shape [N].
        temperature: T > 0.

    Returns:
        Losses, shape [N].
    """
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    losses: Floats = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
    return losses


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Find the temperature with the lowest mean cross-entropy.

    Source: Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks" (arXiv 1706.04599), section
    4.2. The loss is convex in 1 / T, so Newton's method finds the only minimum; a step that leaves the bracket becomes
    a bisection.

    Args:
        logits: Finite, shape [N, classes].
        labels: Shape [N].

    Returns:
        T between exp(-5) and exp(5); the lower end if every prediction is right.
    """
    scores = np.asarray(logits, np.float64)
    scores = scores - scores.max(axis=1, keepdims=True)
    right = scores[np.arange(len(labels)), labels]
    low, high = np.exp(-_RANGE[1]), np.exp(-_RANGE[0])

    def slopes(inverse: float) -> tuple[float, float]:
        weights = np.exp(scores * inverse)
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * scores).sum(axis=1)
        second = (weights * scores**2).sum(axis=1) - mean**2
        return float((mean - right).mean()), float(second.mean())

    for end, inward in ((low, -1.0), (high, 1.0)):  # the loss may fall beyond an end
        if slopes(end)[0] * inward <= 0:
            return float(1.0 / end)
    inverse = 1.0
    for _ in range(50):
        first, second = slopes(inverse)
        # The bracket narrows at every step.
        low, high = (inverse, high) if first < 0 else (low, inverse)
        step = inverse - first / second if second > 0 else np.inf
        new = step if low < step < high else float(np.sqrt(low * high))
        if abs(new - inverse) <= 1e-6 * inverse:
            break
        inverse = new
    return float(1.0 / inverse)


def scale_gap(
    val_logits: NDArray[np.floating],
    val_labels: NDArray[np.integer],
    probe_logits: NDArray[np.floating],
    probe_labels: NDArray[np.integer],
) -> Scaling | None:
    """Test whether temperature scaling would remove the gap between validation and probe loss.

    Each half of the validation examples is scaled by the temperature of the other half, so that no loss is that of the
    examples its temperature was fitted to. The probe is scaled by the temperature of all validation examples.

    Args:
        val_logits: Shape [N, classes].
        val_labels: Shape [N].
        probe_logits: Shape [M, classes].
        probe_labels: Shape [M].

    Returns:
        The effect; None for fewer than ten examples, or if a logit is not finite.
    """
    if min(len(val_labels), len(probe_labels)) < 10:
        return None
    if not (np.isfinite(val_logits).all() and np.isfinite(probe_logits).all()):
        return None
    temperature = fit_temperature(val_logits, val_labels)
    halves = (slice(0, None, 2), slice(1, None, 2))
    crossed = [
        scaled_losses(val_logits[one], val_labels[one], fit_temperature(val_logits[other], val_labels[other]))
        for one, other in (halves, halves[::-1])
    ]
    val, probe = np.concatenate(crossed), scaled_losses(probe_logits, probe_labels, temperature)
    before = _gap(scaled_losses(val_logits, val_labels, 1.0), scaled_losses(probe_logits, probe_labels, 1.0))
    gap = _gap(val, probe)
    noise = float(np.sqrt(val.var() / len(val) + probe.var() / len(probe)))
    gone = before > 2 * noise and gap <= max(2 * noise, 0.1 * before)
    knows = val.mean() < 0.9 * entropy(val_labels)
    return Scaling(temperature, float(val.mean()), gap, noise, bool(temperature > 1 and gone and knows))


def entropy(labels: NDArray[np.integer]) -> float:
    """Return the entropy of the classes' shares, in nats: the loss of a model that knows only these."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def _gap(val: Floats, probe: Floats) -> float:
    return float(val.mean() - probe.mean())
