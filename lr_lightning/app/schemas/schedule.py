"""Schedules: shapes over the whole run, as factors on the peak rate."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ScheduleConfig:
    """A shape over the whole run, as a factor on the peak rate; any of them may begin with a warm-up."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    warmup: int | str = 0  # a duration: 500, "500 steps", "2 epochs", "5%"
    warmup_shape: str = "linear"  # linear | cosine | exponential
    total_steps: int | None = None  # only where Lightning cannot know it


@dataclass
class ConstantConfig(ScheduleConfig):
    """The peak rate throughout."""

    name: str = "constant"
    _target_: str = "lr_lightning.schedules.Constant"


@dataclass
class WarmupConstantConfig(ConstantConfig):
    """A rise to the peak rate, then the peak rate."""

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
    """A drop at each of some milestones."""

    name: str = "multistep"
    _target_: str = "lr_lightning.schedules.MultiStep"
    at: list[Any] = field(default_factory=lambda: ["50%", "75%"])  # durations from the start
    gamma: float = 0.1  # factor of each drop


@dataclass
class DecayConfig(ScheduleConfig):
    """From start to end, factors of the peak, over the whole run."""

    warmup: int | str = "5%"
    start: float = 1.0
    end: float = 0.0


@dataclass
class LinearConfig(DecayConfig):
    """A straight line."""

    name: str = "linear"
    _target_: str = "lr_lightning.schedules.Linear"


@dataclass
class CosineConfig(DecayConfig):
    """Half a cosine."""

    name: str = "cosine"
    _target_: str = "lr_lightning.schedules.Cosine"


@dataclass
class ExponentialConfig(DecayConfig):
    """The same ratio from each step to the next."""

    name: str = "exponential"
    _target_: str = "lr_lightning.schedules.Exponential"
    end: float = 0.01  # above 0


@dataclass
class PolynomialConfig(DecayConfig):
    """A power of the share that is left."""

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
    """Falls as one over the square root of the step, without a known end."""

    name: str = "inverse_sqrt"
    _target_: str = "lr_lightning.schedules.InverseSqrt"
    warmup: int | str = "5%"
    timescale: int | str = "5%"  # where the factor is 1 / sqrt(2), counted from the end of the warm-up


@dataclass
class WSDConfig(ScheduleConfig):
    """Warm up, stay, cool down."""

    name: str = "wsd"
    _target_: str = "lr_lightning.schedules.WSD"
    warmup: int | str = "5%"
    cooldown: int | str = "20%"
    shape: str = "1-sqrt"  # of the cooldown: 1-sqrt | linear | cosine
    end: float = 0.0


@dataclass
class CyclicalConfig(ScheduleConfig):
    """A schedule between two rates."""

    max_lr: float | None = None  # another name of optimizer.lr, the peak rate; where only one is given it holds
    base_lr: float | None = None  # the lowest rate, absolute; default: the choice's own share of the peak


@dataclass
class TriangularConfig(CyclicalConfig):
    """Up and down between base_lr and max_lr."""

    name: str = "triangular"
    _target_: str = "lr_lightning.schedules.Triangular"
    base: float = 0.25  # base_lr / max_lr where no base_lr is given
    up: int | str = "10%"  # Smith's stepsize; five cycles in a run
    down: int | str | None = None  # default: as long as up
    mode: str = "triangular"  # triangular | triangular2


@dataclass
class Triangular2Config(TriangularConfig):
    """The same with half the height at each cycle."""

    name: str = "triangular2"
    mode: str = "triangular2"


@dataclass
class ExpRangeConfig(CyclicalConfig):
    """The same with a height that shrinks at each step."""

    name: str = "exp_range"
    _target_: str = "lr_lightning.schedules.cyclical.ExpRange"
    base: float = 0.25  # base_lr / max_lr where no base_lr is given
    up: int | str = "10%"
    down: int | str | None = None  # default: as long as up
    gamma: float | None = None  # factor of the height a step; default: a tenth of it is left at the end of the run


@dataclass
class CosineRestartsConfig(CyclicalConfig):
    """A piece played again and again, each time longer."""

    name: str = "cosine_restarts"
    _target_: str = "lr_lightning.schedules.Restarts"
    piece: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "lr_lightning.schedules.Cosine", "start": 1.0, "end": 0.0}
    )
    first: int | str = "14.3%"  # length of the first cycle: with mult 2 the third one ends with the run
    mult: int = 2
    decay: float = 1.0  # factor of each cycle's height against the one before


@dataclass
class OneCycleConfig(CyclicalConfig):
    """Up once, down once, and further down; the momentum may move against it."""

    name: str = "one_cycle"
    _target_: str = "lr_lightning.schedules.OneCycle"
    warmup: int | str = "30%"  # the rise
    start: float = 0.04  # base_lr / max_lr where no base_lr is given
    end: float = 4e-6
    shape: str = "cosine"  # cosine | linear
    base_momentum: float | None = None  # the momentum at the peak rate, such as 0.85; with max_momentum
    max_momentum: float | None = None  # the momentum at both ends, such as 0.95; default: it does not move


@dataclass
class PlateauConfig(ScheduleConfig):
    """The rate is multiplied by factor when a metric stops improving; _target_ is what is multiplied."""

    name: str = "plateau"
    _target_: str = "lr_lightning.schedules.Constant"
    monitor: str = "val/loss"
    mode: str = "min"  # min: lower is better | max
    factor: float = 0.5
    patience: int = 2  # validations without improvement that are tolerated
    threshold: float = 1e-4  # how much better counts as better
    threshold_mode: str = "rel"  # rel: a share of the best | abs
    cooldown: int = 0  # validations after a reduction that do not count
    min_factor: float = 0.0


@dataclass
class GrowthConfig:
    """A batch that grows between epochs, in place of a rate that falls (Smith, Kindermans, Ying & Le 2017)."""

    milestones: list[str] = field(default_factory=lambda: ["30%", "60%", "80%"])  # of the epochs, or "60 epochs"
    factor: float = 5.0  # by which it grows at each
    max_batch_size: int | None = 512  # of one process; beyond it gradients are accumulated; null: no limit


@dataclass
class BatchGrowthConfig(ConstantConfig):
    """A batch that grows beside the rate's own schedule, which is _target_."""

    name: str = "batch_growth"
    growth: GrowthConfig | None = field(default_factory=GrowthConfig)
