"""`scripts/predict.py`: predict the classes of new images with a trained run."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from lr_lightning._threads import threads_for
from lr_lightning.app import build
from lr_lightning.app.composition import compose_config, prepare, validate
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, explain_path, print_error
from lr_lightning.app.run.checkpoints import load_weights, read_checkpoint, with_averaged_weights
from lr_lightning.app.run.messages import quiet
from lr_lightning.app.run.resume import ALLOWED_TARGETS, RunArgument, read_config, run_folder
from lr_lightning.app.schemas.data import DigitsConfig
from lr_lightning.errors import ConfigError, DataError
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.decode import MAX_PIXELS, EncodedImages, Format
from lr_lightning.training.folders import class_name, files_below
from lr_lightning.training.images import Images, UnreadableImage
from lr_lightning.training.transforms import Normalizer

__all__ = ["Prediction", "Predictor", "find_run", "images_of", "run"]

RUN = RunArgument("RUN", "--trust {}")
"""The argument that names a run, for error messages."""
_BATCH_SIZE = 256
_MOST_CLASSES = 12  # of a confusion matrix
_MOST_MISTAKES = 10


class Prediction(NamedTuple):
    """The most probable classes of an image, by their names in training, each with its probability, in [0, 1]."""

    image: Path
    ranked: Sequence[tuple[str, float]]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.ranked[0][0]

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.ranked[0][1]


class _TrainingData(NamedTuple):
    """The data that a run was trained on, as its checkpoint describes it."""

    class_names: Sequence[str]
    num_classes: int
    image_size: tuple[int, int]
    in_channels: int
    normalizer: Normalizer
    format: Format


class Predictor:
    """A trained run's network, with the normalization and the class names of its training data.

    Nothing but the run's folder is needed: neither its data nor the weights that it started from. ``trust`` are the
    targets outside this project that the run's config may name. With ``averaged``, the weights are the average that
    CooldownPreview kept.
    """

    def __init__(
        self, folder: Path, checkpoint: str = "best", trust: Sequence[str] = (), *, averaged: bool = False
    ) -> None:
        path = folder / "checkpoints" / f"{checkpoint}.ckpt"
        if not path.is_file():
            text = "Name another one with --checkpoint; a run of find_lr.py has none."
            raise ConfigError(f"RUN: {path} is not there. {text}")
        unused = ("data", "ckpt", "resume")  # they may name files that are gone
        stored_config = read_config(folder / "config.yaml", {*ALLOWED_TARGETS, *trust}, RUN, without=unused)
        stored_config.data = OmegaConf.structured(DigitsConfig)
        config = validate(stored_config)
        if config.model.kwargs.get("pretrained"):
            config.model.kwargs["pretrained"] = False  # or timm would download the weights that training started from
        stored = read_checkpoint(path, "RUN")
        if averaged:
            stored = with_averaged_weights(stored, "--weights averaged", str(path))
        self.data = _trained_on(stored, path)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(threads_for())
        net = build.build_net(config.model, self.data)
        module = build.build_module(config.module, config.optimizer, net, self.data)
        load_weights(module, stored, f"RUN: {path}")
        self.module = module.to(self.device).eval()

    def __call__(self, paths: Sequence[Path], top: int = 1) -> Iterator[Prediction | UnreadableImage]:
        """Predict the ``top`` classes of each image, in order; for an image that cannot be read, yield its error."""
        for start in range(0, len(paths), _BATCH_SIZE):
            chunk = paths[start : start + _BATCH_SIZE]
            decoded = [_decoded(path, self.data.format) for path in chunk]
            readable = [pixels for pixels in decoded if isinstance(pixels, Tensor)]
            best = iter(self._best(torch.cat(readable), top) if readable else ())
            for path, pixels in zip(chunk, decoded, strict=True):
                yield Prediction(path, next(best)) if isinstance(pixels, Tensor) else pixels

    def _best(self, pixels: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image, uint8 [B, C, H, W], with their probabilities."""
        with torch.inference_mode():
            logits = self.module(self.data.normalizer.to(self.device)(pixels.to(self.device)))
        expected = (len(pixels), self.data.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            raise ConfigError(
                f"RUN: {type(self.module).__name__}(images) does not return logits of shape {list(expected)}. "
                "Give it a forward that does."
            )
        probability, index = logits.float().softmax(1).topk(min(top, self.data.num_classes))
        names = self.data.class_names
        return [
            [(names[i], p) for i, p in zip(*row, strict=True)]
            for row in zip(index.tolist(), probability.tolist(), strict=True)
        ]


def find_run(checkout: Path, name: str, output_root: Path | None, store_root: Path | None, uri: str | None) -> Path:
    """Return the output folder of a run, named by that folder or by its id in a store.

    The output folder and the store of ``checkout`` are used if no others are given.
    """
    quiet()
    prepare(checkout)
    cfg, _ = compose_config(checkout, [])
    cfg.output_root = str(output_root or cfg.output_root)
    cfg.tracking.root, cfg.tracking.uri = str(store_root or cfg.tracking.root), uri
    return run_folder(name, cfg, RUN)


def run(
    checkout: Path,
    name: str,
    images: Sequence[str],
    *,
    table: Path | None = None,
    checkpoint: str = "best",
    top: int = 1,
    trust: Sequence[str] = (),
    output_root: Path | None = None,  # if it is not the checkout's
    store_root: Path | None = None,  # folder of the default store, if it is not the checkout's
    uri: str | None = None,  # of another store
) -> int:
    """Predict, print a table on a terminal or CSV into a pipe, and return the exit status; ``table`` is a CSV file.

    The ``top`` most probable classes are given. Of images in folders that are named as the classes, the accuracy, the
    confusion matrix and the worst mistakes follow, on stderr if stdout is a pipe.
    """
    try:
        predictor = Predictor(find_run(checkout, name, output_root, store_root, uri), checkpoint, trust)
        truth = {
            path: name for given in images for path, name in _true_classes(Path(given), predictor.data.class_names)
        }
        done = []
        for result in predictor(list(truth), top):
            if isinstance(result, Prediction):
                done.append(result)
            else:
                print(f"skipped: {result.what} {result.reason}", file=sys.stderr)
        if table is not None:
            # A name that is not UTF-8 is escaped, so that the table is complete and any program can read it.
            with table.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                _write_csv(done, truth, top, file)
    except (ConfigError, DataError, OSError) as e:
        given = [("RUN", name), *(("IMAGES", image) for image in images), ("--csv", table)]
        print_error((explain_path(e, given) or f"--csv: {e}") if isinstance(e, OSError) else e)
        return BAD_INPUT
    on_terminal = sys.stdout.isatty()
    if on_terminal:
        _print_table(done, top)
    else:
        _write_csv(done, truth, top, sys.stdout)
    _print_scores(
        done, truth, predictor.data.class_names, Console(stderr=not on_terminal, highlight=False, markup=False)
    )
    if done:
        return 0
    remedy = "Give image files that Pillow reads, such as PNG or JPEG, or folders of them."
    print_error(f"IMAGES: no image could be read ({len(truth)} skipped). {remedy}")
    return FAILED


def images_of(names: Sequence[str]) -> list[Path]:
    """Return the named files, and the files below the named folders, sorted and without hidden ones."""
    paths: list[Path] = []
    for path in map(Path, names):
        found = files_below(path) if path.is_dir() else [path]
        if not found:
            raise ConfigError(f"IMAGES: the folder {path} has no files in it. Give one with images.")
        paths += found
    return paths


def _true_classes(given: Path, class_names: Sequence[str]) -> Iterator[tuple[Path, str | None]]:
    """Yield the images of an argument, each with the class that the nearest folder around it is named as, if any."""
    names, outermost = set(class_names), given if given.is_dir() else given.parent
    for path in images_of([str(given)]):
        folders = [folder for folder in path.parents if folder.is_relative_to(outermost)]
        yield path, next((name for folder in folders if (name := class_name(folder)) in names), None)


def _trained_on(checkpoint: dict[str, Any], path: Path) -> _TrainingData:
    state = checkpoint.get(ImageDataModule.__qualname__, {})
    if "class_names" not in state:
        raise ConfigError(f"RUN: {path} does not name its classes: it is of an older version. Train again.")
    names, offset = state["class_names"], state["offset"]
    normalizer, size = Normalizer(offset, state["scale"]), (state["image_size"][0], state["image_size"][1])
    ranges = {depth: tuple(values) for depth, values in state.get("ranges", {}).items()}
    fmt = Format(offset.shape[1], size[0], size[1], ranges, state.get("max_pixels", MAX_PIXELS))
    return _TrainingData(names, len(names), size, fmt.channels, normalizer, fmt)


def _decoded(path: Path, fmt: Format) -> Tensor | UnreadableImage:
    """Return one image, uint8 [1, C, H, W], resized as in training, or its error."""
    first = np.zeros(1, np.int64)
    try:
        return EncodedImages(Images(first, encoded=[path]), fmt).take(first)
    except UnreadableImage as e:
        return e


def _write_csv(done: Sequence[Prediction], truth: Mapping[Path, str | None], top: int, file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    others = [f"{name}_{rank}" for rank in range(2, top + 1) for name in ("prediction", "probability")]
    known = ["class"] if any(truth.values()) else []
    writer.writerow(["image", "prediction", "probability", *others, *known])
    for image, ranked in done:
        cells = [cell for label, probability in ranked for cell in (label, f"{probability:.4f}")]
        writer.writerow([image, *cells, *([truth[image] or ""] if known else [])])


def _print_table(done: Sequence[Prediction], top: int) -> None:
    table = Table(Column("image", overflow="fold"))
    for _ in range(top):
        table.add_column("prediction")
        table.add_column("probability", justify="right")
    for image, ranked in done:
        table.add_row(str(image), *(cell for label, p in ranked for cell in (label, f"{p:.1%}")))
    Console(highlight=False, markup=False).print(table)


def _print_scores(
    done: Sequence[Prediction], truth: Mapping[Path, str | None], class_names: Sequence[str], console: Console
) -> None:
    """Print the accuracy, the confusion matrix and the worst mistakes of the images whose class is known, if any."""
    known = [(result, true) for result in done if (true := truth[result.image]) is not None]
    if not known:
        return
    wrong = sorted(((r, true) for r, true in known if r.label != true), key=lambda pair: -pair[0].probability)
    console.print(
        f"accuracy {1 - len(wrong) / len(known):.2%}, of {len(known):,} images in folders named as the classes",
        soft_wrap=True,
    )
    pairs = Counter((true, result.label) for result, true in known)
    if len(class_names) <= _MOST_CLASSES:
        matrix = Table(
            "class \\ predicted", *(Column(name, justify="right") for name in class_names), title="confusion matrix"
        )
        for true in class_names:
            matrix.add_row(true, *(str(pairs[true, label] or "·") for label in class_names))
        console.print(matrix)
    else:
        for (true, label), count in pairs.most_common():
            if true != label and (count > 1 or len(wrong) <= _MOST_MISTAKES):
                console.print(f"{true} taken for {label}: {count:,}")
    if wrong:
        mistakes = Table(Column("worst mistakes", overflow="fold"), "class", "predicted", Column("probability"))
        for result, true in wrong[:_MOST_MISTAKES]:
            mistakes.add_row(str(result.image), true, result.label, f"{result.probability:.1%}")
        console.print(mistakes)
