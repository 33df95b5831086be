"""Temperature scaling: how much of a loss is overconfidence. Pure functions of logits and labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Logits = NDArray[np.floating]
Labels = NDArray[np.integer]
_RANGE = (-5.0, 5.0)  # of log T: beyond it every prediction is uniform or one-hot


@dataclass(frozen=True)
class Scaling:
    """The effect of temperature scaling on the gap between the validation and the training loss.

    The training loss is that of the probe (see :mod:`~lr_lightning.diagnosis.history`).

    Attributes:
        temperature: T, by which the logits are divided, fitted to all validation examples.
        val_loss: Validation loss, each half of the examples scaled by the temperature of the other half.
        gap: ``val_loss`` minus the probe loss at T.
        noise: Standard error of ``gap``.
        overconfident: Whether scaling explains the gap: T is above 1; the unscaled gap is above 2 ``noise``; ``gap`` is
            at most 2 ``noise`` or a tenth of the unscaled gap; and ``val_loss`` is below 90 % of the loss by chance,
            because a T that makes every prediction uniform removes any gap.
    """

    temperature: float
    val_loss: float
    gap: float
    noise: float
    overconfident: bool


def scaled_losses(logits: Logits, labels: Labels, temperature: float) -> Floats:
    """Return the cross-entropy of each example at a temperature, in nats; shape [N], for logits [N, classes]."""
    scaled = np.asarray(logits, np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    losses: Floats = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
    return losses


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature between exp(-5) and exp(5) with the lowest mean cross-entropy.

    Source: Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks" (arXiv 1706.04599), section
    4.2. The loss is convex in 1 / T, so Newton's method finds the only minimum; a step that leaves the bracket becomes
    a bisection. The logits, shape [N, classes], must be finite.
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

    for end, inward in ((low, -1.0), (high, 1.0)):  # of 1 / T; the lowest loss may lie beyond an end
        if slopes(end)[0] * inward <= 0:
            return float(1.0 / end)
    inverse = 1.0
    for _ in range(50):
        first, second = slopes(inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)  # the bracket narrows at every step
        step = inverse - first / second if second > 0 else np.inf
        new = step if low < step < high else float(np.sqrt(low * high))
        if abs(new - inverse) <= 1e-6 * inverse:
            break
        inverse = new
    return float(1.0 / inverse)


def scale_gap(val_logits: Logits, val_labels: Labels, probe_logits: Logits, probe_labels: Labels) -> Scaling | None:
    """Test whether temperature scaling would remove the gap between validation and probe loss.

    Each half of the validation examples is scaled by the temperature of the other half, so that no temperature is
    applied to the examples that it was fitted to. The probe is scaled by the temperature of all validation examples.

    Returns:
        The effect; None for fewer than ten examples in a set, or if a logit is not finite.
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
    before = scaled_losses(val_logits, val_labels, 1.0).mean() - scaled_losses(probe_logits, probe_labels, 1.0).mean()
    gap = float(val.mean() - probe.mean())
    noise = float(np.sqrt(val.var() / len(val) + probe.var() / len(probe)))
    gone = before > 2 * noise and gap <= max(2 * noise, 0.1 * before)
    knows = val.mean() < 0.9 * entropy(val_labels)
    return Scaling(temperature, float(val.mean()), gap, noise, bool(temperature > 1 and gone and knows))


def entropy(labels: Labels) -> float:
    """Return the entropy of the classes' shares, in nats: the loss of a model that knows only these."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())
