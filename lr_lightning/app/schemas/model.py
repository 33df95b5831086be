"""Schemas of the network, the LightningModule around it, and the optimizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from lr_lightning.app.schemas import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    Problem,
    Schema,
    below_one,
    must,
    one_of,
    positive,
)

OPTIMIZER_PACKAGES = ("schedulefree", "prodigyopt", "dadaptation")
"""Packages that provide some of the optimizers below. They are installed separately, under the same names."""

_Momentum = Annotated[float, below_one("for instance 0.9")]
_NotNegative = Annotated[float, NOT_NEGATIVE]
_Steps = Annotated[int, must("be 0 (no warmup) or more steps", lambda v: v >= 0)]
_BETAS = must("be two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= beta < 1 for beta in v))
_GROWTH = must("be above 1, for instance 1.02, or .inf for no limit", lambda v: v > 1)


@dataclass
class ModelConfig(Schema):
    """A network: `_target_` gets kwargs and, if its signature names them, in_channels, num_classes and image_size."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    # the names of the three arguments in a _target_ whose signature does not show them: {in_channels: in_chans}
    data_arguments: dict[str, str] = field(default_factory=dict)
    # scale of the pixels: standard (mean 0, std 1) | unit (0..1) | mean_image (0..255 - mean)
    inputs: Annotated[str, one_of("standard", "unit", "mean_image")] = "standard"
    # a peak learning rate that suits SGD with momentum; the default of optimizer=sgd
    lr: Annotated[float, positive("for instance 0.1")] = 0.1


@dataclass
class ModuleConfig(Schema):
    """A LightningModule: `_target_` gets kwargs and, if its signature names them, net, optimizer and num_classes."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClassifierConfig(ModuleConfig):
    """Cross-entropy and accuracy."""

    name: str = "classifier"
    _target_: str = "lr_lightning.training.classifier.LitClassifier"
    label_smoothing: Annotated[float, below_one("for instance 0.1")] = 0.0  # share of the target for all classes
    # balanced: the training loss of an example counts the more, the rarer its class; null: all count alike
    class_weights: Annotated[str | None, one_of("balanced")] = None


@dataclass
class OptimizerConfig(Schema):
    """`_target_` is a torch.optim.Optimizer class; its arguments are the keys of the choice and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    lr: Annotated[float, positive("for instance 0.1 for SGD or 0.001 for Adam")] = MISSING  # the peak learning rate
    # none | linear | sqrt: how learning rates grow with the batch of an update
    lr_rule: Annotated[str, one_of("none", "linear", "sqrt")] = "none"
    # the batch of an update that lr is for; required by lr_rule
    lr_reference_batch: Annotated[int | None, AT_LEAST_1] = None
    weight_decay: _NotNegative = 0.0
    decay_bias_and_norm: bool = False  # also decay biases and the parameters of normalization layers
    # a pattern of parameter names -> {lr: factor, weight_decay: factor} on lr and weight_decay
    multipliers: dict[str, dict[str, float]] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def averages_weights(self) -> bool:
        """Whether it is a schedule-free optimizer."""
        return self._target_.split(".")[0] == "schedulefree"

    @property
    def estimates_lr(self) -> bool:
        """Whether it estimates its learning rate."""
        return self._target_.split(".")[0] in ("prodigyopt", "dadaptation")

    def _conflicts(self) -> Iterator[Problem]:
        momentum, betas, eps = (getattr(self, key, None) for key in ("momentum", "betas", "eps"))
        if self.lr_rule != "none" and self.lr_reference_batch is None:
            examples = (
                "the examples in one update (over all processes and accumulated batches) that optimizer.lr is for"
            )
            text = f"needs a value with optimizer.lr_rule={self.lr_rule}: {examples}."
            yield Problem("lr_reference_batch", text)
        if getattr(self, "nesterov", False) and not momentum:
            yield Problem("nesterov", "true needs optimizer.momentum above 0; give optimizer.nesterov=false.")
        averages = f"must be above 0 with {self.name}, which averages the weights with it, got"
        if self.averages_weights and momentum == 0:
            yield Problem("momentum", f"{averages} 0.")
        if self.averages_weights and betas and betas[0] == 0:
            yield Problem("betas", f"the first {averages} {betas}.")
        if self.estimates_lr and eps == 0:
            yield Problem("eps", f"must be above 0 with {self.name}, for instance 1e-8, got 0.")
        for pattern, factors in self.multipliers.items():
            yield from self._bad_multipliers(f"multipliers.{pattern}", factors)

    def _bad_multipliers(self, key: str, factors: dict[str, float]) -> Iterator[Problem]:
        for name, value in factors.items():
            if name not in ("lr", "weight_decay"):
                yield Problem(key, f"'{name}' is not one of lr, weight_decay.")
            elif text := NOT_NEGATIVE(value):
                yield Problem(f"{key}.{name}", text)
        if self.estimates_lr and factors.get("lr", 1) not in (0, 1):
            yield Problem(
                f"{key}.lr",
                f"{self.name} estimates one learning rate for all parameters. Leave the factor out, or give 0 for "
                f"parameters that are not trained, got {factors['lr']}.",
            )


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with (Nesterov) momentum."""

    name: str = "sgd"
    _target_: str = "torch.optim.SGD"
    lr: float = "${model.lr}"  # type: ignore[assignment]  # an interpolation; the schema checks what it resolves to
    momentum: _Momentum = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4


@dataclass
class AdamConfig(OptimizerConfig):
    """Kingma & Ba 2015."""

    name: str = "adam"
    _target_: str = "torch.optim.Adam"
    lr: float = 1e-3
    betas: Annotated[list[float], _BETAS] = field(default_factory=lambda: [0.9, 0.999])
    eps: _NotNegative = 1e-8


@dataclass
class AdamWConfig(AdamConfig):
    """Loshchilov & Hutter 2019: Adam with decoupled weight decay."""

    name: str = "adamw"
    _target_: str = "torch.optim.AdamW"
    weight_decay: float = 0.01


@dataclass
class RMSpropConfig(OptimizerConfig):
    """Tieleman & Hinton 2012."""

    name: str = "rmsprop"
    _target_: str = "torch.optim.RMSprop"
    lr: float = 1e-3
    alpha: Annotated[float, below_one("for instance 0.99")] = 0.99
    momentum: _Momentum = 0.0
    eps: _NotNegative = 1e-8


@dataclass
class AdagradConfig(OptimizerConfig):
    """Duchi, Hazan & Singer 2011."""

    name: str = "adagrad"
    _target_: str = "torch.optim.Adagrad"
    lr: float = 1e-2
    eps: _NotNegative = 1e-10


@dataclass
class ScheduleFreeSGDConfig(OptimizerConfig):
    """Defazio et al. 2024: averages the weights instead of decaying the lr; best with schedule=warmup_constant."""

    name: str = "schedule_free_sgd"
    _target_: str = "schedulefree.SGDScheduleFree"
    lr: float = 1.0  # about ten times that of SGD with momentum
    momentum: _Momentum = 0.9  # share of the average in the weights at which gradients are taken
    weight_decay: float = 5e-4
    warmup_steps: _Steps = 0  # the optimizer's linear warmup, in addition to the schedule's
    r: _NotNegative = 0.0  # weights the average by step ** r
    weight_lr_power: _NotNegative = 2.0  # and by (largest learning rate so far) ** this


@dataclass
class ScheduleFreeAdamWConfig(AdamWConfig):
    """Defazio et al. 2024, over AdamW; best with schedule=warmup_constant."""

    name: str = "schedule_free_adamw"
    _target_: str = "schedulefree.AdamWScheduleFree"
    lr: float = 2.5e-3
    warmup_steps: _Steps = 0
    r: _NotNegative = 0.0
    weight_lr_power: _NotNegative = 2.0


@dataclass
class DAdaptAdamConfig(AdamConfig):
    """Defazio & Mishchenko 2023: Adam with D-Adaptation, which estimates its lr; `lr` multiplies the estimate."""

    name: str = "dadapt_adam"
    _target_: str = "dadaptation.DAdaptAdam"
    lr: float = 1.0
    decouple: bool = False  # weight decay as in AdamW
    use_bias_correction: bool = False
    d0: Annotated[float, positive("for instance 1e-6")] = 1e-6  # the first estimate
    growth_rate: Annotated[float, _GROWTH] = float("inf")  # largest factor by which the estimate may grow in a step


@dataclass
class ProdigyConfig(DAdaptAdamConfig):
    """Mishchenko & Defazio 2023: Adam that estimates its learning rate; `lr` multiplies the estimate."""

    name: str = "prodigy"
    _target_: str = "prodigyopt.Prodigy"
    # for the averages of the estimate; default: the root of the second of betas
    beta3: Annotated[float | None, below_one("or null for the root of the second of optimizer.betas")] = None
    decouple: bool = True
    safeguard_warmup: bool = True  # keeps a schedule's warmup out of the estimate
    d_coef: Annotated[float, positive("for instance 0.5, 1 or 2")] = 1.0  # multiplies the estimate; 0.5 or 2 to tune
