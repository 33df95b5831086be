"""The app's own LightningModule: a network trained as a classifier."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lr_lightning._checks import check_count
from lr_lightning.errors import ArgumentError, UsageError

Batch = tuple[Tensor, Tensor]


class LitClassifier(L.LightningModule):
    """Cross-entropy training of a network, with exact epoch means of loss and accuracy on validation and test data.

    The training step logs nothing: callbacks take what they record from the step's output, on the device. `val/loss`,
    `val/acc`, `test/loss` and `test/acc` are means over examples, not over batches, and over all processes. Label
    smoothing, class weights and mixed labels act on the training loss alone: losses on held-out data and of the probe
    are the plain cross-entropy, comparable with and without them. A checkpoint holds the network's weights only, under
    "net.".

    Args:
        net: Maps images (batch, channels, height, width) to logits (batch, num_classes).
        optimizer: Called with `net`, returns its optimizer; see `OptimizerFactory`.
        num_classes: Number of classes, >= 2.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        class_weights: ``"balanced"`` weighs the training loss of an example by N / (K · n), for N images in K classes,
            n of them in its own, so that every class counts alike; None weighs all examples alike.
        class_sizes: Number of training images of each class, for these weights.
        compile: Whether to run `net` through `torch.compile`; it compiles at the first batch.

    Raises:
        ArgumentError: An argument is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[nn.Module], Optimizer],
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | None = None,
        class_sizes: Sequence[int] | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes, 2)
        if not 0 <= label_smoothing < 1:
            raise ArgumentError(f"must be in [0, 1), got {label_smoothing}", "label_smoothing")
        if class_weights not in (None, "balanced"):
            raise ArgumentError(f"must be 'balanced' or None, got {class_weights!r}", "class_weights")
        self.net = net
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        weights = _balanced(class_sizes) if class_weights is not None and class_sizes is not None else None
        self.register_buffer("class_weights", weights, persistent=False)
        self._make_optimizer = optimizer
        self.lr: float | None = getattr(optimizer, "lr", None)  # the peak learning rate; a finder replaces it
        self.val_loss, self.val_acc = _mean(), _accuracy(num_classes)
        self.test_loss, self.test_acc = _mean(), _accuracy(num_classes)
        if compile:
            self.net.compile()  # in place: a wrapped network would change the names of the weights in checkpoints

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a plain value of a plain attribute without the search for parameters and submodules.

        Lightning writes the running hook's name forty times a step.
        """
        if (value is None or type(value) is str) and name in self.__dict__:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> "LitClassifier":
        """Load the weights of a checkpoint into a new module of this network: give the arguments of ``__init__``."""
        if "net" not in kwargs:
            raise UsageError(
                "a checkpoint holds the weights and not the network. Give load_from_checkpoint the arguments net=, "
                "optimizer= and num_classes=. For a run of the app, Predictor(Path(RUN)) of "
                "lr_lightning.app.commands.predict builds its network, and scripts/export.py RUN writes one that needs "
                "torch alone."
            )
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of a batch of images."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean training loss of a batch, in nats; the labels may be shares of the classes."""
        images, labels = batch
        return F.cross_entropy(self(images), labels, self.class_weights, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `val/loss` and `val/acc`."""
        self._evaluate(batch, "val", self.val_loss, self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to `test/loss` and `test/acc`."""
        self._evaluate(batch, "test", self.test_loss, self.test_acc)

    def configure_optimizers(self) -> Optimizer:
        """Build the optimizer over the network, so that parameters have the network's names."""
        return self._make_optimizer(self.net)

    def _evaluate(self, batch: Batch, split: str, loss: MeanMetric, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
        accuracy.update(logits, labels)
        self.log(f"{split}/loss", loss, on_step=False, on_epoch=True)
        self.log(f"{split}/acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)


# Lightning asks for the signature at every step, and inspecting a function takes longer than a small layer.
LitClassifier.training_step.__signature__ = signature(LitClassifier.training_step)  # type: ignore[attr-defined]


def _balanced(sizes: Sequence[int]) -> Tensor:
    """Return a weight for each class, with the mean 1 over the images; 0 for a class without images."""
    counts = torch.tensor(sizes, dtype=torch.float32)
    return torch.where(counts > 0, counts.sum() / (counts > 0).sum() / counts.clamp_min(1), 0.0)


def _mean() -> MeanMetric:
    # A check for NaN would wait for the device at every batch, and a dropped NaN would be hidden. Without the check
    # torchmetrics 1.9 ignores weights, so this mean takes one loss per example and not a batch's mean.
    return MeanMetric(nan_strategy="disable")


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    # A check of the labels' range would wait for the device at every batch; cross_entropy refuses bad labels itself.
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)
