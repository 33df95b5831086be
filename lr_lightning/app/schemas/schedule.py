"""Schemas of the schedules: shapes over the whole run, as factors of the peak learning rate."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from lr_lightning.app.schemas import AT_LEAST_0, AT_LEAST_1, Problem, Schema, below_one, one_of, positive


@dataclass
class ScheduleConfig(Schema):
    """A shape over the whole run, as a factor of the peak learning rate, after an optional warmup.

    The constructors in `lr_lightning.schedules` check the arguments that are theirs.
    """

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    warmup: int | str = 0  # a duration: 500, "500 steps", "2 epochs", "5%"
    warmup_shape: Annotated[str, one_of("linear", "cosine", "exponential")] = "linear"  # linear | cosine | exponential
    total_steps: Annotated[int | None, AT_LEAST_1] = None  # needed only if Lightning cannot know it
    # the update at which it starts; default: the first, and in a fork with another schedule that of the fork
    start_step: Annotated[int | None, AT_LEAST_0] = None


@dataclass
class ConstantConfig(ScheduleConfig):
    """The peak learning rate throughout."""

    name: str = "constant"
    _target_: str = "lr_lightning.schedules.Constant"


@dataclass
class WarmupConstantConfig(ConstantConfig):
    """A linear warmup to the peak learning rate, then the peak."""

    name: str = "warmup_constant"
    warmup: int | str = "5%"


@dataclass
class StepConfig(ScheduleConfig):
    """A drop at regular intervals."""

    name: str = "step"
    _target_: str = "lr_lightning.schedules.Step"
    every: int | str = "34%"  # two drops in a run
    gamma: float = 0.1  # factor of each drop


@dataclass
class MultiStepConfig(ScheduleConfig):
    """A drop at each milestone."""

    name: str = "multistep"
    _target_: str = "lr_lightning.schedules.MultiStep"
    at: list[Any] = field(default_factory=lambda: ["50%", "75%"])  # durations from the start
    gamma: float = 0.1  # factor of each drop


@dataclass
class DecayConfig(ScheduleConfig):
    """A decay over the whole run, from start to end, both factors of the peak."""

    warmup: int | str = "5%"
    start: float = 1.0
    end: float = 0.0


@dataclass
class LinearConfig(DecayConfig):
    """A straight line."""

    name: str = "linear"
    _target_: str = "lr_lightning.schedules.Linear"


@dataclass
class CooldownConfig(ScheduleConfig):
    """A straight line to the end of a fork, from the learning rate at which the forked run is."""

    name: str = "cooldown"
    _target_: str = "lr_lightning.schedules.Linear"
    start: float | None = None  # factor of the peak at its start; default: where the forked run is
    end: float = 0.0
    length: int | str = "20%"  # of the updates before it, or a duration; trainer.max_epochs or max_steps replace it


@dataclass
class CosineConfig(DecayConfig):
    """Half a cosine."""

    name: str = "cosine"
    _target_: str = "lr_lightning.schedules.Cosine"


@dataclass
class ExponentialConfig(DecayConfig):
    """A constant ratio from each step to the next."""

    name: str = "exponential"
    _target_: str = "lr_lightning.schedules.Exponential"
    end: float = 0.01  # above 0


@dataclass
class PolynomialConfig(DecayConfig):
    """A power of the share of the run that is left."""

    name: str = "polynomial"
    _target_: str = "lr_lightning.schedules.Polynomial"
    power: float = 2.0


@dataclass
class REXConfig(DecayConfig):
    """Stays high, then falls quickly."""

    name: str = "rex"
    _target_: str = "lr_lightning.schedules.REX"


@dataclass
class InverseSqrtConfig(ScheduleConfig):
    """A decay with one over the square root of the step, which needs no known end."""

    name: str = "inverse_sqrt"
    _target_: str = "lr_lightning.schedules.InverseSqrt"
    warmup: int | str = "5%"
    timescale: int | str = "5%"  # steps after the warmup at which the factor is 1 / sqrt(2)


@dataclass
class WSDConfig(ScheduleConfig):
    """Warm up, stay at the peak, cool down."""

    name: str = "wsd"
    _target_: str = "lr_lightning.schedules.WSD"
    warmup: int | str = "5%"
    cooldown: int | str = "20%"
    shape: str = "1-sqrt"  # of the cooldown: 1-sqrt | linear | cosine
    end: float = 0.0


@dataclass
class CyclicalConfig(ScheduleConfig):
    """A schedule between two learning rates."""

    # another name of optimizer.lr, the peak learning rate: give one of them
    max_lr: Annotated[float | None, positive("or null for optimizer.lr")] = None
    # the lowest learning rate, absolute; default: a share of the peak, by the choice
    base_lr: Annotated[float | None, positive("or null for the choice's share of the peak")] = None


@dataclass
class TriangularConfig(CyclicalConfig):
    """Up and down between base_lr and max_lr."""

    name: str = "triangular"
    _target_: str = "lr_lightning.schedules.Triangular"
    base: float = 0.25  # base_lr / max_lr, if no base_lr is given
    up: int | str = "10%"  # length of the rise (Smith's stepsize): five cycles in a run
    down: int | str | None = None  # default: as long as up
    mode: str = "triangular"  # triangular | triangular2


@dataclass
class Triangular2Config(TriangularConfig):
    """As triangular, but each cycle is half as high as the one before."""

    name: str = "triangular2"
    mode: str = "triangular2"


@dataclass
class ExpRangeConfig(CyclicalConfig):
    """As triangular, but the height shrinks at each step."""

    name: str = "exp_range"
    _target_: str = "lr_lightning.schedules.cyclical.ExpRange"
    base: float = 0.25  # base_lr / max_lr, if no base_lr is given
    up: int | str = "10%"
    down: int | str | None = None  # default: as long as up
    gamma: float | None = None  # factor of the height for each step; default: a tenth is left at the end of the run


@dataclass
class CosineRestartsConfig(CyclicalConfig):
    """A piece that is repeated, each time longer."""

    name: str = "cosine_restarts"
    _target_: str = "lr_lightning.schedules.Restarts"
    piece: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "lr_lightning.schedules.Cosine", "start": 1.0, "end": 0.0}
    )
    first: int | str = "14.3%"  # length of the first cycle: with mult 2 the third one ends with the run
    mult: int = 2
    decay: float = 1.0  # height of each cycle relative to the one before


@dataclass
class OneCycleConfig(CyclicalConfig):
    """Up once, down once, and further down; the momentum may move in the opposite direction."""

    name: str = "one_cycle"
    _target_: str = "lr_lightning.schedules.OneCycle"
    warmup: int | str = "30%"  # the rise
    start: float = 0.04  # base_lr / max_lr, if no base_lr is given
    end: float = 4e-6
    shape: str = "cosine"  # cosine | linear
    # momentum at the peak learning rate, such as 0.85; requires max_momentum
    base_momentum: Annotated[float | None, below_one("for instance 0.85")] = None
    # momentum at both ends, such as 0.95; default: it does not move
    max_momentum: Annotated[float | None, below_one("for instance 0.95")] = None

    def _conflicts(self) -> Iterator[Problem]:
        low, high = self.base_momentum, self.max_momentum
        if (low is None) != (high is None):
            absent, given = ("base", "max") if low is None else ("max", "base")
            text = f"needs a value beside schedule.{given}_momentum; give both or neither of them."
            yield Problem(f"{absent}_momentum", text)
        elif low is not None and high is not None and low > high:
            yield Problem("base_momentum", f"must be at most schedule.max_momentum, {high}, got {low}.")


@dataclass
class PlateauConfig(ScheduleConfig):
    """A factor on the learning rate when a metric stops improving; _target_ is the schedule that it multiplies."""

    name: str = "plateau"
    _target_: str = "lr_lightning.schedules.Constant"
    monitor: str = "val/loss"
    mode: str = "min"  # min: lower is better | max
    factor: float = 0.5
    patience: int = 2  # validations without improvement that are tolerated
    threshold: float = 1e-4  # how much better counts as better
    threshold_mode: str = "rel"  # rel: a share of the best | abs
    cooldown: int = 0  # validations after a reduction that are not counted
    min_factor: float = 0.0


@dataclass
class GrowthConfig:
    """A batch that grows between epochs, instead of a decay of the learning rate (Smith et al. 2018)."""

    milestones: list[str] = field(default_factory=lambda: ["30%", "60%", "80%"])  # shares of the epochs, or "60 epochs"
    factor: float = 5.0  # by which the batch grows at each milestone
    max_batch_size: int | None = 512  # of one process; gradients are accumulated beyond it; null: no limit
    lr: Annotated[str, one_of("constant", "inverse_sqrt")] = "constant"  # inverse_sqrt: for Adam and AdamW


@dataclass
class BatchGrowthConfig(ConstantConfig):
    """A batch that grows beside a schedule of the learning rate, which is _target_."""

    name: str = "batch_growth"
    growth: GrowthConfig | None = field(default_factory=GrowthConfig)


STAYS_HIGH = (ConstantConfig, WSDConfig, TriangularConfig, ExpRangeConfig, CosineRestartsConfig, PlateauConfig)
"""Schedules that keep the learning rate high for most of the run, so that its validation loss is far from its end."""
