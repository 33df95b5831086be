"""Learning-rate schedules: pure, frozen values that map a step to a factor of the peak. No torch in here."""

from lr_lightning.schedules.base import Schedule
from lr_lightning.schedules.clock import Clock
from lr_lightning.schedules.compose import WSD, Join, Product, Warmup
from lr_lightning.schedules.cyclic import OneCycle, Restarts, Triangular
from lr_lightning.schedules.durations import Duration, DurationError, DurationLike, parse_duration
from lr_lightning.schedules.plateau import Plateau
from lr_lightning.schedules.shapes import (
    REX,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneMinusSqrt,
    Polynomial,
)
from lr_lightning.schedules.steps import Custom, MultiStep, Step

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
    "Step",
    "Triangular",
    "Warmup",
    "parse_duration",
]
