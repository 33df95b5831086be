"""`scripts/predict.py`: predict the classes of new images with a trained run."""

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from lr_lightning._threads import threads_for
from lr_lightning.app import build
from lr_lightning.app.composition import compose_config, prepare, validate
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


class Prediction(NamedTuple):
    """The most probable class of an image, by its name in training, and its probability, in [0, 1]."""

    image: Path
    label: str
    probability: float


class _TrainingData(NamedTuple):
    """The data that a run was trained on, as its checkpoint describes it."""

    class_names: Sequence[str]
    num_classes: int
    image_size: tuple[int, int]
    in_channels: int
    normalizer: Normalizer


class Predictor:
    """A trained run's network, with the normalisation and the class names of its training data.

    ``trust`` are the targets outside this project that the run's config may name.
    """

    def __init__(self, folder: Path, checkpoint: str = "best", trust: Sequence[str] = ()) -> None:
        path = folder / "checkpoints" / f"{checkpoint}.ckpt"
        if not path.is_file():
            raise ConfigError(f"RUN: {path} is not there. --checkpoint takes another one; find_lr.py saves none.")
        config = validate(read_config(folder / "config.yaml", {*ALLOWED_TARGETS, *trust}, _RUN))
        stored = read_checkpoint(path, "RUN")
        self.data = _trained_on(stored, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(threads_for())
        net = build.build_net(config.model, self.data)
        module = build.build_module(config.module, config.optimizer, net, self.data)
        load_weights(module, stored, f"RUN: {path}")
        self.module = module.to(self.device).eval()

    def __call__(self, paths: Sequence[Path]) -> Iterator[Prediction | UnreadableImage]:
        """Predict each image, in order; for an image that cannot be read, yield its error."""
        fmt = Format(self.data.in_channels, *self.data.image_size)
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
    output_root: Path | None = None,  # if it is not the checkout's
    store: Path | None = None,  # folder of the default store, if it is not the checkout's
    uri: str | None = None,  # of another store
) -> int:
    """Predict, print a table on a terminal or CSV into a pipe, and return the exit status; ``table`` is a CSV file."""
    quiet()
    try:
        prepare(root)
        cfg, _ = compose_config(root, [])
        cfg.output_root = str(output_root or cfg.output_root)
        cfg.tracking.root, cfg.tracking.uri = str(store or cfg.tracking.root), uri
        predictor = Predictor(run_folder(name, cfg, _RUN), checkpoint, trust)
        paths = images_of(images)
        done = []
        for result in predictor(paths):
            if isinstance(result, Prediction):
                done.append(result)
            else:
                print(f"skipped: {result.what} {result.reason}", file=sys.stderr)
        if table is not None:
            with table.open("w", newline="", encoding="utf-8") as file:
                _write_csv(done, file)
    except (ConfigError, OSError) as e:
        print_error(f"--csv: {e}" if isinstance(e, OSError) else e)
        return BAD_INPUT
    if sys.stdout.isatty():
        _print_table(done)
    else:
        _write_csv(done, sys.stdout)
    if done:
        return 0
    remedy = "Give image files that Pillow reads, such as PNG or JPEG, or folders of them."
    print_error(f"IMAGES: no image could be read ({len(paths)} skipped). {remedy}")
    return FAILED


def images_of(names: Sequence[str]) -> list[Path]:
    """Return the named files, and the files below the named folders, sorted and without hidden ones."""
    paths: list[Path] = []
    for path in map(Path, names):
        found = [path]
        if path.is_dir():
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
    names, offset = state["class_names"], state["offset"]
    normalizer = Normalizer(offset, state["scale"])
    return _TrainingData(names, len(names), tuple(state["image_size"]), offset.shape[1], normalizer)


def _decoded(path: Path, fmt: Format) -> Tensor | UnreadableImage:
    """Return one image, uint8 [1, C, H, W], resized as in training, or its error."""
    first = np.zeros(1, np.int64)
    try:
        return EncodedImages(Images(first, encoded=[path]), fmt).take(first)
    except UnreadableImage as e:
        return e


def _write_csv(done: Sequence[Prediction], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "prediction", "probability"])
    writer.writerows([image, label, f"{probability:.4f}"] for image, label, probability in done)


def _print_table(done: Sequence[Prediction]) -> None:
    table = Table(Column("image", overflow="fold"), "prediction", Column("probability", justify="right"))
    for image, label, probability in done:
        table.add_row(str(image), label, f"{probability:.1%}")
    Console(highlight=False, markup=False).print(table)
