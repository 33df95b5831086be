"""Networks and LightningModules."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


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
