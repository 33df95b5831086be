"""Schemas of the trainer, and of where the run is recorded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lr_lightning.app.schemas.problems import AT_LEAST_ONE, Problem, Rule, Schema, must, one_of, positive


@dataclass
class TrainerConfig(Schema):
    """The arguments of Lightning's Trainer that runs here need; kwargs takes the others."""

    name: str = "auto"
    max_epochs: int = 15  # -1: no limit
    max_steps: int = -1  # -1: no limit
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool = False
    channels_last: bool = True  # halves the time of a CNN's step on a CPU
    compile: bool = False
    deterministic: bool = True  # the same seed gives the same weights, bit for bit, on the same machine
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"  # norm | value
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int = 1
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    progress: str = "auto"  # auto: a bar on a terminal, else a line for each epoch | bar | lines | none
    kwargs: dict[str, Any] = field(default_factory=dict)

    def rules(self) -> Mapping[str, Rule]:
        """Return the rule of each key that has one."""
        limit = must("be 1 or more, or -1 for no limit", lambda v: v >= 1 or v == -1)
        batches = must(
            "be a number of batches (an integer) or a fraction in (0, 1]",
            lambda v: v > 0 and (isinstance(v, int) or v <= 1),
        )
        return {
            "max_epochs": limit,
            "max_steps": limit,
            "num_nodes": AT_LEAST_ONE,
            "gradient_clip_val": positive("or null for no clipping"),
            "gradient_clip_algorithm": one_of("norm", "value"),
            "accumulate_grad_batches": AT_LEAST_ONE,
            "check_val_every_n_epoch": AT_LEAST_ONE,
            "limit_train_batches": batches,
            "limit_val_batches": batches,
            "limit_test_batches": batches,
            "progress": one_of("auto", "bar", "lines", "none"),
        }

    def conflicts(self) -> Iterator[Problem]:
        """Find a run without an end."""
        if self.max_epochs == -1 and self.max_steps == -1:
            yield Problem(
                "max_epochs", "-1, and trainer.max_steps: -1: the run would never end. Give one of the two a limit."
            )


@dataclass
class TrackingConfig(Schema):
    """Where the run is recorded."""

    name: str = MISSING  # mlflow | csv | none
    uri: str | None = None  # default: sqlite in mlruns/; or http://..., postgresql://...
    root: str = "${checkout:}/mlruns"  # the default store, and the locks of live runs
    experiment: str = "lr_lightning"
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    def rules(self) -> Mapping[str, Rule]:
        """Return the rule of each key that has one."""
        return {"name": one_of("mlflow", "csv", "none")}
