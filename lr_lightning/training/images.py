"""What a data source returns: labels, and pixels that are decoded or still encoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_lightning.errors import DataError

Encoded = bytes | Path
_IMAGES_NAMED = 10
TOO_MANY = 1_000  # unreadable images: the data set is wrong as a whole, so the rest need not be checked


SPLIT_WORDS = {"train": "training", "val": "validation", "test": "test"}


def require(condition: bool, message: str) -> None:
    """Raise ``DataError(message)`` unless the condition holds."""
    if not condition:
        raise DataError(message)


class UnreadableImage(DataError):
    """An image that cannot be decoded: ``what`` is its path, or its row and file; ``reason`` says why."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"data: {what} {reason}. Repair or remove it, or give data.on_bad_image=skip.")
        self.what, self.reason = what, reason

    def __reduce__(self) -> tuple[type["UnreadableImage"], tuple[str, str]]:
        """Pickle both arguments: a worker process sends the error to the main process."""
        return UnreadableImage, (self.what, self.reason)


def refuse_unreadable(found: Sequence[UnreadableImage], *, least: int = 1) -> None:
    """Raise one error for all unreadable images of a data set, if there are ``least``.

    The message has their number and the first ones. If there is one, it is raised.
    """
    if len(found) < least:
        return
    if len(found) == 1:
        raise found[0]
    count = f"{len(found)} images" if len(found) < TOO_MANY else f"{TOO_MANY:,} images or more"
    remedy = "Repair or remove them, or give data.on_bad_image=skip:"
    raise DataError(f"data: {count} cannot be read. {remedy}\n{list_images(found)}")


def list_images(found: Sequence[UnreadableImage]) -> str:
    """Return a line for each of the first unreadable images."""
    lines = [f"  {image.what} {image.reason}" for image in found[:_IMAGES_NAMED]]
    return "\n".join([*lines, *(["  and others"] if len(found) > _IMAGES_NAMED else [])])


@dataclass(frozen=True)
class Images:
    """Labelled images of one split, with exactly one of ``array`` and ``encoded``.

    Attributes:
        labels: int64, shape [N]; class indices from 0.
        array: Decoded pixels, uint8, shape [N, C, H, W], C = 1 or 3.
        encoded: N images as the bytes of an image file, or as paths; decoded on demand.
        origin: The file whose rows the images are, for messages such as "row 17 of train.parquet"; empty for paths.
        shards: Of images from several files, each file and its number of rows.
        rows: The images of ``encoded`` that are used; all by default.

    Raises:
        DataError: Neither or both kinds of pixels are given, or their number differs from the labels'.
    """

    labels: NDArray[np.int64]
    array: NDArray[np.uint8] | None = None
    encoded: Sequence[Encoded] | None = None
    origin: str = ""
    shards: tuple[tuple[str, int], ...] = ()
    rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Check that labels and pixels belong together."""
        found, wanted = len(self._pixels() if self.rows is None else self.rows), len(self.labels)
        if self.array is not None and (self.array.ndim != 4 or self.array.dtype != np.uint8):
            raise DataError(f"expected `array` to be uint8 [N, C, H, W], got {self.array.dtype} {self.array.shape}")
        if found != wanted:
            raise DataError(f"expected one label for each image, got {found} images and {wanted} labels")

    def _pixels(self) -> NDArray[np.uint8] | Sequence[Encoded]:
        pixels = self.encoded if self.array is None else self.array
        if pixels is None or (self.array is not None and self.encoded is not None):
            raise DataError("expected exactly one of `array` and `encoded`")
        return pixels

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Encoded | NDArray[np.uint8]:
        """Return one image as stored: the bytes of a file, a path, or decoded pixels [C, H, W]."""
        item: Encoded | NDArray[np.uint8] = self._pixels()[self._row(index)]
        return item

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])

    def keep(self, indices: NDArray[np.int64]) -> "Images":
        """Return the encoded images at ``indices`` alone."""
        rows = indices if self.rows is None else self.rows[indices]
        return replace(self, labels=self.labels[indices], rows=rows)

    def describe(self, index: int) -> str:
        """Name image ``index`` for an error message."""
        if not self.origin:
            return str(self.item(index))
        row = self._row(index)
        for file, count in self.shards:
            if row < count:
                return f"row {row} of {file}"
            row -= count
        return f"row {row} of {self.origin}"


@dataclass(frozen=True)
class RawSplits:
    """A data set as its source returns it, before the app makes its own validation split.

    Attributes:
        train: The training images.
        val: The data set's own validation split, if it has one.
        test: The test split, if there is one.
        class_names: Name of each class; its length is the number of classes.
        name: Name of the data set, for tags and tables.
    """

    train: Images
    val: Images | None
    test: Images | None
    class_names: tuple[str, ...]
    name: str

    def present(self) -> dict[str, Images]:
        """Return the existing splits by name, in the order train, val, test."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in splits.items() if images is not None}

    def map(self, change: Callable[[Images, str], Images]) -> "RawSplits":
        """Return the splits changed one by one; ``change`` takes the images and the split's name."""
        changed: dict[str, Any] = {name: change(images, name) for name, images in self.present().items()}
        return replace(self, **changed)
