"""`scripts/predict.py`: predict the classes of new images with a trained run."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lr_lightning.app import build
from lr_lightning.app.checks import validate
from lr_lightning.app.composition import compose_config, prepare
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, print_error
from lr_lightning.app.run.checkpoints import load_weights, read_checkpoint
from lr_lightning.app.run.resume import ALLOWED_TARGETS, RunArgument, read_config, run_folder
from lr_lightning.app.run.train import quiet
from lr_lightning.errors import ConfigError
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.decode import EncodedImages, Format
from lr_lightning.training.images import Images, UnreadableImage
from lr_lightning.training.transforms import Normalizer

__all__ = ["Prediction", "Predictor", "images_of", "run"]

_RUN = RunArgument("RUN", "--trust {}")
_BATCH_SIZE = 256


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        image: Its path.
        label: The name of its most probable class, as in training.
        probability: The probability of that class, in [0, 1].
    """

    image: Path
    label: str
    probability: float


@dataclass(frozen=True)
class _TrainingData:
    """The data that a run was trained on, as its checkpoint describes it."""

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    normalizer: Normalizer

    @property
    def in_channels(self) -> int:
        return self.normalizer.offset.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Predictor:
    """A trained run's network, with the normalisation and the class names of its training data.

    Args:
        folder: The run's output folder.
        checkpoint: ``"best"`` or ``"last"``.
        trust: Targets outside this project that the run's config may name.

    Raises:
        ConfigError: If the run has no such checkpoint, or the network cannot be built from it.
    """

    def __init__(self, folder: Path, checkpoint: str = "best", trust: Sequence[str] = ()) -> None:
        path = folder / "checkpoints" / f"{checkpoint}.ckpt"
        if not path.is_file():
            raise ConfigError(
                f"RUN: {path} is not there. --checkpoint takes another one; a run of find_lr.py has none."
            )
        config = validate(read_config(folder / "config.yaml", {*ALLOWED_TARGETS, *trust}, _RUN))
        stored = read_checkpoint(path, "RUN")
        self.data = _trained_on(stored, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net = build.build_net(config.model, self.data)
        module = build.build_module(config.module, config.optimizer, net, self.data)
        load_weights(module, stored, f"RUN: {path}")
        self.module = module.to(self.device).eval()

    def __call__(self, paths: Sequence[Path]) -> Iterator[Prediction | UnreadableImage]:
        """Predict each image, in order; for an image that cannot be read, yield its error.

        Raises:
            ConfigError: If the module does not return logits for images.
        """
        height, width = self.data.image_size
        fmt = Format(self.data.in_channels, height, width)
        for start in range(0, len(paths), _BATCH_SIZE):
            chunk = paths[start : start + _BATCH_SIZE]
            decoded = [_decoded(path, fmt) for path in chunk]
            readable = [pixels for pixels in decoded if isinstance(pixels, Tensor)]
            best = iter(self._best(torch.cat(readable)) if readable else ())
            for path, pixels in zip(chunk, decoded, strict=True):
                yield Prediction(path, *next(best)) if isinstance(pixels, Tensor) else pixels

    def _best(self, pixels: Tensor) -> list[tuple[str, float]]:
        """Return the most probable class of each image, uint8 [B, C, H, W], and its probability."""
        with torch.inference_mode():
            logits = self.module(self.data.normalizer.to(self.device)(pixels.to(self.device)))
        expected = (len(pixels), self.data.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            raise ConfigError(
                f"RUN: {type(self.module).__name__}(images) does not return logits of shape {list(expected)}. "
                "Give it a forward that does."
            )
        probability, index = logits.float().softmax(1).max(1)
        return [(self.data.class_names[i], p) for i, p in zip(index.tolist(), probability.tolist(), strict=True)]


def run(
    root: Path,
    name: str,
    images: Sequence[str],
    *,
    table: Path | None = None,
    checkpoint: str = "best",
    trust: Sequence[str] = (),
    output_root: Path | None = None,
    store: Path | None = None,
    uri: str | None = None,
) -> int:
    """Predict, and print a table on a terminal, or CSV into a file or a pipe.

    Args:
        root: The checkout.
        name: The run: its output folder or its MLflow run id.
        images: Files and folders.
        table: A CSV file to write as well.
        checkpoint: ``"best"`` or ``"last"``.
        trust: Targets outside this project that the run's config may name.
        output_root: Folder of the runs' output folders, if it is not the checkout's.
        store: Folder of the default store, if it is not the checkout's.
        uri: Another store.

    Returns:
        The exit status: 0; 1 if no image could be read; 2 for bad input.
    """
    quiet()
    try:
        prepare(root)
        cfg, _ = compose_config(root, [])
        cfg.output_root = str(output_root or cfg.output_root)
        cfg.tracking.root, cfg.tracking.uri = str(store or cfg.tracking.root), uri
        predictor = Predictor(run_folder(name, cfg, _RUN), checkpoint, trust)
        paths = images_of(images)
        done = _predicted(predictor, paths)
        if table is not None:
            with table.open("w", newline="", encoding="utf-8") as file:
                _write_csv(done, file)
    except ConfigError as e:
        print_error(e)
        return BAD_INPUT
    except OSError as e:
        print_error(f"--csv: {e}")
        return BAD_INPUT
    if sys.stdout.isatty():
        _print_table(done)
    else:
        _write_csv(done, sys.stdout)
    if done:
        return 0
    print_error(
        f"IMAGES: no image could be read ({len(paths)} skipped). Give image files that Pillow reads, such as PNG or "
        "JPEG, or folders of them."
    )
    return FAILED


def _predicted(predictor: Predictor, paths: Sequence[Path]) -> list[Prediction]:
    """Return the predictions, and print which images are skipped."""
    done = []
    for result in predictor(paths):
        if isinstance(result, Prediction):
            done.append(result)
        else:
            print(f"skipped: {result.what} {result.reason}", file=sys.stderr)
    return done


def images_of(names: Sequence[str]) -> list[Path]:
    """Return the named files, and the files below the named folders, sorted and without hidden ones.

    Raises:
        ConfigError: If a folder has no file in it.
    """
    paths: list[Path] = []
    for path in map(Path, names):
        if not path.is_dir():
            paths.append(path)
            continue
        below = sorted(p for p in path.rglob("*") if p.is_file())
        found = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        if not found:
            raise ConfigError(f"IMAGES: the folder {path} has no files in it. Give one with images.")
        paths += found
    return paths


def _trained_on(checkpoint: dict[str, Any], path: Path) -> _TrainingData:
    state = checkpoint.get(ImageDataModule.__qualname__, {})
    if "class_names" not in state:
        raise ConfigError(f"RUN: {path} does not name its classes: it is of an older version. Train again.")
    height, width = state["image_size"]
    return _TrainingData(tuple(state["class_names"]), (height, width), Normalizer(state["offset"], state["scale"]))


def _decoded(path: Path, fmt: Format) -> Tensor | UnreadableImage:
    """Return one image, uint8 [1, C, H, W], resized as in training, or its error."""
    first: NDArray[np.int64] = np.zeros(1, np.int64)
    try:
        return EncodedImages(Images(first, encoded=[path]), fmt).take(first)
    except UnreadableImage as e:
        return e


def _write_csv(done: Sequence[Prediction], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "prediction", "probability"])
    writer.writerows([p.image, p.label, f"{p.probability:.4f}"] for p in done)


def _print_table(done: Sequence[Prediction]) -> None:
    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("prediction")
    table.add_column("probability", justify="right")
    for p in done:
        table.add_row(str(p.image), p.label, f"{p.probability:.1%}")
    Console(highlight=False, markup=False).print(table)
