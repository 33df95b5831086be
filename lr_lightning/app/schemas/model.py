"""Optimizers and their param groups."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

# --- Networks and LightningModules.


@dataclass
class ModelConfig:
    """A network: `_target_(in_channels, num_classes, image_size, **kwargs)`, as far as it names these arguments."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    # what an outside _target_ calls the three, where its signature does not say: {in_channels: in_chans}
    data_arguments: dict[str, str] = field(default_factory=dict)
    inputs: str = "standard"  # how pixels reach it: standard (mean 0, std 1) | unit (0..1) | mean_image (0..255 - mean)
    lr: float = 0.1  # a peak rate that works with SGD and momentum; optimizer=sgd takes it as its default


@dataclass
class ModuleConfig:
    """A LightningModule: `_target_` gets those of net, optimizer, num_classes that it names, and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClassifierConfig(ModuleConfig):
    """Cross-entropy and accuracy."""

    name: str = "classifier"
    _target_: str = "lr_lightning.training.classifier.LitClassifier"


@dataclass
class OptimizerConfig:
    """`_target_` is a torch.optim.Optimizer class; its arguments are the choice's own keys and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    lr: float = MISSING  # the peak rate
    lr_rule: str = "none"  # none | linear | sqrt: how the rates grow with the batch of an update
    lr_reference_batch: int | None = None  # the batch of an update that lr is for; needed by the rule
    weight_decay: float = 0.0
    decay_bias_and_norm: bool = False  # biases and normalisation layers are not decayed unless asked for
    # a pattern of parameter names -> {lr: factor, weight_decay: factor} on the group's own values
    multipliers: dict[str, dict[str, float]] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with (Nesterov) momentum."""

    name: str = "sgd"
    _target_: str = "torch.optim.SGD"
    lr: float = "${model.lr}"  # type: ignore[assignment]  # an interpolation; the schema checks what it resolves to
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4


@dataclass
class AdamConfig(OptimizerConfig):
    """Kingma & Ba 2014."""

    name: str = "adam"
    _target_: str = "torch.optim.Adam"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


@dataclass
class AdamWConfig(AdamConfig):
    """Loshchilov & Hutter 2017: Adam with decoupled weight decay."""

    name: str = "adamw"
    _target_: str = "torch.optim.AdamW"
    weight_decay: float = 0.01


@dataclass
class RMSpropConfig(OptimizerConfig):
    """Tieleman & Hinton 2012."""

    name: str = "rmsprop"
    _target_: str = "torch.optim.RMSprop"
    lr: float = 1e-3
    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8


@dataclass
class AdagradConfig(OptimizerConfig):
    """Duchi, Hazan & Singer 2011."""

    name: str = "adagrad"
    _target_: str = "torch.optim.Adagrad"
    lr: float = 1e-2
    eps: float = 1e-10


@dataclass
class ScheduleFreeSGDConfig(OptimizerConfig):
    """Defazio et al. 2024: averages the weights in place of a falling rate; best with schedule=warmup_constant."""

    name: str = "schedule_free_sgd"
    _target_: str = "schedulefree.SGDScheduleFree"
    lr: float = 1.0  # about ten times that of SGD with momentum
    momentum: float = 0.9  # the share of the average in the weights at which gradients are taken
    weight_decay: float = 5e-4
    warmup_steps: int = 0  # its own linear warm-up, on top of the schedule's
    r: float = 0.0  # weights the average by step ** r
    weight_lr_power: float = 2.0  # and by (largest rate so far) ** this


@dataclass
class ScheduleFreeAdamWConfig(OptimizerConfig):
    """Defazio et al. 2024, over AdamW; best with schedule=warmup_constant."""

    name: str = "schedule_free_adamw"
    _target_: str = "schedulefree.AdamWScheduleFree"
    lr: float = 2.5e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0


@dataclass
class ProdigyConfig(OptimizerConfig):
    """Mishchenko & Defazio 2023: Adam that estimates its own rate; `lr` only scales that."""

    name: str = "prodigy"
    _target_: str = "prodigyopt.Prodigy"
    lr: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    beta3: float | None = None  # of the estimate's averages; default: the root of the second beta
    eps: float = 1e-8
    decouple: bool = True  # weight decay as in AdamW
    use_bias_correction: bool = False
    safeguard_warmup: bool = True  # keeps a schedule's warm-up out of the estimate
    d0: float = 1e-6  # the estimate's start
    d_coef: float = 1.0  # scales the estimate; 0.5 or 2 to tune
    growth_rate: float = float("inf")  # most that the estimate may grow by in a step, as a factor


@dataclass
class DAdaptAdamConfig(OptimizerConfig):
    """Defazio & Mishchenko 2023: Adam with D-Adaptation, which estimates the rate; `lr` only scales that."""

    name: str = "dadapt_adam"
    _target_: str = "dadaptation.DAdaptAdam"
    lr: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    decouple: bool = False
    use_bias_correction: bool = False
    d0: float = 1e-6
    growth_rate: float = float("inf")


OPTIMIZER_PACKAGES = ("schedulefree", "prodigyopt", "dadaptation")
"""Packages of the optimizers above that are installed on their own; the names on PyPI are the same."""
