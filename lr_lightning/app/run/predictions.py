"""What a trained run gets right and wrong: accuracy by class, confusion matrix, and the most confident mistakes."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lr_lightning._loggers import log_figure, log_text
from lr_lightning._plotting import FRAME, new_figure
from lr_lightning.app.schemas.trainer import CallbacksConfig
from lr_lightning.errors import ConfigError
from lr_lightning.lr_finder.results import write_csv
from lr_lightning.training.datamodule import ImageDataModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERS = 25  # classes up to which the cells of a confusion matrix hold their numbers
_MOST_NAMES = 60


@dataclass(frozen=True)
class Mistake:
    """An image that the network took for another class."""

    image: NDArray[np.uint8]  # [C, H, W]
    label: int
    predicted: int
    probability: float  # of the predicted class


@dataclass(frozen=True)
class SplitPredictions:
    """The predictions for a whole split."""

    split: str
    class_names: Sequence[str]
    confusion: NDArray[np.int64]  # [K, K], images of each class (row) by the predicted class
    mistakes: Sequence[Mistake]  # the most confident ones first

    @property
    def class_accuracies(self) -> list[float]:
        """The share of each class's images that is predicted right; nan for a class without images."""
        sizes = self.confusion.sum(1)
        return [self.confusion[i, i] / size if size else math.nan for i, size in enumerate(sizes)]

    def table(self) -> str:
        """Return the accuracy of each class as CSV."""
        rows = zip(self.class_names, self.confusion.sum(1), self.class_accuracies, strict=True)
        return write_csv(["class", "images", "accuracy"], [(name, size, f"{acc:.4f}") for name, size, acc in rows])


def report_predictions(
    node: CallbacksConfig, trainer: Trainer, module: LightningModule, data: ImageDataModule, split: str
) -> SplitPredictions | None:
    """Predict a split with the module's weights, and log what the keys ask for, on the first rank; never raises.

    Returns:
        The predictions; None if no key asks for them, or the module gives no logits.
    """
    if not (node.class_accuracy or node.confusion_matrix or node.mistakes) or not trainer.is_global_zero:
        return None
    try:
        found = predict(trainer, module, data, split, node.mistakes)
        if node.class_accuracy:
            log_text(trainer, found.table(), "class_accuracy.csv")
        if node.confusion_matrix:
            log_figure(trainer, plot_confusion(found), "confusion_matrix.png")
        if found.mistakes:
            log_figure(trainer, plot_mistakes(found), "mistakes.png")
    except Exception as e:  # the run is trained
        rank_zero_warn(f"The predictions of the {split} images are left out ({type(e).__name__}: {e}).")
        return None
    return found


@torch.no_grad()
def predict(
    trainer: Trainer, module: LightningModule, data: ImageDataModule, split: str, most_mistakes: int
) -> SplitPredictions:
    """Predict all images of a split in one process."""
    unshared = copy.copy(data)
    unshared.trainer = None  # no part of a rank
    plugin, device, names = trainer.precision_plugin, trainer.strategy.root_device, data.class_names
    module.to(device).eval()
    confusion, mistakes = np.zeros((len(names), len(names)), np.int64), list[Mistake]()
    loader = unshared.test_dataloader() if split == "test" else unshared.val_dataloader()
    for image, label, *_ in loader:
        batch = plugin.convert_input(unshared.on_after_batch_transfer((image.to(device), label), 0))
        with plugin.forward_context():
            logits: Any = module(batch[0])
        if not isinstance(logits, Tensor) or logits.shape != (len(label), len(names)):
            raise ConfigError(f"{type(module).__name__}(images) does not return logits of {len(names)} classes")
        probability, predicted = (part.cpu() for part in logits.float().softmax(1).max(1))
        np.add.at(confusion, (label.numpy(), predicted.numpy()), 1)
        wrong = (predicted != label).nonzero().flatten().tolist()
        mistakes += [
            Mistake(image[i].cpu().numpy(), int(label[i]), int(predicted[i]), float(probability[i])) for i in wrong
        ]
        mistakes = sorted(mistakes, key=lambda mistake: -mistake.probability)[:most_mistakes]
    return SplitPredictions(split, names, confusion, mistakes)


def plot_confusion(found: SplitPredictions) -> "Figure":
    """Draw the confusion matrix: the shade is the share of a class's images, a number their count."""
    names, count = found.class_names, len(found.class_names)
    side = min(14.0, max(4.5, 2.0 + 0.42 * count))
    figure = new_figure(side + 1, side, dpi=110)
    axes = figure.add_subplot()
    shares = found.confusion / np.maximum(found.confusion.sum(1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    every = -(-count // _MOST_NAMES)
    places = range(0, count, every)
    longest = max(len(names[i]) for i in places)
    axes.set_xticks(list(places), [names[i] for i in places], rotation=0 if longest <= 3 else 90)
    axes.set_yticks(list(places), [names[i] for i in places])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    if count <= _MOST_NUMBERS:
        for (row, column), number in np.ndenumerate(found.confusion):
            if number:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{number}", ha="center", va="center", color=colour, fontsize=8)
    axes.tick_params(colors=FRAME, length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, ax=axes, shrink=0.8, fraction=0.04, label="share of the class's images")
    total, right = int(found.confusion.sum()), int(np.trace(found.confusion))
    axes.set_title(f"{found.split} images: {right / max(total, 1):.2%} of {total:,} right", loc="left")
    return figure


def plot_mistakes(found: SplitPredictions) -> "Figure":
    """Draw the most confident mistakes, each with its class, the predicted one and the probability of that."""
    columns = min(6, len(found.mistakes))
    rows = -(-len(found.mistakes) // columns)
    figure = new_figure(max(5.0, 1.9 * columns), 0.5 + 2.25 * rows, dpi=110)
    figure.suptitle(f"most confident mistakes, {found.split} images", x=0.01, ha="left", fontsize=11)
    for place, mistake in enumerate(found.mistakes, 1):
        axes = figure.add_subplot(rows, columns, place)
        pixels = mistake.image.transpose(1, 2, 0)
        axes.imshow(pixels if pixels.shape[2] in (3, 4) else pixels[:, :, 0], cmap="gray", vmin=0, vmax=255)
        axes.axis("off")
        names = _short(found.class_names[mistake.label]), _short(found.class_names[mistake.predicted])
        axes.set_title(f"{names[0]}, taken\nfor {names[1]} ({mistake.probability:.0%})", fontsize=8, color="black")
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
