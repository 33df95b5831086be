"""What schedule-free optimizers need around them: the switch between training and averaged weights."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._lightning import callbacks_of, to_device
from lr_lightning.callbacks import batch_norm
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.errors import DurationError

__all__ = ["ScheduleFreeMode"]

Forward = Callable[[LightningModule, Any], Any]


class TwoModes(Protocol):
    """An optimizer that must be told whether its parameters are to be trained or used."""

    param_groups: list[dict[str, Any]]

    def train(self) -> None:
        """Put the weights at which gradients are taken into the parameters."""

    def eval(self) -> None:
        """Put the averaged weights into the parameters."""


def forward_inputs(module: LightningModule, batch: Any) -> Any:
    """Run a module on a batch ``(x, ...)`` or ``x``."""
    return module(batch[0] if isinstance(batch, tuple | list) else batch)


class ScheduleFreeMode(Callback):
    """Train, validate and save with the right weights of a schedule-free optimizer (Defazio et al. 2024).

    Such an optimizer takes gradients at one set of weights and gives the average of another to be used. Its parameters
    hold the first set during training batches, and the averages from each validation's start until the next training
    batch, and after the fit. Validation and whatever is measured beside it, and the checkpoint's ``state_dict``, have
    the averages. Optimizers without ``train()`` and ``eval()`` are left alone.

    Running statistics of BatchNorm layers belong to the weights they were gathered with, so they are estimated anew
    for the averages, over some training batches with all other layers in eval mode. Layers that are frozen (in eval
    mode while training) keep theirs.

    Neither validating nor saving changes the training: its weights and statistics are put back as they were, bit for
    bit, and no random number or training batch is used up. A checkpoint holds them too, in this callback's state, so a
    resumed run goes on exactly, wherever it was saved; that is one more copy of the parameters. A checkpoint saved
    with ``save_weights_only`` in mid-epoch misses the averages, since Lightning asks no callback then.

    Unverified with sharded parameters (FSDP, DeepSpeed).

    Args:
        num_batches: Training batches of each process for the statistics; 0 leaves them as gathered in training.
        batches: Those batches, as any iterable that can be iterated again. Default: drawn from the training loader's
            data set, the same each time.
        forward: From ``(module, batch)`` through the layers. Default: ``module(batch[0])``.
        seed: Of that draw.

    Raises:
        ValueError: If ``num_batches`` < 0. At the start of a fit: if LRSchedule moves the momentum, or the checkpoint's
            parameters are not the optimizer's.

    Example:
        >>> callback = ScheduleFreeMode(num_batches=50)
    """

    def __init__(
        self,
        num_batches: int = 50,
        batches: Iterable[Any] | None = None,
        forward: Forward | None = None,
        seed: int = 0,
    ) -> None:
        if num_batches < 0:
            raise ValueError(f"num_batches must be >= 0, got {num_batches}")
        self.num_batches, self.batches, self.seed = num_batches, batches, seed
        self.forward: Forward = forward or forward_inputs
        self._reset()

    def _reset(self) -> None:
        self._training = False  # which weights the parameters hold
        self._weights: dict[Tensor, Tensor] = {}  # those of training, while the parameters hold the averages
        self._statistics: batch_norm.Statistics = {}
        self._norms: batch_norm.Norms = {}
        self._active: batch_norm.Norms = {}
        self._loaded: dict[str, Any] = {}

    # -- switching ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to train: with the weights of the checkpoint, if there is one."""
        optimizers = _switching(trainer)
        if not optimizers:
            return
        _check_schedule(trainer)
        self._norms = batch_norm.tracking_norms(pl_module)
        if self._loaded:
            parameters, kept = list(_parameters(optimizers)), self._loaded["weights"]
            if len(parameters) != len(kept):
                raise ValueError(
                    f"ScheduleFreeMode: the checkpoint holds {len(kept)} parameters of schedule-free optimizers, and "
                    f"they have {len(parameters)} now. Resume with the module it was saved from."
                )
            self._weights = dict(zip(parameters, kept, strict=True))
            self._statistics = self._loaded["statistics"]
        self._train(optimizers)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go back to training after a validation."""
        optimizers = _switching(trainer)
        if optimizers and not self._training:
            self._train(optimizers)
        if optimizers:
            self._active = {name: layer for name, layer in self._norms.items() if layer.training}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averages; they stay until the next training batch, for the checkpoints that are saved now."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._eval(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module with the averages."""
        self._eval(trainer, pl_module)

    def _train(self, optimizers: list[TwoModes]) -> None:
        for optimizer in optimizers:
            optimizer.train()
        # The optimizer's own way back has rounding errors: every validation would change the training a little.
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
            if self._active and self.num_batches:
                self._estimate(trainer, pl_module)

    def _estimate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the statistics of the BatchNorm layers for the weights that the parameters hold."""
        batches = self.batches
        with isolate_rng():
            if batches is None:
                batches = batch_norm.calibration_batches(trainer, self.num_batches, self.seed)
            if batches is None:
                rank_zero_warn(
                    "ScheduleFreeMode cannot take batches from this training loader without disturbing it, so "
                    "BatchNorm layers are evaluated with statistics of other weights: give it training batches with "
                    "ScheduleFreeMode(batches=...)."
                )
                return
            with batch_norm.estimating(pl_module, self._active):
                self._run(trainer, pl_module, batches)
        batch_norm.average_over_ranks(trainer, self._active)

    def _run(self, trainer: Trainer, pl_module: LightningModule, batches: Iterable[Any]) -> None:
        full = None
        for number, batch in enumerate(batches):
            if number == self.num_batches:
                break
            batch = to_device(trainer, batch)
            size = _size(batch)
            full = size if full is None else full
            if size != full:
                break  # a small last batch would weigh as much as a whole one, and one example has no variance
            with trainer.precision_plugin.forward_context():
                self.forward(pl_module, batch)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the averages into the checkpoint's ``state_dict``, and what training goes on with into its own state."""
        optimizers = _switching(trainer)
        training = self._training
        if training:
            self._eval(trainer, pl_module)
            live = trainer.strategy.lightning_module_state_dict()
            checkpoint["state_dict"] = {
                key: value.clone() if isinstance(value, Tensor) else value for key, value in live.items()
            }
            # Of all optimizers, in their order; the averages do not lie in there, so nothing needs to be copied.
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
        if self._weights:
            # A parameter that was unfrozen in between holds what it is trained from.
            weights = [self._weights.get(p, p.detach()).clone() for p in _parameters(optimizers)]
            state = {"weights": weights, "statistics": dict(self._statistics)}
            checkpoint.setdefault("callbacks", {})[self.state_key] = state
        if training:
            self._train(optimizers)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what training goes on with until it starts: the optimizer's own state is restored in between."""
        self._loaded = state_dict


def _switching(trainer: Trainer) -> list[TwoModes]:
    return [cast(TwoModes, optimizer) for optimizer in trainer.optimizers if _has_two_modes(optimizer)]


def _has_two_modes(optimizer: Optimizer) -> bool:
    # asked at every batch: a runtime-checkable protocol would take twenty times as long
    return hasattr(optimizer, "train") and hasattr(optimizer, "eval")


def _parameters(optimizers: list[TwoModes]) -> Iterable[Tensor]:
    return (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"])


def _size(batch: Any) -> int | None:
    """Examples in a batch, where it is plain to see."""
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    return len(first) if isinstance(first, Tensor) and first.ndim else None


def _check_schedule(trainer: Trainer) -> None:
    """Refuse a moving momentum, by which the averages are computed back; warn of a falling rate."""
    for callback in callbacks_of(trainer, LRSchedule):
        clock = trainer_clock(trainer)
        for index, optimizer in enumerate(trainer.optimizers):
            schedule = callback.schedule[index] if isinstance(callback.schedule, tuple) else callback.schedule
            if not _has_two_modes(optimizer):
                continue
            if callback.momentum is not None:
                raise ValueError(
                    f"LRSchedule(momentum=...): {type(optimizer).__name__} averages its weights by its momentum, which "
                    "must stay as it is. Remove momentum=."
                )
            if clock.total is None:
                continue
            try:
                falls = schedule(clock.total - 1, clock) < 0.5 * schedule(clock.total // 2, clock)
            except DurationError:
                return  # LRSchedule itself says what is wrong
            if falls:
                rank_zero_warn(
                    f"{type(optimizer).__name__} averages its weights in place of letting the rate fall, but the "
                    "schedule lets it fall: a constant one after a warm-up is what it is meant for."
                )
