"""Learning-rate schedules: pure, frozen values that map a step to a factor of the peak. No torch in here."""

from lr_lightning.errors import DurationError
from lr_lightning.schedules.base import Custom, Schedule, ScheduleLike
from lr_lightning.schedules.clock import Clock, Duration, DurationLike, parse_duration
from lr_lightning.schedules.compose import WSD, Join, Product, Warmup
from lr_lightning.schedules.cyclical import OneCycle, Restarts, Triangular
from lr_lightning.schedules.decay import (
    REX,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneMinusSqrt,
    Polynomial,
    Step,
)
from lr_lightning.schedules.plateau import Plateau

__all__ = [
    "REX",
    "WSD",
    "Clock",
    "Constant",
    "Cosine",
    "Custom",
    "Duration",
    "DurationError",
    "DurationLike",
    "Exponential",
    "InverseSqrt",
    "Join",
    "Linear",
    "MultiStep",
    "OneCycle",
    "OneMinusSqrt",
    "Plateau",
    "Polynomial",
    "Product",
    "Restarts",
    "Schedule",
    "ScheduleLike",
    "Step",
    "Triangular",
    "Warmup",
    "parse_duration",
]
