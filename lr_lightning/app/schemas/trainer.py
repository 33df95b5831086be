"""Schemas of the trainer, of the callbacks that watch a run, and of where the run is recorded."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.app.schemas import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, Problem, Schema, must, one_of, positive
from lr_lightning.errors import ArgumentError

_GAPS = ("gap_loss", "gap_acc", "gl", "pq", "up", "ece", "temperature", "gap_loss_scaled", "overconfident")
OVERFITTING_METRICS = ("probe/loss", "probe/acc", *(f"overfit/{name}" for name in _GAPS))
"""What callbacks.overfitting logs."""

PREVIEW_METRICS = ("val/loss_if_cooled", "val/acc_if_cooled")
"""What callbacks.cooldown_preview logs."""

COST_METRICS = ("cost/seconds", "cost/examples_per_second")
"""What callbacks.cost logs."""

_Count = Annotated[int, AT_LEAST_1]
_Limit = Annotated[int, must("be 1 or more, or -1 for no limit", lambda v: v >= 1 or v == -1)]
_BATCHES = must(
    "be a number of batches (an integer) or a fraction in (0, 1]", lambda v: v > 0 and (isinstance(v, int) or v <= 1)
)
_Batches = Annotated[int | float, _BATCHES]
_THREADS = must("be auto, or a number of threads (1 or more)", lambda v: v == "auto" or (isinstance(v, int) and v > 0))
_Mode = Annotated[str, one_of("min", "max")]
_DECAY = must("lie between 0 and 1, for instance 0.999", lambda v: 0 < v < 1)
_CRITERION = one_of("patience", "gl", "pq", "up")


def _target_rule(text: str) -> str | None:
    from lr_lightning.diagnosis.cost import parse_target

    try:
        parse_target(text)
    except ArgumentError as e:
        return f"{e.problem}."
    return None


def _duration_rule(value: int | str) -> str | None:
    from lr_lightning.schedules import parse_duration

    try:
        parse_duration(value, positive=True)
    except ArgumentError as e:
        return e.problem.removesuffix(".") + "."
    return None


@dataclass
class TrainerConfig(Schema):
    """The arguments of Lightning's Trainer that runs here need; kwargs takes the others."""

    name: str = "auto"
    max_epochs: _Limit = 15  # -1: no limit
    max_steps: _Limit = -1  # -1: no limit
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: _Count = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool = False
    channels_last: bool = True  # halves the time of a CNN's step on a CPU
    compile: bool = False
    # of torch, in each process: auto (the cores that it may use, one for a small network) | a number
    threads: Annotated[int | str, _THREADS] = "auto"
    deterministic: bool = True  # the same seed gives the same weights, bit for bit, on the same machine
    gradient_clip_val: Annotated[float | None, positive("or null for no clipping")] = None
    gradient_clip_algorithm: Annotated[str, one_of("norm", "value")] = "norm"  # norm | value
    accumulate_grad_batches: _Count = 1
    check_val_every_n_epoch: _Count = 1
    limit_train_batches: _Batches = 1.0
    limit_val_batches: _Batches = 1.0
    limit_test_batches: _Batches = 1.0
    # auto: a bar on a terminal, else a line for each epoch | bar | lines | none
    progress: Annotated[str, one_of("auto", "bar", "lines", "none")] = "auto"
    kwargs: dict[str, Any] = field(default_factory=dict)

    def _conflicts(self) -> Iterator[Problem]:
        if self.max_epochs == -1 and self.max_steps == -1:
            text = "-1, and trainer.max_steps: -1: the run would never end. Give one of the two a limit."
            yield Problem("max_epochs", text)
        if isinstance(time := self.kwargs.get("max_time"), int | float):
            text = f"{time} has no unit. Give '00:00:30:00' (days, hours, minutes, seconds) or {{minutes: 30}}."
            yield Problem("kwargs.max_time", text)


@dataclass
class CheckpointConfig(Schema):
    """`last` after every validation, `best` by the monitored metric; both in the run's output folder."""

    monitor: str = "val/acc"
    mode: _Mode = "max"  # max: higher is better | min
    every_n_steps: Annotated[int | None, AT_LEAST_1] = None  # also save `last` every this many optimizer steps
    # keep a checkpoint at every multiple of this duration, to fork the run from: "10%", "2 epochs"
    every: Annotated[int | str | None, _duration_rule] = None


@dataclass
class OverfittingConfig(Schema):
    """The probe (a frozen training subset), and the gap between its metrics and those of the validation set."""

    every_n_validations: _Count = 1


@dataclass
class CostConfig(Schema):
    """What the run costs, and when it reaches a target."""

    # such as val/acc>=0.97; in quotes on a command line: 'callbacks.cost.target="..."'
    target: Annotated[str | None, _target_rule] = None
    # in any currency; the price of a CPU hour if there is no GPU
    price_per_gpu_hour: Annotated[float | None, NOT_NEGATIVE] = None
    gradient_norms: bool = True  # measure the gradient norm of one step in five, for percentiles


@dataclass
class EarlyStoppingConfig(Schema):
    """When to stop before the end; never on the rising half of a cycle, nor before a cooldown."""

    monitor: str = "val/loss"
    # patience: Lightning's | gl | pq | up: Prechelt's; null: never stop
    criterion: Annotated[str | None, _CRITERION] = None
    patience: _Count = 5  # validations without improvement after which the run stops
    # of gl (default 5 percent), pq (0.75) and up (3 strips)
    threshold: Annotated[float | None, positive("or null for the usual one")] = None
    strip: _Count = 5  # validations in a strip, for pq and up
    min_delta: Annotated[float, NOT_NEGATIVE] = 0.0  # least change that counts as improvement, for patience
    mode: _Mode = "min"  # min: lower is better | max

    def _conflicts(self) -> Iterator[Problem]:
        if self.criterion in ("gl", "pq", "up") and (self.mode == "max" or self.monitor.endswith("acc")):
            text = (
                f"'{self.criterion}' takes a loss, which is better when lower, not {self.monitor} (mode={self.mode})."
            )
            key = "callbacks.early_stopping"
            yield Problem("criterion", f"{text} Use {key}.monitor=val/loss, or {key}.criterion=patience.")


@dataclass
class CallbacksConfig(Schema):
    """What watches the run; null turns one off."""

    name: str = "default"
    checkpoint: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    overfitting: OverfittingConfig | None = field(default_factory=OverfittingConfig)
    cost: CostConfig | None = field(default_factory=CostConfig)
    early_stopping: EarlyStoppingConfig | None = field(default_factory=EarlyStoppingConfig)
    # log what a cooldown would reach; null: if the schedule keeps the learning rate high for most of the run
    cooldown_preview: bool | None = None
    # validate, save and test a running average of the weights: its decay for each step, such as 0.999; null: off
    ema: Annotated[float | None, _DECAY] = None
    class_accuracy: bool = False  # at the end: the accuracy of each class, as a table and as summary/acc_of/<class>
    confusion_matrix: bool = False  # at the end: a figure of which class is taken for which
    mistakes: Annotated[int, AT_LEAST_0] = 0  # at the end: a figure of this many of the most confident mistakes
    extra: dict[str, Any] = field(default_factory=dict)  # your own: +callbacks.extra.mine._target_=package.MyCallback

    @property
    def stopping(self) -> EarlyStoppingConfig | None:
        """The keys of early stopping; None if no criterion turns it on."""
        node = self.early_stopping
        return None if node is None or node.criterion is None else node

    def _conflicts(self) -> Iterator[Problem]:
        if self.checkpoint is not None:
            yield from self.bad_monitor("checkpoint.monitor", self.checkpoint.monitor)
        if self.stopping is not None:
            yield from self.bad_monitor("early_stopping.monitor", self.stopping.monitor)
            if self.stopping.criterion == "pq" and self.overfitting is None:
                text = "'pq' needs the probe's loss, and callbacks.overfitting is off. Use gl or up."
                yield Problem("early_stopping.criterion", text)
        if self.cost is not None and self.cost.target is not None and _target_rule(self.cost.target) is None:
            from lr_lightning.diagnosis.cost import parse_target

            yield from self.bad_monitor("cost.target", parse_target(self.cost.target).metric)

    def bad_monitor(self, key: str, monitor: str) -> Iterator[Problem]:
        """Find a metric that no callback logs, though the key monitors it."""
        if monitor in PREVIEW_METRICS and self.cooldown_preview is False:
            yield Problem(key, f"'{monitor}' needs callbacks.cooldown_preview, which is off.")
        for prefixes, names, group, node in (
            (("overfit/", "probe/"), OVERFITTING_METRICS, "callbacks.overfitting", self.overfitting),
            (("cost/",), COST_METRICS, "callbacks.cost", self.cost),
        ):
            if monitor.startswith(prefixes) and node is None:
                yield Problem(key, f"'{monitor}' needs {group}, which is off.")
            elif monitor.startswith(prefixes) and monitor not in names:
                close = did_you_mean(monitor, names)
                yield Problem(key, f"'{monitor}' is not logged. Choices: val/..., {', '.join(names)}.{close}")


@dataclass
class TrackingConfig(Schema):
    """Where the run is recorded."""

    name: Annotated[str, one_of("mlflow", "csv", "none")] = MISSING
    # http://..., postgresql://...; default: MLFLOW_TRACKING_URI, or the database file in root
    uri: str | None = None
    root: str = "${checkout:}/mlruns"  # the default store, and the locks of live runs
    experiment: str | None = None  # default: that of MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, or lr_lightning
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def experiment_name(self) -> str:
        """The experiment's name."""
        return self.experiment or "lr_lightning"
