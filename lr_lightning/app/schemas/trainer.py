"""The trainer, what watches a run, and where it is recorded."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TrainerConfig:
    """Lightning's Trainer, as far as a run here needs it; the rest goes through kwargs."""

    name: str = "auto"
    max_epochs: int = 15
    max_steps: int = -1  # -1: no limit
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool = False
    channels_last: bool = True  # halves the step of a CNN on a CPU
    compile: bool = False
    deterministic: bool = True  # the same seed gives the same weights, bit for bit, on the same machine
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int = 1
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    progress: str = "auto"  # auto: a bar on a terminal, a line an epoch elsewhere | bar | lines | none
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckpointConfig:
    """`last` after every validation, `best` by the monitored metric; both in the run's output folder."""

    monitor: str = "val/acc"
    mode: str = "max"
    every_n_steps: int | None = None  # `last` also every so many optimizer steps


@dataclass
class OverfittingConfig:
    """The frozen training probe and its gap to the validation set."""

    every_n_validations: int = 1


@dataclass
class CostConfig:
    """What the run costs, and when it reaches a target."""

    target: str | None = None  # such as val/acc>=0.97; in quotes on a command line: 'callbacks.cost.target="..."'
    price_per_gpu_hour: float | None = None  # in any currency; without a GPU it is the CPU's
    gradient_norms: bool = True  # of every step, for their percentiles


@dataclass
class EarlyStoppingConfig:
    """When to stop before the end; never on the rising half of a cycle, nor before a cooldown."""

    monitor: str = "val/loss"
    criterion: str | None = None  # patience | gl | pq | up: Lightning's, and Prechelt's three; null: never
    patience: int = 5  # validations that count without improvement
    threshold: float | None = None  # of gl (default 5 percent), pq (0.75) and up (3 strips)
    strip: int = 5  # validations in a strip, for pq and up
    min_delta: float = 0.0  # least change that counts as improvement, for patience
    mode: str = "min"  # min | max


@dataclass
class CallbacksConfig:
    """What watches the run; null turns one off."""

    name: str = "default"
    checkpoint: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    overfitting: OverfittingConfig | None = field(default_factory=OverfittingConfig)
    cost: CostConfig | None = field(default_factory=CostConfig)
    early_stopping: EarlyStoppingConfig | None = field(default_factory=EarlyStoppingConfig)
    extra: dict[str, Any] = field(default_factory=dict)  # own ones: +callbacks.extra.mine._target_=package.MyCallback


@dataclass
class TrackingConfig:
    """Where the run is recorded."""

    name: str = MISSING  # mlflow | csv | none
    uri: str | None = None  # default: sqlite in mlruns/; or http://..., postgresql://...
    root: str = "${checkout:}/mlruns"  # the default store, and the locks of live runs
    experiment: str = "lr_lightning"
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
