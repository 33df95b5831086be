"""The measurements of a run at its validations: the input of a verdict.

The probe is a fixed sample of the training examples, measured as the validation examples are: without augmentation and
dropout. Its loss against the validation loss shows overfitting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_lightning.errors import ArgumentError


@dataclass(frozen=True)
class Point:
    """The measurements of one validation.

    Attributes:
        epoch: Epochs trained so far.
        step: Optimizer steps made so far.
        val_loss: Mean loss of the validation examples.
        probe_loss: Mean loss of the probe's examples.
        lr: Learning rate of the last step before the validation.
        val_acc, probe_acc: Share of the examples that are predicted right; None if unknown.
        val_losses, probe_losses: Losses of single examples, shape [K], the same examples at each validation; None if
            unknown.
        val_size, probe_size: Number of examples in the set, of which these losses may cover a part.
        cooled_loss: Validation loss that a cooldown would reach from here, as CooldownPreview measures it; None if
            unknown.
    """

    epoch: float
    step: int
    val_loss: float
    probe_loss: float
    lr: float | None = None
    val_acc: float | None = None
    probe_acc: float | None = None
    val_losses: NDArray[np.float32] | None = None
    probe_losses: NDArray[np.float32] | None = None
    val_size: int | None = None
    probe_size: int | None = None
    cooled_loss: float | None = None


@dataclass(frozen=True)
class History:
    """All validations of a run.

    Attributes:
        points: The validations, oldest first.
        chance: Loss of a model that knows only the shares of the classes, such as log(number of classes), or the mean
            of a regression's targets.
        start: Training loss of the initial weights.
        total_steps: Optimizer steps of the whole run; None if unknown.
        diverged: Which value was not finite, and when, if that ended the run. It is shown to the user.
        overconfident: Whether temperature scaling would remove the gap between the last two losses.
        peak_lr: The schedule's own peak; None: the highest learning rate of the validations stands for it.
        regression: Whether ``chance`` is the loss of a constant guess, because the targets are no classes.
    """

    points: tuple[Point, ...]
    chance: float | None = None
    start: float | None = None
    total_steps: int | None = None
    diverged: str | None = None
    overconfident: bool = False
    peak_lr: float | None = None
    regression: bool = False

    @staticmethod
    def of_curves(
        val_loss: Sequence[float],
        probe_loss: Sequence[float],
        *,
        lr: Sequence[float] | None = None,
        val_acc: Sequence[float] | None = None,
        probe_acc: Sequence[float] | None = None,
        epochs: Sequence[float] | None = None,
        steps: Sequence[int] | None = None,
        chance: float | None = None,
        start: float | None = None,
    ) -> "History":
        """Make a history from recorded curves that have one value for each validation.

        Args:
            val_loss: Validation losses, oldest first.
            probe_loss: Losses of a training subset in eval mode. Running training losses serve less well.
            lr: Learning rates.
            val_acc: Validation accuracies in 0..1.
            probe_acc: Accuracies on the training subset in 0..1.
            epochs: Epochs trained before each validation. Default: 1, 2, 3, ...
            steps: Optimizer steps made before each validation. Default: 1, 2, 3, ...
            chance: Loss of a model that knows nothing, such as log(number of classes).
            start: Training loss of the initial weights.

        Raises:
            ArgumentError: The curves differ in length.

        Example:
            >>> len(History.of_curves([2.0, 1.0], [2.0, 0.5]).points)
            2
        """
        count = len(val_loss)
        optional = {"lr": lr, "val_acc": val_acc, "probe_acc": probe_acc}
        for name, curve in {"probe_loss": probe_loss, **optional, "epochs": epochs, "steps": steps}.items():
            if curve is not None and len(curve) != count:
                raise ArgumentError(f"{name} must have one value for each of the {count} of val_loss, got {len(curve)}")
        points = []
        for i in range(count):
            epoch, step = i + 1 if epochs is None else epochs[i], i + 1 if steps is None else steps[i]
            known: dict[str, Any] = {name: float(curve[i]) for name, curve in optional.items() if curve is not None}
            losses = float(val_loss[i]), float(probe_loss[i])
            points.append(Point(float(epoch), int(step), *losses, **known))
        return History(tuple(points), chance=chance, start=start)
