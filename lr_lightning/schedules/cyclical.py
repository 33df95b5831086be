"""Schedules that rise and fall, or start again. In the formulas, t is the step and T the number of steps."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

from lr_lightning._checks import check_choice, check_count, check_number
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules.base import Schedule, ScheduleLike, as_schedule, ramp, set_fields
from lr_lightning.schedules.clock import Clock, DurationLike, fit_pieces, is_share, parse_duration

__all__ = ["ExpRange", "OneCycle", "Restarts", "Triangular"]

_Mode = Literal["triangular", "triangular2", "exp_range"]
_CycleShape = Literal["cosine", "linear"]
_HEIGHT_LEFT = 0.1  # of an ExpRange without gamma, at the end of the run


@dataclass(frozen=True)
class Triangular(Schedule):
    """Cyclical learning rates: up and down between ``base`` and 1.

    Formula, with L = up + down, c = floor(t / L) and x = t / L - c:
    ``base + (1 - base) * height * scale``, height = x / (up / L) while rising, (1 - x) / (down / L) while falling;
    scale = 1, 2 ** -c ("triangular2") or gamma ** t ("exp_range"). Source: Smith 2017, "Cyclical learning rates for
    training neural networks" (arXiv 1506.01186), section 3.1.

    Attributes:
        base: base_lr / max_lr, in [0, 1].
        up: Duration of the rise, > 0 (Smith's stepsize).
        down: Duration of the fall, > 0; as long as ``up`` if None.
        mode: ``"triangular"``, ``"triangular2"`` (half the height in each cycle) or ``"exp_range"``.
        gamma: Shrinkage per step for ``"exp_range"``, in (0, 1]; must be None for the other modes.

    Example:
        >>> Triangular(base=0.5, up=2).factors(5)
        [0.5, 0.75, 1.0, 0.75, 0.5]
        >>> Triangular(base=0, up=1, mode="triangular2").factors(6)
        [0.0, 1.0, 0.0, 0.5, 0.0, 0.25]
    """

    base: float
    up: DurationLike
    down: DurationLike | None = None
    mode: _Mode = "triangular"
    gamma: float | None = None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, get_args(_Mode))
        if (self.mode == "exp_range") != (self.gamma is not None):
            raise ArgumentError(f"gamma goes with mode='exp_range' only, got gamma={self.gamma}, mode={self.mode!r}")
        self._check_cycle()

    def _check_cycle(self) -> None:
        check_number("base", self.base, high=1.0)
        parse_duration(self.up, "up", positive=True)
        if self.down is not None:
            parse_duration(self.down, "down", positive=True)
        if self.gamma is not None:
            check_number("gamma", self.gamma, high=1.0, above=True)

    @property
    def needs_total(self) -> bool:
        """If ``up`` or ``down`` is a percentage."""
        return any(is_share(d) for d in (self.up, self.down) if d is not None)

    def _lengths(self, clock: Clock) -> tuple[int, int]:
        up = max(1, clock.steps(self.up))
        return up, up if self.down is None else max(1, clock.steps(self.down))

    def _gamma(self, clock: Clock) -> float | None:
        return self.gamma

    def _factor(self, step: int, clock: Clock) -> float:
        up, down = self._lengths(clock)
        length, cycle = up + down, step // (up + down)
        # 1 + t/L - (c + 1) and not (t - cL) / L: equal to torch's CyclicLR to the last bit
        position = 1.0 + step / length - (cycle + 1)
        turn = up / length
        height = position / turn if position <= turn else (position - 1) / (turn - 1)
        gamma = self._gamma(clock)
        halved = 1.0 if self.mode == "triangular" else 2.0**-cycle  # not 1 / 2.0**c, which overflows far out
        return self.base + (1.0 - self.base) * height * (halved if gamma is None else float(gamma**step))

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``triangular2 0.25 to 1, 2000 steps up, 2000 down``."""
        (up, down), gamma = self._lengths(clock), self._gamma(clock)
        shrink = "" if gamma is None else f", gamma {gamma:g}"
        return f"{self.mode} {self.base:g} to 1, {up} steps up, {down} down{shrink}"

    has_base = True

    def _with_base(self, ratio: float) -> Self:
        return replace(self, base=ratio)

    _with_floor = _with_base


@dataclass(frozen=True)
class ExpRange(Triangular):
    """``Triangular(mode="exp_range")`` with a default shrinkage that suits runs of any length.

    Formula and attributes are as for :class:`~lr_lightning.schedules.Triangular`. Unless it is given, gamma is
    0.1 ** (1 / T): a tenth of the height is left after the T steps of the run. A gamma for 40,000 steps (Smith's
    0.99994) hardly shrinks anything over 300. Source: Smith 2017 (arXiv 1506.01186), section 3.1.

    Example:
        >>> [round(factor, 3) for factor in ExpRange(base=0, up=1).factors(4)]
        [0.0, 0.562, 0.0, 0.178]
    """

    mode: _Mode = field(default="exp_range", init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_cycle()

    @property
    def needs_total(self) -> bool:
        """Unless ``gamma`` is given and no duration is a percentage."""
        return self.gamma is None or super().needs_total

    def _gamma(self, clock: Clock) -> float:
        if self.gamma is not None:
            return self.gamma
        return float(_HEIGHT_LEFT ** (1 / max(1, clock.need_total("ExpRange"))))


@dataclass(frozen=True, init=False)
class Restarts(Schedule):
    """One piece again and again, each time longer.

    Formula: cycle k has ``first * mult ** k`` steps and gives ``piece * decay ** k``; the end of the run cuts the last
    cycle. If a cycle ends with the run, the last value is the end of that cycle and not another start. Source:
    Loshchilov & Hutter 2017, "SGDR" (arXiv 1608.03983), section 3, for any piece.

    Attributes:
        piece: What is repeated; a plain function is accepted as well.
        first: Duration of the first cycle, > 0.
        mult: Length of each cycle divided by the length of the cycle before, a whole number >= 1.
        decay: Height of each cycle divided by the height of the cycle before, in (0, 1].

    Example:
        >>> from lr_lightning.schedules import Linear
        >>> Restarts(Linear(), first=2, mult=2).factors(6)
        [1.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """

    piece: Schedule
    first: DurationLike
    mult: int = 1
    decay: float = 1.0

    def __init__(self, piece: ScheduleLike, first: DurationLike, mult: int = 1, decay: float = 1.0) -> None:
        parse_duration(first, "first", positive=True)
        check_count("mult", mult, 1)
        check_number("decay", decay, high=1.0, above=True)
        set_fields(self, piece=as_schedule("piece", piece), first=first, mult=mult, decay=decay)

    @property
    def needs_total(self) -> bool:
        """If ``first`` is a percentage; a cycle always knows its own length."""
        return is_share(self.first)

    def _cycle(self, step: int, clock: Clock) -> tuple[int, int, int]:
        """Return the index, start and end of the cycle that a step is in."""
        if clock.total == 0:
            return 0, 0, clock.steps(self.first)
        if self.mult == 1:
            index = clock.count(self.first, step)
            return index, clock.steps(self.first, times=index), clock.steps(self.first, times=index + 1)
        # Integers only, as a logarithm is off by one at restarts. Multiples of `first` are rounded once.
        index, before, span, start = 0, 0, 1, 0
        while (end := clock.steps(self.first, times=before + span)) <= step:
            index, before, span, start = index + 1, before + span, span * self.mult, end
        return index, start, end

    def _factor(self, step: int, clock: Clock) -> float:
        index, start, end = self._cycle(step, clock)
        if step == start == clock.total:  # the run ends where a cycle would start
            if index > 0:
                index, start, end = self._cycle(step - 1, clock)
            step = end
        return self.piece(step - start, clock.slice(start, end - start)) * float(self.decay**index)

    def check(self, clock: Clock) -> None:
        """Check the piece in every cycle."""
        super().check(clock)
        _, start, end = self._cycle(0, clock)
        self.piece.check(clock.slice(start, end - start))
        if parse_duration(self.first).unit == "steps" or clock.total is None:
            return  # no later cycle is shorter
        while end < clock.total:
            _, start, end = self._cycle(end, clock)
            self.piece.check(clock.slice(start, end - start))

    def describe(self, clock: Clock) -> str:
        """Say it in one line: ``restarts after 10 steps, each x 2 as long: cosine 1 to 0 over 10 steps``."""
        _, start, end = self._cycle(0, clock)
        longer = "" if self.mult == 1 else f", each x {self.mult} as long"
        lower = "" if self.decay == 1 else f", each x {self.decay:g} as high"
        piece = self.piece.describe(clock.slice(start, end - start))
        return f"restarts after {end - start} steps{longer}{lower}: {piece}"

    def _with_base(self, ratio: float) -> Self:
        piece = self.piece._with_floor(ratio)
        return self if piece is self.piece else replace(self, piece=piece)  # a constant piece, say, has no lower bound

    _with_floor = _with_base

    def _map(self, change: Callable[[Schedule], Schedule]) -> Self:
        return replace(self, piece=change(self.piece))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up once, down once, and further down.

    Formula, with n = the warmup in steps: from ``start`` at t = 0 to 1 at t = n, then to ``end`` at t = T, each in
    ``shape``. Source: Smith & Topin 2018, "Super-convergence" (arXiv 1708.07120), section 3, with the cosine of
    fastai. The momentum that moves the other way is a separate schedule: ``LRSchedule(OneCycle(), momentum=...)``.

    Attributes:
        warmup: Duration of the rise. Longer than the run, it raises a DurationError when called.
        start: Factor at t = 0, >= 0.
        end: Factor at t = T, >= 0.
        shape: ``"cosine"`` or ``"linear"``.

    Example:
        >>> OneCycle(warmup=2, start=0.5, end=0, shape="linear").factors(6)
        [0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    """

    warmup: DurationLike = "30%"
    start: float = 0.04
    end: float = 4e-6
    shape: _CycleShape = "cosine"

    def __post_init__(self) -> None:
        parse_duration(self.warmup, "warmup")
        check_number("start", self.start)
        check_number("end", self.end)
        check_choice("shape", self.shape, get_args(_CycleShape))

    needs_total = True

    def _rise(self, clock: Clock) -> tuple[int, int]:
        total = clock.need_total("OneCycle")
        (_, rise), _ = fit_pieces(clock, (self.warmup, None), "OneCycle")
        return rise or 0, total

    def _factor(self, step: int, clock: Clock) -> float:
        rise, total = self._rise(clock)
        if step >= total:
            return float(self.end)
        if step < rise:
            return ramp(self.shape, self.start, 1.0, step / rise)
        return ramp(self.shape, 1.0, self.end, (step - rise) / (total - rise))

    def describe(self, clock: Clock) -> str:
        """Say it in one line, such as ``one cycle, cosine: 0.04 to 1 at step 300, then to 4e-06 at step 1000``."""
        rise, total = self._rise(clock)
        return f"one cycle, {self.shape}: {self.start:g} to 1 at step {rise}, then to {self.end:g} at step {total}"

    def _with_base(self, ratio: float) -> Self:
        # the end keeps its ratio to the start, as with torch's final_div_factor
        return replace(self, start=ratio, end=self.end * ratio / self.start if self.start > 0 else self.end)

    _with_floor = _with_base
