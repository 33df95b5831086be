"""Schedules of one piece, in closed form. In the formulas, t is the step and T the number of steps."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from lr_lightning._checks import check_number
from lr_lightning.errors import ArgumentError, DurationError
from lr_lightning.schedules.base import Schedule, blend, ramp
from lr_lightning.schedules.clock import Clock, DurationLike, is_share, parse_duration

__all__ = [
    "REX",
    "Constant",
    "Cosine",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "MultiStep",
    "OneMinusSqrt",
    "Polynomial",
    "Step",
]


@dataclass(frozen=True)
class Constant(Schedule):
    """The same factor at every step. Formula: ``value``, >= 0.

    Example:
        >>> Constant().factors(3)
        [1.0, 1.0, 1.0]
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value)

    needs_total = False

    def _factor(self, step: int, clock: Clock) -> float:
        return float(self.value)

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``constant 1``."""
        return f"constant {self.value:g}"


@dataclass(frozen=True)
class _Decay(Schedule):
    """From ``start`` at t = 0 to ``end`` at t = T, exact at both."""

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        check_number("start", self.start)
        check_number("end", self.end)

    needs_total = True

    @abstractmethod
    def _between(self, step: int, total: int) -> float:
        """Return the factor for 0 < step < total."""

    def _factor(self, step: int, clock: Clock) -> float:
        total = clock.need_total(type(self).__name__)
        if step >= total:
            return float(self.end)
        if step == 0:
            return float(self.start)
        return self._between(step, total)

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``cosine 1 to 0 over 1000 steps``."""
        name = type(self).__name__
        return f"{name.lower()} {self.start:g} to {self.end:g} over {clock.need_total(name)} steps"

    def _with_floor(self, ratio: float) -> Self:
        return replace(self, start=ratio) if self.start < self.end else replace(self, end=ratio)


@dataclass(frozen=True)
class Linear(_Decay):
    """A straight line. Down to zero it is the best supported default.

    Formula: ``end + (start - end) * (T - t) / T``, with ``start`` and ``end`` >= 0. Source: Defazio et al. 2023, "When,
    why and how much?" (arXiv 2310.07831), section 3; Bergsma et al. 2025, "Straight to zero" (arXiv 2502.15938).

    Example:
        >>> Linear().factors(4)
        [1.0, 0.75, 0.5, 0.25]
    """

    def _between(self, step: int, total: int) -> float:
        return blend(self.start, self.end, (total - step) / total)


@dataclass(frozen=True)
class Cosine(_Decay):
    """Half a period of a cosine.

    Formula: ``end + (start - end) * (1 + cos(pi * t / T)) / 2``, with ``start`` and ``end`` >= 0. Source: Loshchilov &
    Hutter 2017, "SGDR" (arXiv 1608.03983), equation 5, without restarts.

    Example:
        >>> [round(factor, 3) for factor in Cosine().factors(4)]
        [1.0, 0.854, 0.5, 0.146]
    """

    def _between(self, step: int, total: int) -> float:
        return blend(self.start, self.end, (1.0 + math.cos(math.pi * step / total)) / 2.0)


@dataclass(frozen=True)
class Polynomial(_Decay):
    """A power of the share of steps that is left.

    Formula: ``end + (start - end) * (1 - t / T) ** power``, with ``start`` and ``end`` >= 0 and ``power`` > 0 (1 is
    linear). Source: Liu et al. 2015, "ParseNet" (arXiv 1506.04579), section 4 ("poly").

    Example:
        >>> Polynomial(power=2).factors(4)
        [1.0, 0.5625, 0.25, 0.0625]
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("power", self.power, above=True)

    def _between(self, step: int, total: int) -> float:
        return blend(self.start, self.end, float((1 - step / total) ** self.power))


@dataclass(frozen=True)
class OneMinusSqrt(_Decay):
    """Fast at first, then slow: the best cooldown after a constant learning rate in the source's comparison.

    Formula: ``end + (start - end) * (1 - sqrt(t / T))``, with ``start`` and ``end`` >= 0. Source: Hägele et al. 2024,
    "Scaling laws and compute-optimal training beyond fixed training durations" (arXiv 2405.18392), section 3, "1-sqrt".

    Example:
        >>> OneMinusSqrt().factors(4)[:2]
        [1.0, 0.5]
    """

    def _between(self, step: int, total: int) -> float:
        return blend(self.start, self.end, 1.0 - math.sqrt(step / total))


@dataclass(frozen=True)
class REX(_Decay):
    """Reflected exponential: high for long, then a quick fall; for small budgets.

    Formula: ``end + (start - end) * (1 - p) / (1/2 + (1 - p) / 2)`` with ``p = t / T``, ``start`` and ``end`` >= 0.
    Source: Chen, Wolfe & Kyrillidis 2022, "REX" (arXiv 2107.04197), section 4.

    Example:
        >>> [round(factor, 3) for factor in REX().factors(4)]
        [1.0, 0.857, 0.667, 0.4]
    """

    def _between(self, step: int, total: int) -> float:
        left = 1 - step / total
        return blend(self.start, self.end, left / (0.5 + 0.5 * left))


@dataclass(frozen=True)
class Exponential(_Decay):
    """A constant ratio from each step to the next.

    Formula: ``start * (end / start) ** (t / T)``, with ``start`` and ``end`` > 0; torch's gamma is
    ``(end / start) ** (1 / T)``. Source: torch's ExponentialLR, in closed form.

    Example:
        >>> [round(factor, 3) for factor in Exponential(1, 0.01).factors(4)]
        [1.0, 0.316, 0.1, 0.032]
    """

    end: float = 0.01

    def __post_init__(self) -> None:
        check_number("start", self.start, above=True)
        check_number("end", self.end, above=True)

    def _between(self, step: int, total: int) -> float:
        return ramp("exponential", self.start, self.end, step / total)


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """A decay that needs no known end.

    Formula: ``sqrt(timescale / (t + timescale))``, with a duration ``timescale`` > 0, after which the factor is
    1 / sqrt(2). After a warmup of ``timescale`` steps this is the rule of Vaswani et al. 2017, "Attention is all you
    need" (arXiv 1706.03762), equation 3, relative to its peak.

    Example:
        >>> [round(factor, 3) for factor in InverseSqrt(2).factors(7)][::2]
        [1.0, 0.707, 0.577, 0.5]
    """

    timescale: DurationLike

    def __post_init__(self) -> None:
        parse_duration(self.timescale, "timescale", positive=True)

    @property
    def needs_total(self) -> bool:
        """Only if ``timescale`` is a percentage."""
        return is_share(self.timescale)

    def _factor(self, step: int, clock: Clock) -> float:
        timescale = max(1, clock.steps(self.timescale))
        return 1.0 / math.sqrt((step + timescale) / timescale)

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``inverse square root, timescale 500 steps``."""
        return f"inverse square root, timescale {max(1, clock.steps(self.timescale))} steps"


@dataclass(frozen=True)
class Step(Schedule):
    """A drop at regular intervals.

    Formula: ``gamma ** k``, where k is the number of whole ``every`` that have passed. Source: torch's StepLR, in
    closed form. With epochs or percent the k-th drop is at k times ``every``, rounded once, so roundings do not add up.

    Attributes:
        every: Duration between two drops, > 0.
        gamma: Factor of each drop, in (0, 1].

    Example:
        >>> Step(2, 0.5).factors(5)
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: DurationLike
    gamma: float = 0.1

    def __post_init__(self) -> None:
        parse_duration(self.every, "every", positive=True)
        check_number("gamma", self.gamma, high=1.0, above=True)

    @property
    def needs_total(self) -> bool:
        """Only if ``every`` is a percentage."""
        return is_share(self.every)

    def _factor(self, step: int, clock: Clock) -> float:
        return float(self.gamma ** clock.count(self.every, step))

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``x 0.1 every 30 epochs (3000 steps)``."""
        return f"x {self.gamma:g} every {parse_duration(self.every)} ({clock.steps(self.every)} steps)"


@dataclass(frozen=True)
class MultiStep(Schedule):
    """A drop at each of some given times.

    Formula: ``gamma ** k``, where k is the number of milestones <= t. Source: torch's MultiStepLR, in closed form.

    Attributes:
        at: Milestones, durations from the start of the piece; at least one. A milestone after the end of the run
            raises a DurationError when the schedule is called.
        gamma: Factor of each drop, in (0, 1].

    Example:
        >>> MultiStep(at=("50%", "75%"), gamma=0.5).factors(4)
        [1.0, 1.0, 0.5, 0.25]
    """

    at: tuple[DurationLike, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.at, int | str) or not self.at:
            raise ArgumentError(f"must be a list of at least one duration, got {self.at!r}", "at")
        object.__setattr__(self, "at", tuple(self.at))  # config files give lists, which have no hash
        for milestone in self.at:
            parse_duration(milestone, "at")
        check_number("gamma", self.gamma, high=1.0, above=True)

    @property
    def needs_total(self) -> bool:
        """Only if a milestone is a percentage."""
        return any(map(is_share, self.at))

    def _factor(self, step: int, clock: Clock) -> float:
        return float(self.gamma ** sum(milestone <= step for milestone in self._milestones(clock)))

    def _milestones(self, clock: Clock) -> list[int]:
        steps = [clock.steps(milestone) for milestone in self.at]
        last = max(steps)
        if clock.total is not None and last > clock.total:
            late = parse_duration(self.at[steps.index(last)])
            raise DurationError(
                f"MultiStep: the milestone {late} is at step {last} > {clock.total} steps in all, so it is never"
                " reached. Move it or train longer."
            )
        return steps

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``x 0.1 at steps 500, 750``."""
        return f"x {self.gamma:g} at steps {', '.join(map(str, sorted(self._milestones(clock))))}"
