"""The callback that switches schedule-free optimizers between training and averaged weights."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lr_lightning._checks import check_batches, check_count
from lr_lightning._lightning import (
    BaseCallback,
    BatchSizeFinder,
    LearningRateFinder,
    LightningModule,
    Trainer,
    TrainerFn,
    averaging_callbacks,
    callbacks_of,
    is_compiled,
    rank_zero_warn,
)
from lr_lightning.callbacks import batch_norm
from lr_lightning.callbacks.forward_calls import ForwardRecord
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.errors import ArgumentError, DurationError

__all__ = ["ScheduleFreeMode"]

Forward = Callable[[LightningModule, Any], Any]


class ScheduleFreeMode(BaseCallback):
    """Train, validate and save with the right weights of a schedule-free optimizer (Defazio et al. 2024).

    Such an optimizer takes gradients at one set of weights, and the average of another set is the result. The
    parameters hold the first set during training batches. They hold the averages from the start of each validation
    until the next training batch, and after the fit: validation, the monitors beside it and the checkpoint's
    ``state_dict`` see the averages. Optimizers without ``train()`` and ``eval()`` stay unchanged. Running statistics of
    BatchNorm layers belong to the weights with which they were gathered, so they are estimated for the averages over
    some training batches, with all other layers in eval mode; frozen ones (in eval mode while training) keep theirs.

    Neither validating nor saving changes the training: its weights and statistics are restored bit for bit, and no
    random number or training batch is consumed. A checkpoint also holds the training's weights and statistics, in this
    callback's state, so a run resumes exactly from any checkpoint; this costs one more copy of the parameters. A
    checkpoint that is saved with ``save_weights_only`` within an epoch lacks the averages, since Lightning asks no
    callback then. Sharded parameters (FSDP, DeepSpeed) are not tested.

    Args:
        num_batches: Training batches of each process for the statistics; 0 keeps the statistics of the training.
        batches: The batches for the statistics, as an iterable that can be iterated again. Default: random examples of
            the training loader's data set, the same each time.
        forward: Passes ``(module, batch)`` through the layers. Default: the calls that the first training step makes on
            its batch; if they take what is no part of the batch, ``module(batch[0])``. Where that cannot be, one
            warning before the first update says what to write, and BatchNorm layers keep the training's statistics.
        seed: Seed for drawing these examples.

    Raises:
        ArgumentError: ``num_batches`` < 0, or ``batches`` is an iterator. At the start of a fit: another callback
            averages the weights, or trains without callbacks; LRSchedule changes the momentum; or the checkpoint's
            parameters are not the optimizer's.

    Example:
        >>> callback = ScheduleFreeMode(num_batches=50)
    """

    reads_weights_at_steps = False  # unless the optimizer is schedule-free

    def __init__(
        self, num_batches: int = 50, batches: Iterable[Any] | None = None, forward: Forward | None = None, seed: int = 0
    ) -> None:
        check_count("num_batches", num_batches, 0)
        check_batches("batches", batches)
        self.num_batches, self.batches, self.seed = num_batches, batches, seed
        self.forward = forward
        self._reset()

    def _reset(self) -> None:
        self._training = False  # whether the parameters hold the weights of training
        self._weights: dict[Tensor, Tensor] = {}  # the training's, while the parameters hold the averages
        self._statistics: batch_norm.Statistics = {}
        self._norms: batch_norm.Norms = {}
        self._active: batch_norm.Norms = {}
        self._loaded: dict[str, Any] = {}
        self._step: tuple[ForwardRecord, Any] | None = None  # the first training step, until its backward pass
        self._passes: Forward | None = self.forward
        self._estimates: bool | None = None  # whether statistics can be estimated; None before the first step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._reset()
            for kind in (BatchSizeFinder, LearningRateFinder):
                if callbacks_of(trainer, kind):
                    raise ArgumentError(
                        f"ScheduleFreeMode cannot work beside {kind.__name__}, which trains without callbacks, so that "
                        "nothing would switch a schedule-free optimizer to training. Use it in a separate run."
                    )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what can be checked before anything trains."""
        self.check_fit(trainer, pl_module)

    def check_fit(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse another averaging of the weights; a finder calls this before it measures.

        Raises:
            ArgumentError: WeightAveraging or StochasticWeightAveraging is among the callbacks.
        """
        optimizers, others = _switching(trainer), averaging_callbacks(trainer)
        if optimizers and others:
            other, name = type(others[0]).__name__, type(optimizers[0]).__name__
            raise ArgumentError(
                f"ScheduleFreeMode and {other} would both choose the weights that are validated and saved, and {name} "
                f"averages them already. Remove {other}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the weights of training; after a resume these are the checkpoint's."""
        if not (optimizers := _switching(trainer)):
            return
        _check_schedule(trainer)
        self._norms = batch_norm.tracking_norms(pl_module)
        if self._loaded:
            parameters, kept = list(_parameters(optimizers)), self._loaded["weights"]
            if len(parameters) != len(kept):
                raise ArgumentError(
                    f"ScheduleFreeMode: the checkpoint holds {len(kept)} parameters of schedule-free optimizers, and "
                    f"they have {len(parameters)} now. Resume with the module from which it was saved."
                )
            self._weights = dict(zip(parameters, kept, strict=True))
            self._statistics = self._loaded["statistics"]
        self._train(optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Switch back to the weights of training after a validation."""
        if optimizers := _switching(trainer):
            if not self._training:
                self._train(optimizers)
            self._active = {name: layer for name, layer in self._norms.items() if layer.training}
            if self._estimates is None:
                self._prepare_estimate(trainer, pl_module, batch)

    def _prepare_estimate(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Find out before the first update whether and how the statistics can be estimated."""
        self._estimates = bool(self._active) and self.num_batches > 0
        if not self._estimates:
            return
        if batch_norm.calibration_batches(trainer, self.num_batches, self.seed, self.batches) is None:
            self._give_up(batch_norm.UNREADABLE, "batches=...")
        elif self.forward is None and is_compiled(pl_module):
            self._passes = lambda module, batch: module(batch[0])
        elif self.forward is None:
            self._step = ForwardRecord(pl_module), batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Learn from the first training step how a batch passes through the layers."""
        if self._step is None:
            return
        (record, batch), self._step = self._step, None
        with suppress(Exception):  # a batch of a library's own class
            if calls := record.passes(batch):
                self._passes = lambda module, batch: [call(module, batch) for call in calls]
        record.close()
        if self._passes is None and isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
            self._passes = lambda module, batch: module(batch[0])
        if self._passes is None:
            line = "forward=lambda module, batch: module(batch['x'])"
            self._give_up("cannot tell from the training step how a batch passes through the layers", line)

    def on_train_batch_end(self, *_: Any) -> None:
        """Release the module if the first step made no backward pass; the next one is watched."""
        if self._step is not None:
            self._step[0].close()
            self._step, self._estimates = None, None

    def on_exception(self, *_: Any) -> None:
        """Release the module."""
        if self._step is not None:
            self._step[0].close()

    def _give_up(self, reason: str, remedy: str) -> None:
        self._estimates = False
        rank_zero_warn(
            f"ScheduleFreeMode {reason}, so BatchNorm layers are evaluated with statistics of other weights. Write "
            f"ScheduleFreeMode({remedy})."
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switch to the averages until the next training batch, so that checkpoints saved in between have them too."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._eval(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module with the averages."""
        self._eval(trainer, pl_module)

    def _train(self, optimizers: list[Any]) -> None:
        for optimizer in optimizers:
            optimizer.train()
        # The optimizer's own switch back has rounding errors: every validation would change the training a little.
        with torch.no_grad():
            for parameter, value in self._weights.items():
                parameter.copy_(value)
            batch_norm.set_statistics(self._norms, self._statistics)
        self._weights, self._statistics, self._loaded, self._training = {}, {}, {}, True

    def _eval(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._training:
            return
        optimizers = _switching(trainer)
        # Lightning validates in inference mode, whose tensors could not be trained on later.
        with torch.inference_mode(False), torch.no_grad():
            self._weights = {parameter: parameter.detach().clone() for parameter in _parameters(optimizers)}
            self._statistics = batch_norm.statistics(self._norms)
            for optimizer in optimizers:
                optimizer.eval()
            self._training = False
            if self._active and self._estimates and self._passes is not None:
                try:
                    batches = batch_norm.calibration_batches(trainer, self.num_batches, self.seed, self.batches)
                    size, norms = self.num_batches, self._active
                    batch_norm.estimate(trainer, pl_module, norms, batches or (), size, self._passes)
                except Exception as e:
                    batch_norm.set_statistics(self._norms, self._statistics)
                    self._give_up(f"fails in its estimate ({type(e).__name__}: {e})", "batches=..., forward=...")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the averages in the checkpoint's ``state_dict``, and the training's weights in this callback's state."""
        optimizers = _switching(trainer)
        training = self._training
        if training:
            self._eval(trainer, pl_module)
            live = trainer.strategy.lightning_module_state_dict().items()
            checkpoint["state_dict"] = {key: each.clone() if isinstance(each, Tensor) else each for key, each in live}
            # All optimizers, in their order; their state does not contain the averages, so nothing must be copied.
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        if self._weights:
            # A parameter that was unfrozen in between is not in _weights: it holds the weights of training.
            weights = [self._weights.get(p, p.detach()).clone() for p in _parameters(optimizers)]
            own = {"weights": weights, "statistics": dict(self._statistics)}
            checkpoint.setdefault("callbacks", {})[self.state_key] = own
        if training:
            self._train(optimizers)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the weights of training until it starts; Lightning restores the optimizer's state in between."""
        self._loaded = state_dict


def _switching(trainer: Trainer) -> list[Any]:
    """Return the optimizers that must be told by ``train()`` and ``eval()`` how their parameters are used."""
    # asked at every batch: a runtime-checkable protocol would take twenty times as long
    return [optimizer for optimizer in trainer.optimizers if hasattr(optimizer, "train") and hasattr(optimizer, "eval")]


def _parameters(optimizers: list[Any]) -> Iterable[Tensor]:
    return (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])


def _check_schedule(trainer: Trainer) -> None:
    """Refuse a scheduled momentum, from which the averages are computed; warn of a falling learning rate."""
    clock, switching = trainer_clock(trainer), _switching(trainer)
    for callback, (index, optimizer) in product(callbacks_of(trainer, LRSchedule), enumerate(trainer.optimizers)):
        if optimizer not in switching:
            continue
        name = type(optimizer).__name__
        if callback.momentum is not None:
            raise ArgumentError(
                f"LRSchedule(momentum=...): {name} averages its weights by its momentum, which must stay constant. "
                "Remove momentum=."
            )
        schedule, end = callback.schedule_of(index), clock.total
        try:
            falls = end is not None and schedule(end - 1, clock) < 0.5 * schedule(end // 2, clock)
        except DurationError:
            return  # LRSchedule itself raises an error that says what is wrong
        if falls:
            rank_zero_warn(
                f"{name} averages its weights instead of lowering the learning rate, but the schedule lowers it. Use a "
                "constant schedule after a warmup, such as Warmup('5%', then=Constant())."
            )
