"""Every public exception, in one tree: ``except LRLightningError`` catches all errors that this package raises.

Each is also a ValueError (bad input) or a RuntimeError (a failure during the run)::

    LRLightningError
    ├── ArgumentError, TotalStepsUnknown, DurationError, UsageError
    ├── Diverged
    ├── DataError
    ├── TrackingError (NotInStore, RunInUse), StoreUnavailable, Rejected
    └── of the app: ConfigError (SpaceError), RunFailed, CompareError
"""

from typing import Any


class LRLightningError(Exception):
    """Base class of all exceptions of this package."""


class ArgumentError(LRLightningError, ValueError):
    """An argument has a value that cannot be used. The text names the argument, the value and the remedy.

    Args:
        problem: What is wrong, with the value and the remedy. With a ``name``, the rest of a sentence that starts
            with the name.
        name: The argument. A caller that uses another name, such as a config key, can put that in front of ``problem``.

    Example:
        >>> str(ArgumentError("must be > 0, got -1", name="factor"))
        'factor must be > 0, got -1'
    """

    def __init__(self, problem: str, name: str = "") -> None:
        super().__init__(f"{name} {problem}" if name else problem)
        self.problem, self.name = problem, name


class TotalStepsUnknown(LRLightningError, ValueError):
    """A ``schedule`` needs the number of steps in the run, and neither Lightning nor an argument gives it."""

    def __init__(self, schedule: object) -> None:
        super().__init__(
            f"LRSchedule: {schedule!r} needs the number of steps, and nothing says it here (a loader without a length, "
            "or only max_time). Give LRSchedule(total_steps=...) or Trainer(max_steps=...), or use a schedule that "
            "needs none, such as Constant() or InverseSqrt(...)."
        )
        self.schedule = schedule


class DurationError(LRLightningError, ValueError):
    """Durations do not fit into the steps of the run. The text shows the arithmetic."""


class UsageError(LRLightningError, RuntimeError):
    """A method was called at a time when it cannot be used."""


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
            f"{self.headline}. Try a tenth of the learning rate, a warmup, or gradient "
            "clipping with Trainer(gradient_clip_val=1)."
        )

    @property
    def headline(self) -> str:
        """What happened, where and at which learning rate, without advice and without a full stop."""
        at = f"{self.metric} became {self.value} at step {self.step}"
        return at if self.lr is None else f"{at}, where the learning rate was {self.lr:.4g}"


class DataError(LRLightningError, ValueError):
    """The data, or a setting of the data, cannot be used. The text names the config key and the remedy."""


class TrackingError(LRLightningError, ValueError):
    """The store, the run or the output directory cannot be used as requested. Trying again does not help."""


class NotInStore(TrackingError):
    """The store has no run or experiment with this id."""


class RunInUse(TrackingError):
    """A live process holds the run or its output directory."""


class StoreUnavailable(LRLightningError, RuntimeError):
    """The store does not answer or is busy. The same call may succeed later."""


class Rejected(LRLightningError, RuntimeError):
    """The store refuses the content of a batch. Sending the same content again does not help."""


class CompareError(LRLightningError, ValueError):
    """A comparison of runs has bad input, or nothing to compare. The app shows the text without a traceback.

    Args:
        text: What is wrong, and the remedy.
        option: The command-line option to blame, if any. It is not part of the text, as a sweep has no such option.
    """

    def __init__(self, text: str, option: str = "") -> None:
        super().__init__(text)
        self.option = option

    @property
    def on_the_command_line(self) -> str:
        """The text, with the option first."""
        return f"--{self.option}: {self}" if self.option else str(self)


class ConfigError(LRLightningError, ValueError):
    """A config is wrong. The text names the whole key, the value and the remedy; the app shows no traceback."""


class RunFailed(LRLightningError, RuntimeError):
    """A run failed after its start although its input was good. The text gives the reason and the remedy."""


class SpaceError(ConfigError):
    """A space cannot be searched. The text names the key, the value and the remedy."""
