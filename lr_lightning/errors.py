"""Every public exception, in one tree: ``except LRLightningError`` catches whatever this package raises on purpose."""

from typing import Any


class LRLightningError(Exception):
    """Root of the exceptions of this package."""


class ArgumentError(LRLightningError, ValueError):
    """An argument has a value that cannot be used. The text names the argument, the value and the remedy.

    Args:
        problem: What is wrong: the value and the remedy. With a ``name``, the rest of the sentence that it begins.
        name: The argument. A caller that knows it by another name, such as a config key, can put that in front.

    Example:
        >>> str(ArgumentError("must be > 0, got -1", name="peak"))
        'peak must be > 0, got -1'
    """

    def __init__(self, problem: str, name: str = "") -> None:
        super().__init__(f"{name} {problem}" if name else problem)
        self.problem, self.name = problem, name


class TotalStepsUnknown(LRLightningError, ValueError):
    """A schedule needs the number of steps in the run, and neither Lightning nor an argument gives it.

    Attributes:
        schedule: The schedule.
    """

    def __init__(self, schedule: object) -> None:
        super().__init__(
            f"LRSchedule: {schedule!r} needs the number of steps, and nothing says it here (a loader without a length, "
            "or only max_time). Give LRSchedule(total_steps=...) or Trainer(max_steps=...), or use a schedule that "
            "needs none, such as Constant() or InverseSqrt(...)."
        )
        self.schedule = schedule


class DurationError(LRLightningError, ValueError):
    """Durations do not fit into the steps there are; the message shows the arithmetic."""


class Diverged(LRLightningError, RuntimeError):
    """The loss is no longer finite.

    Attributes:
        metric: Name of the metric that is not finite.
        value: Its value.
        step: The optimizer step, counted from 0, whose loss it was.
        lr: The learning rate of the first param group at that step; None if no step used one yet.
        outcome: The results of the run so far; None unless the app sets it.
    """

    outcome: Any = None

    def __init__(self, metric: str, value: float, step: int, lr: float | None) -> None:
        self.metric, self.value, self.step, self.lr = metric, value, step, lr
        super().__init__(
            f"{self.headline}. Try a lower learning rate (a third is a good first step), a warmup, or gradient "
            "clipping with Trainer(gradient_clip_val=1)."
        )

    @property
    def headline(self) -> str:
        """What happened, where and at which learning rate, without advice and without a full stop."""
        at = f"{self.metric} became {self.value} at step {self.step}"
        return at if self.lr is None else f"{at}, where the learning rate was {self.lr:.6g}"


class DataError(LRLightningError, ValueError):
    """The data, or a setting of the data, cannot be used; the message names the config key and the remedy."""


class TrackingError(LRLightningError, ValueError):
    """The store, the run or the output directory cannot be used as asked. Trying again will not help."""


class NotInStore(TrackingError):
    """The store has no run or experiment with this id."""


class RunInUse(TrackingError):
    """A live process holds the run or its output directory."""


class StoreUnavailable(LRLightningError, RuntimeError):
    """The store does not answer, or is busy. The same call may succeed later."""


class Rejected(LRLightningError, RuntimeError):
    """The store refuses the content of a batch; sending it again unchanged will not help."""


class CompareError(LRLightningError, ValueError):
    """Bad input, or nothing to compare. Its text is shown without a traceback.

    Args:
        text: What is wrong, and the remedy.
        option: Of the command line, where one is to blame; it is no part of the text, since a sweep gave none.
    """

    def __init__(self, text: str, option: str = "") -> None:
        super().__init__(text)
        self.option = option

    @property
    def on_the_command_line(self) -> str:
        """The text, with the option first."""
        return f"--{self.option}: {self}" if self.option else str(self)


class ConfigError(LRLightningError, ValueError):
    """Bad input. Its text names the whole key, the value and the remedy; it is shown without a traceback."""


class RunFailed(LRLightningError, RuntimeError):
    """A run that had begun cannot go on, through no fault of the input's; its text says why, and what to do."""


class SpaceError(LRLightningError, ValueError):
    """A space that cannot be searched. Its text names the key, the value and the remedy."""
