"""The error of a run whose loss is no longer finite. Light to import."""

from typing import Any


class Diverged(RuntimeError):
    """The loss is no longer finite.

    Attributes:
        metric: Name of the metric that is not finite.
        value: What it was.
        step: The optimizer step, counted from 0, whose loss it was.
        lr: The rate of the first param group used at that step, or None where none was used yet.
        outcome: What the run had come to, for who catches the error; None unless the app sets it.
    """

    outcome: Any = None

    def __init__(self, metric: str, value: float, step: int, lr: float | None) -> None:
        self.metric, self.value, self.step, self.lr = metric, value, step, lr
        at = f"{metric} became {value} at step {step}"
        advice = "Try a lower optimizer.lr (a third is a good first step), a warm-up, or trainer.gradient_clip_val=1."
        super().__init__(
            f"{at}, where the learning rate was {lr:.6g}. {advice}" if lr is not None else f"{at}. {advice}"
        )
