"""Measure the validation loss or accuracy of a module in the middle of a dry run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

from lr_lightning import _lightning
from lr_lightning._batches import loaded_examples
from lr_lightning._lightning import isolate_rng
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.dry_run import Batches, DryRun, validation_loaders

__all__ = ["LOGGED_NAMES", "Validation", "ValidationMetric"]

ValidationMetric = Literal["val_loss", "accuracy"]

LOGGED_NAMES = {
    "val_loss": ("val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss", "validation/loss", "loss"),
    "accuracy": ("val_acc", "val/acc", "val_accuracy", "val/accuracy", "valid_acc", "valid/acc", "acc", "accuracy"),
}
"""The usual names of a validation's metrics."""


class Validation:
    """The validation loss or accuracy over the first batches of the first validation loader, the same at each call.

    The value is what the module's own ``validation_step`` logs under ``monitor`` or, without ``monitor``, under one of
    the usual names; or, for a loss, what it returns. Batches are weighted by their size; a torchmetrics metric computes
    over all of them. BatchNorm layers in training use the statistics of the batch, since their running statistics
    belong to other weights, or to none in a fresh network. The dry run must have been entered.
    """

    def __init__(self, dry_run: DryRun, metric: ValidationMetric, *, batches: int, monitor: str | None = None) -> None:
        self.dry_run, self.metric, self.monitor = dry_run, metric, monitor
        trainer, module = dry_run.trainer, dry_run.module
        available = _lightning.has_validation_loader(trainer) and _lightning.overrides("validation_step", module)
        if not available or trainer.limit_val_batches == 0:
            raise ArgumentError(
                f"metric={metric!r} needs a validation loader and a validation_step, and there is none. "
                "Give them to the Trainer, or take metric='loss'."
            )
        with isolate_rng():
            combined = validation_loaders(trainer)
        dry_run.save({"val_dataloader": combined.flattened})
        self._several = _lightning.is_sequential(combined)
        loaders = Batches(combined)
        with dry_run.undo():
            try:
                count = min(batches, (combined.limits or [batches])[0])
                self._batches = [item[0] for item in islice(iter(loaders.copy), int(count))]
            finally:
                loaders.close()
        first = combined.flattened[0]
        self._sizes = [loaded_examples(first, batch, index) or 1 for index, batch in enumerate(self._batches)]

    def __call__(self) -> float:
        """Return the value for the present weights, as a mean over all processes, without a trace in the training."""
        dry_run, trainer, module = self.dry_run, self.dry_run.trainer, self.dry_run.module
        logged: dict[str, list[tuple[Any, float]]] = {}
        returned: list[tuple[Any, float]] = []
        weight = 1.0

        def take(name: str, value: Any) -> None:
            logged.setdefault(name, []).append((value, weight))

        with isolate_rng(), _evaluating(dry_run, take, 1 in self._sizes), torch.no_grad():
            for hook in ("on_validation_start", "on_validation_epoch_start"):
                _lightning.call_module_hook(trainer, hook)
            for index, (host, size) in enumerate(zip(self._batches, self._sizes, strict=True)):
                batch, weight = _lightning.to_device(trainer, host), float(size)
                output = _lightning.call_validation_step(trainer, batch, index, 0 if self._several else None)
                loss = output.get("loss") if isinstance(output, Mapping) else output
                if isinstance(loss, Tensor):
                    returned.append((loss, weight))
            weight = 1.0
            _lightning.call_module_hook(trainer, "on_validation_epoch_end")
            names = (self.monitor,) if self.monitor else LOGGED_NAMES[self.metric]
            fallback = returned if self.metric == "val_loss" and self.monitor is None else []
            found = next((logged[name] for name in names if name in logged), fallback)
            if not found:
                raise ArgumentError(
                    f"metric={self.metric!r}: the validation of {type(module).__name__} logs "
                    f"{', '.join(map(repr, sorted(logged))) or 'nothing'}, none of which is {' or '.join(names[:4])}. "
                    "Name it with monitor=..., or take metric='loss'."
                )
            value = _mean(found)
            _lightning.call_module_hook(trainer, "on_validation_end")
        if trainer.world_size > 1:
            value = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="mean")
        return float(value)


@contextmanager
def _evaluating(dry_run: DryRun, take: Callable[[str, Any], None], single: bool) -> Iterator[None]:
    """Set the Trainer's stage and the module's mode for a validation."""
    modes = [(layer, layer.training) for layer in dry_run.module.modules()]
    try:
        dry_run.trainer.validating = True
        dry_run.log = take
        dry_run.module.eval()
        for layer, mode in modes:
            if mode and isinstance(layer, _BatchNorm) and not single:  # a single example has no variance
                layer.training = True  # running statistics lag behind weights that change this fast
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        dry_run.log = None
        dry_run.trainer.training = True


def _mean(found: list[tuple[Any, float]]) -> Tensor:
    metric = found[-1][0]
    if isinstance(metric, Metric):
        value: Tensor = metric.compute()
        metric.reset()
        return value.detach().double().mean()
    total = sum(weight for _, weight in found)
    parts = [torch.as_tensor(value).detach().double().mean() * (weight / total) for value, weight in found]
    return torch.stack(parts).sum()
