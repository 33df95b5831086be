"""Schemas of the network and of the LightningModule around it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lr_lightning.app.schemas.problems import Rule, Schema, one_of, positive


@dataclass
class ModelConfig(Schema):
    """A network: `_target_` gets those of in_channels, num_classes, image_size that it names, and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    # the names of the three arguments in a _target_ whose signature does not show them: {in_channels: in_chans}
    data_arguments: dict[str, str] = field(default_factory=dict)
    inputs: str = "standard"  # scale of the pixels: standard (mean 0, std 1) | unit (0..1) | mean_image (0..255 - mean)
    lr: float = 0.1  # a peak learning rate that suits SGD with momentum; the default of optimizer=sgd

    def _rules(self) -> Mapping[str, Rule]:
        return {
            "inputs": one_of("standard", "unit", "mean_image"),
            "lr": positive("for instance 0.1"),
        }


@dataclass
class ModuleConfig(Schema):
    """A LightningModule: `_target_` gets those of net, optimizer, num_classes that it names, and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClassifierConfig(ModuleConfig):
    """Cross-entropy and accuracy."""

    name: str = "classifier"
    _target_: str = "lr_lightning.training.classifier.LitClassifier"
