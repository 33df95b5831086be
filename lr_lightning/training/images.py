"""What a source of images gives: labels, and pixels that are either decoded or still encoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lr_lightning.errors import DataError

Encoded = bytes | Path
_NAMED = 10  # unreadable images in one error
_ENOUGH = 1_000  # unreadable images: so many are no few bad files, and the rest is not looked at


def require(condition: bool, message: str) -> None:
    """Raise ``DataError(message)`` unless the condition holds."""
    if not condition:
        raise DataError(message)


class UnreadableImage(DataError):
    """An image that cannot be decoded.

    Attributes:
        what: The image: its path, or row and file.
        reason: Why, such as ``"is not an image"``.
    """

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"data: {what} {reason}. Repair or remove it.")
        self.what, self.reason = what, reason

    def __reduce__(self) -> tuple[type["UnreadableImage"], tuple[str, str]]:
        """It comes from the workers of a loader as a pickle, which would be made anew from the message alone."""
        return UnreadableImage, (self.what, self.reason)


class UnreadableImages:
    """The images of a data set that cannot be decoded, for one error that names them.

    Attributes:
        found: What is known so far, in the order of the images.
    """

    def __init__(self) -> None:
        self.found: list[UnreadableImage] = []

    def add(self, found: Sequence[UnreadableImage]) -> None:
        """Note some more.

        Raises:
            DataError: If they are so many that no image needs to be looked at any more.
        """
        self.found += found
        if len(self.found) >= _ENOUGH:
            self.refuse()

    def refuse(self) -> None:
        """Raise one error for all of them, if there are any.

        Raises:
            UnreadableImage: If there is one.
            DataError: If there are several: how many, and the first ones.
        """
        if not self.found:
            return
        if len(self.found) == 1:
            raise self.found[0]
        count = f"{len(self.found)} images" if len(self.found) < _ENOUGH else f"{_ENOUGH:,} images and more"
        lines = [f"  {image.what} {image.reason}" for image in self.found[:_NAMED]]
        if len(self.found) > _NAMED:
            lines.append("  and others")
        raise DataError("\n".join([f"data: {count} cannot be read. Repair or remove them:", *lines]))


@dataclass(frozen=True)
class Images:
    """Labelled images of one split.

    Exactly one of ``array`` and ``encoded`` is given.

    Attributes:
        labels: int64, shape [N]; class indices from 0.
        array: Decoded pixels, uint8, shape [N, C, H, W], C = 1 or 3.
        encoded: N images as bytes of an image file, or as paths; decoded on demand.
        origin: The file whose rows the images are, for messages such as "row 17 of train.parquet"; empty for paths.

    Raises:
        DataError: If neither or both kinds of pixels are given, or if their number differs from the labels'.
    """

    labels: NDArray[np.int64]
    array: NDArray[np.uint8] | None = None
    encoded: Sequence[Encoded] | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        """Check that labels and pixels belong together."""
        if (self.array is None) == (self.encoded is None):
            raise DataError("expected exactly one of `array` and `encoded`")
        if self.array is not None and (self.array.ndim != 4 or self.array.dtype != np.uint8):
            raise DataError(f"expected `array` to be uint8 [N, C, H, W], got {self.array.dtype} {self.array.shape}")
        pixels = self.array if self.array is not None else self.encoded
        if pixels is not None and len(pixels) != len(self.labels):
            raise DataError(
                f"expected one label for each image, got {len(pixels)} images and {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def item(self, index: int) -> Encoded | NDArray[np.uint8]:
        """One image as stored: file bytes, a path, or decoded pixels [C, H, W]."""
        if self.array is not None:
            pixels: NDArray[np.uint8] = self.array[index]
            return pixels
        if self.encoded is None:
            raise DataError("expected exactly one of `array` and `encoded`")
        return self.encoded[index]

    def describe(self, index: int) -> str:
        """Name image ``index`` for an error message."""
        return f"row {index} of {self.origin}" if self.origin else str(self.item(index))


@dataclass(frozen=True)
class RawSplits:
    """A data set as it was found, before the app makes its own validation split.

    Attributes:
        train: The training images.
        val: A validation split of the data's own, if it has one.
        test: A test split, if there is one.
        class_names: Name of each class; its length is the number of classes.
        name: Name of the data set, for tags and tables.
    """

    train: Images
    val: Images | None
    test: Images | None
    class_names: tuple[str, ...]
    name: str

    def present(self) -> dict[str, Images]:
        """The splits that exist, by name, in the order train, val, test."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in splits.items() if images is not None}
