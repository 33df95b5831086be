"""The gap between validation and a frozen training probe: the first sign of overfitting."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from lr_lightning.diagnosis.stratify import stratified_subset

PerExample = tuple[Tensor, Tensor | None]
LossFunction = Callable[[LightningModule, Any], Tensor | PerExample]


def classification_loss(module: LightningModule, batch: Any) -> PerExample:
    """Cross-entropy and correctness of each example of a batch ``(x, y)`` whose logits are ``module(x)``.

    Returns:
        Two float tensors of shape ``[batch]``: losses in nats, and 1 where the prediction is right.
    """
    x, y = batch
    logits = module(x)
    return cross_entropy(logits.float(), y, reduction="none"), (logits.argmax(dim=1) == y).float()


def can_measure(module: LightningModule) -> bool:
    """Whether a probe can be measured without being told how: the module has ``per_example_loss`` or a ``forward``."""
    return hasattr(module, "per_example_loss") or type(module).forward is not LightningModule.forward


def _default_loss(module: LightningModule, batch: Any) -> Tensor | PerExample:
    own: LossFunction | None = getattr(type(module), "per_example_loss", None)
    return own(module, batch) if own is not None else classification_loss(module, batch)


class OverfittingMonitor(Callback):
    """Measure the training loss as the validation loss is measured, and log the gap between the two.

    The running training loss is no measure of it: it is averaged over moving weights, with dropout and augmentation
    on. So a frozen, stratified subset of the training set (the probe) is evaluated beside the validation set: the same
    weights, eval mode, no augmentation. Logged with each validation: ``probe/loss``, ``probe/acc``, and, where the
    module logs ``val/loss`` and ``val/acc``, ``overfit/gap_loss`` (validation minus probe) and ``overfit/gap_acc``
    (probe minus validation): both grow as the model overfits. EarlyStopping and ModelCheckpoint may monitor them.

    The run itself is not disturbed: its weights are the same, bit for bit, with and without the monitor.

    Args:
        loss: From ``(module, batch)`` to the losses of the examples (shape ``[batch]``), or to a pair of them and of
            1/0 for right/wrong. Default: the module's own ``per_example_loss(batch)`` where it has one, else
            :func:`classification_loss`.
        probe: Batches of training examples without augmentation, as any iterable that can be iterated again. Default:
            the data module's ``probe_dataloader()``, else as many stratified examples of the training loader's data
            set as the validation set has.
        every_n_validations: Measure at every so many validations.
        seed: Of the draw of the default probe.
        same_loss: Whether the module's ``val/loss`` is this very loss; if not, there is no ``overfit/gap_loss``.

    Raises:
        ValueError: If ``every_n_validations`` < 1.
    """

    def __init__(
        self,
        loss: LossFunction | None = None,
        probe: Iterable[Any] | None = None,
        every_n_validations: int = 1,
        seed: int = 0,
        same_loss: bool = True,
    ) -> None:
        if every_n_validations < 1:
            raise ValueError(f"every_n_validations must be >= 1, got {every_n_validations}")
        self.loss: LossFunction = loss or _default_loss
        self.same_loss = same_loss
        self.probe = probe
        self.every_n_validations, self.seed = every_n_validations, seed
        self._validations = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probe; before the callbacks that monitor a metric look at it."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        with isolate_rng(), torch.no_grad():
            if self.probe is None:
                self.probe = _default_probe(trainer, self.seed)
            if self.probe is None:
                return
            metrics = self._measure(trainer, pl_module)
        val_loss, val_acc = (trainer.callback_metrics.get(key) for key in ("val/loss", "val/acc"))
        if val_loss is not None and self.same_loss:
            metrics["overfit/gap_loss"] = float(val_loss) - metrics["probe/loss"]
        if val_acc is not None and "probe/acc" in metrics:
            metrics["overfit/gap_acc"] = metrics["probe/acc"] - float(val_acc)
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)  # they are equal on all ranks already

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        # One accumulator on the device: nothing is fetched until the last batch.
        total = torch.zeros(3, dtype=torch.float64, device=pl_module.device)
        scored = False
        for batch in self.probe or ():
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            with trainer.precision_plugin.forward_context():
                result = self.loss(pl_module, batch)
            losses, right = result if isinstance(result, tuple) else (result, None)
            total[0] += losses.double().sum()
            total[2] += losses.numel()
            if right is not None:
                scored = True
                total[1] += right.double().sum()
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        loss_sum, right_sum, count = total.tolist()
        metrics = {"probe/loss": loss_sum / count}
        if scored:
            metrics["probe/acc"] = right_sum / count
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations = state_dict["validations"]


def _default_probe(trainer: Trainer, seed: int) -> Iterable[Any] | None:
    """The data module's probe, else a stratified subset of the training loader's data set, else None with a warning."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "probe_dataloader"):
        probe: Iterable[Any] = datamodule.probe_dataloader()
        return probe
    loader = trainer.train_dataloader
    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        rank_zero_warn(
            "OverfittingMonitor cannot draw a probe from this training loader, so it measures nothing: "
            "give it batches of training examples with OverfittingMonitor(probe=...)."
        )
        return None
    size = min(len(dataset), sum(_examples(loader) for loader in _loaders(trainer.val_dataloaders)) or len(dataset))
    chosen = stratified_subset(np.fromiter(_labels(dataset), np.int64), size, seed)
    mine = chosen[trainer.global_rank :: trainer.world_size].tolist()
    return DataLoader(Subset(dataset, mine), batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def _loaders(loaders: Any) -> Iterator[Any]:
    if isinstance(loaders, Sequence):
        yield from loaders
    elif loaders is not None:
        yield loaders


def _examples(loader: Any) -> int:
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if dataset is not None and hasattr(dataset, "__len__") else 0


def _labels(dataset: Any) -> Iterator[int]:
    for name in ("targets", "labels"):
        if hasattr(dataset, name):
            return (int(label) for label in getattr(dataset, name))
    if hasattr(dataset, "tensors"):
        return (
            (int(label) for label in dataset.tensors[1]) if dataset.tensors[1].dim() == 1 else iter([0] * len(dataset))
        )
    return iter([0] * len(dataset))  # labels that cannot be read without decoding everything: a plain random probe
