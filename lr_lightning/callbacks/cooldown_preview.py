"""What the run would reach if its learning rate were cooled down now: a running average of its weights, evaluated."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lr_lightning._checks import check_batches, check_count, check_number
from lr_lightning._lightning import (
    STEP_OUTPUT,
    BaseCallback,
    LightningModule,
    Trainer,
    isolate_rng,
    rank_zero_info,
    rank_zero_warn,
    warn_if_results_are_lost,
)
from lr_lightning.callbacks import batch_norm, per_example
from lr_lightning.callbacks.forward_calls import silent
from lr_lightning.callbacks.per_example import LossFunction, LossLearner, SampleCollector

__all__ = ["CooldownPreview", "RunningAverage"]

LOSS, ACCURACY = "val/loss_if_cooled", "val/acc_if_cooled"
_RISEN = 1.02  # times the lowest preview; in the benchmark no cooldown from there ended lower than the preview


class RunningAverage:
    """A running average of tensors whose half-life is a fixed share of the updates so far.

    At update t the average keeps b = 2^(−1/(share·t)) of itself and takes 1 − b of the new values. The last ``share``
    of the run thus weighs as much as everything before it, at every length, and no length must be known in advance.

    Args:
        values: The tensors by name. The average starts from copies of them.
        share: Half-life as a share of the updates so far, > 0.
        device: Where the average is kept. Default: each part with its tensor.
    """

    def __init__(
        self, values: Iterable[tuple[str, Tensor]], share: float = 0.06, device: torch.device | str | None = None
    ) -> None:
        check_number("share", share, above=True)
        self.share, self.device, self.updates = share, device, 0
        self.values = {name: value.detach().to(device or value.device, copy=True) for name, value in values}

    @torch.no_grad()
    def update(self, values: Iterable[tuple[str, Tensor]]) -> None:
        """Take in the values after one more update; a tensor that is new starts from its value."""
        self.updates += 1
        weight = 1 - 2 ** (-1 / (self.share * self.updates))
        current = {name: value.detach() for name, value in values}
        for name in current.keys() - self.values.keys():
            self.values[name] = current[name].to(self.device or current[name].device, copy=True)
        kept = [self.values[name] for name in current]
        torch._foreach_lerp_(kept, [v.to(k.device) for k, v in zip(kept, current.values(), strict=True)], weight)


class CooldownPreview(BaseCallback):
    """Show at every validation what the run would reach if its learning rate were cooled down now.

    A run at a high learning rate looks worse than it is: its weights jump around the point to which a cooldown would
    bring them. A running average of the weights lies near that point. This callback keeps such an average
    (:class:`RunningAverage`), evaluates it on the validation batches, and logs ``val/loss_if_cooled`` and
    ``val/acc_if_cooled``, which EarlyStopping and ModelCheckpoint may monitor. So runs with different learning rates
    can be compared before any of them has cooled down. For a run that overfits the preview is too low: a real
    cooldown fits the training data more closely than the average does.

    The run does not change: its weights are the same, bit for bit, with and without the callback. The cost is one copy
    of the parameters, one more forward pass of each validation batch, and ``num_batches`` forward passes a validation
    if the module has BatchNorm layers, whose statistics are estimated anew for the average. Of several validation
    loaders the first is used. The averaged weights are in the checkpoint, as this callback's state. Sharded parameters
    (FSDP, DeepSpeed) are not tested.

    Args:
        loss: Function from ``(module, batch)`` to the losses of the examples, with the same default as for
            :class:`~lr_lightning.callbacks.overfitting.OverfittingMonitor`.
        share: Half-life of the average as a share of the updates so far. 0.06 stands for a cooldown of 20 % of the run.
        every_n_validations: Number of validations from one preview to the next.
        num_batches: Training batches of each process for the BatchNorm statistics.
        batches: Those batches, as any iterable that can be iterated again. Default: random examples of the training
            loader's data set, the same each time.
        device: Where the average is kept between validations, such as ``"cpu"``. Default: with the parameters.
        seed: Seed of the draw of the batches.

    Raises:
        ArgumentError: ``share`` <= 0, or a number is < 1.

    Example:
        >>> callback = CooldownPreview(every_n_validations=2)
    """

    def __init__(
        self,
        loss: LossFunction | None = None,
        share: float = 0.06,
        every_n_validations: int = 1,
        num_batches: int = 50,
        batches: Iterable[Any] | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        check_number("share", share, above=True)
        check_count("every_n_validations", every_n_validations, 1)
        check_count("num_batches", num_batches, 1)
        check_batches("batches", batches)
        self.loss, self.share, self.every_n_validations = loss or per_example.default_loss, share, every_n_validations
        self.num_batches, self.batches, self.device, self.seed = num_batches, batches, device, seed
        self._reset()

    def _reset(self) -> None:
        self._average: RunningAverage | None = None
        self._loaded: dict[str, Any] = {}
        self._steps = self._validations = 0
        self._losses: list[tuple[int, float]] = []  # the lowest preview and the last one, each with its step
        self._norms: batch_norm.Norms = {}
        self._active: batch_norm.Norms = {}
        self._statistics: batch_norm.Statistics = {}
        self._collector: SampleCollector | None = None  # while a validation is evaluated a second time
        self._problem: Exception | None = None  # why the loss cannot be computed
        self._loss, self._learner, self._line = self.loss, LossLearner(), ""

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The averaged parameters by name; empty before the training."""
        return {} if self._average is None else dict(self._average.values)

    @property
    def latest(self) -> tuple[int, float] | None:
        """The global step of the last preview and its loss; None before the first."""
        return self._losses[-1] if self._losses else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._reset()
            warn_if_results_are_lost(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average, or continue that of the checkpoint; learn the loss if the module's own is not given."""
        self._learner.wanted = per_example.is_default(self.loss, pl_module)
        self._average = RunningAverage(pl_module.named_parameters(), self.share, self.device)
        self._steps, self._norms = trainer.global_step, batch_norm.tracking_norms(pl_module)
        kept = self._loaded.pop("average", {})
        self._average.updates = self._loaded.pop("updates", 0)
        for name in kept.keys() & self._average.values.keys():
            self._average.values[name].copy_(kept[name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights in after each update."""
        self._learner.close()
        if self._average is not None and trainer.global_step != self._steps:
            self._steps = trainer.global_step
            self._average.update(pl_module.named_parameters())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the BatchNorm statistics of the average; in the sanity check, only try the loss."""
        if trainer.state.fn != "fit" or self._problem is not None:
            return
        due = trainer.sanity_checking or self._validations % self.every_n_validations == 0
        self._validations += not trainer.sanity_checking
        if not due:
            return
        self._collector, self._statistics = SampleCollector(keep=1), {}
        if not trainer.sanity_checking and self._active:
            try:
                with self._cooled(pl_module):
                    self._estimate(trainer, pl_module)
                    self._statistics = batch_norm.statistics(self._active)
            except Exception as problem:  # a monitor never ends a run
                self._problem = problem

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note which BatchNorm layers are trained; frozen ones keep their statistics. Watch the first step."""
        self._learner.watch(pl_module, batch)
        self._active = {name: layer for name, layer in self._norms.items() if layer.training}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Learn the loss of single examples from the first step; where that fails, the default may still do."""
        learned = self._learner.learn(trainer, pl_module, loss)
        if isinstance(learned, str):
            self._line = learned
        elif learned is not None:
            self._loss = learned[0]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the module."""
        self._learner.close()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Evaluate the averaged weights on the batch that the validation has just seen."""
        if self._collector is None or dataloader_idx or self._problem is not None:
            return
        try:
            with isolate_rng(), self._cooled(pl_module), trainer.precision_plugin.forward_context(), silent(pl_module):
                self._collector.add(self._loss(pl_module, batch))
        except Exception as problem:  # a monitor never ends a run
            self._problem = problem

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, before the callbacks that monitor a metric read it."""
        if self._collector is None:
            return
        collector, self._collector = self._collector, None
        if not trainer.strategy.reduce_boolean_decision(self._problem is None, all=True):
            problem, self._problem = self._problem or RuntimeError("another process failed."), None
            if trainer.sanity_checking and per_example.is_default(self.loss, pl_module):
                return  # another loss may be learned from the first step
            rank_zero_warn(
                f"CooldownPreview evaluates nothing, because the loss of the examples of a batch cannot be computed: "
                f"{problem} Pass a function that computes it: CooldownPreview(loss=lambda module, batch: "
                f"{self._line or per_example.EXAMPLE_LINE})."
            )
            self._problem = problem
            return
        sample = collector.finish(trainer, pl_module.device)
        if sample is not None and trainer.sanity_checking and per_example.is_default(self.loss, pl_module):
            # nothing is averaged yet, so this is the loss of the module itself
            per_example.warn_of_other_loss(trainer, self.loss, sample.loss, "CooldownPreview")
        if sample is not None:  # in the sanity check too, where what is monitored must show up
            metrics = {LOSS: sample.loss} | ({} if sample.acc is None else {ACCURACY: sample.acc})
            pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)  # they are equal on all ranks already
            if not trainer.sanity_checking and math.isfinite(sample.loss):
                last = (trainer.global_step, sample.loss)
                self._losses = [min([*self._losses[:1], last], key=lambda found: found[1]), last]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the preview was lowest, if it has risen since: a real cooldown then ends above it."""
        if self._losses:
            (step, lowest), (_, last) = self._losses
            if last > _RISEN * lowest:
                rank_zero_info(
                    f"CooldownPreview: {LOSS} was {lowest:.4g} at step {step} and is {last:.4g} now. A cooldown "
                    f"from here would end at {last:.4g} or higher. A cooldown from step {step} would have ended near "
                    f"{lowest:.4g}. The run probably overfits."
                )

    @contextmanager
    def _cooled(self, module: LightningModule) -> Iterator[None]:
        """Put the averaged weights and their statistics into the module; before the training, change nothing."""
        average = {} if self._average is None else self._average.values
        # Lightning validates in inference mode, whose tensors could not be trained on later.
        with torch.inference_mode(False), torch.no_grad():
            live = [(parameter, average[name]) for name, parameter in module.named_parameters() if name in average]
            weights = [parameter.detach().clone() for parameter, _ in live]
            statistics = batch_norm.statistics(self._active)
            try:
                for parameter, averaged in live:
                    parameter.copy_(averaged)
                batch_norm.set_statistics(self._active, self._statistics)
                yield
            finally:
                for (parameter, _), weight in zip(live, weights, strict=True):
                    parameter.copy_(weight)
                batch_norm.set_statistics(self._active, statistics)

    def _estimate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the statistics of the BatchNorm layers for the average."""
        batches = batch_norm.calibration_batches(trainer, self.num_batches, self.seed, self.batches)
        if batches is None:
            rank_zero_warn(
                f"CooldownPreview {batch_norm.UNREADABLE}, so BatchNorm layers are evaluated with statistics of other "
                "weights. Give it training batches with CooldownPreview(batches=...)."
            )
            return
        forward = _forward if per_example.is_default(self._loss, pl_module) else self._loss
        batch_norm.estimate(trainer, pl_module, self._active, batches, self.num_batches, forward)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights, their BatchNorm statistics at the last validation, and the counts."""
        if self._average is None:
            return {}
        counts = {"updates": self._average.updates, "validations": self._validations, "losses": self._losses}
        return {"average": self.averaged, "statistics": dict(self._statistics), **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the average until the training starts."""
        self._loaded = dict(state_dict)
        self._validations = self._loaded.pop("validations", 0)
        self._statistics = self._loaded.pop("statistics", {})
        self._losses = self._loaded.pop("losses", [])


def _forward(module: LightningModule, batch: Any) -> object:
    """Pass a batch through the module, whatever its labels: those of a training batch may be mixed."""
    return module(batch[0]) if isinstance(batch, tuple | list) else per_example.default_loss(module, batch)
