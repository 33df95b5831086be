"""The images of a data set: what a data source returns, and which of them each split of a run uses."""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.statistics import stratified_split, stratified_subset
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


def first_bytes(item: Encoded) -> bytes:
    """Return the bytes that tell the kind of a file."""
    if not isinstance(item, Path):
        return item[:132]
    with item.open("rb") as file:
        return file.read(132)


def is_heic(head: bytes) -> bool:
    """Tell whether a file that starts with these bytes is HEIC."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def why_unknown(item: Encoded) -> str:
    """Say why Pillow does not know a file, from its first bytes."""
    head = first_bytes(item)
    if is_heic(head):
        return "is HEIC, which needs `pip install pillow-heif`"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "is a TIFF of a kind that Pillow does not read, such as 64-bit or complex pixels: convert it"
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return "is JPEG XL, which Pillow does not read: convert it"
    if head[128:] == b"DICM":
        return "is DICOM, which Pillow does not read: convert it to 16-bit PNG"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the image: run `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page: download the image again"
    return "is not an image" if head else "is not an image, but empty"


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


# -- which images each split of a run uses, and whether they can be trained on: pure functions of the raw splits -------

_FINGERPRINT_IMAGES = 64
_FLIP_STREAM = 1


@dataclass(frozen=True)
class SplitIndices:
    """The images of one split, as indices into a raw split."""

    origin: str  # train, val or test
    indices: NDArray[np.int64]


def choose_splits(
    raw: RawSplits, val_fraction: float, split_seed: int, train_size: int | None = None
) -> dict[str, SplitIndices]:
    """Choose the images of ``train``, ``val``, ``probe`` and, if there is a test set, ``test``.

    The probe is a stratified subset of the training split, as large as the validation split, which is a stratified
    share of the training images (``val_fraction``) if the data has none. ``split_seed`` decides all three. A split that
    would be empty raises DataError.
    """
    for name, images in raw.present().items():
        require(len(images) > 0, f"data: the {name} split has no images. Add images to it.")
    every = {name: np.arange(len(images), dtype=np.int64) for name, images in raw.present().items()}
    train = every["train"]
    if raw.val is None:
        require(
            0 < val_fraction < 1,
            f"data.val_fraction must be in (0, 1) when the data has no validation split, got {val_fraction}",
        )
        train, held_out = stratified_split(raw.train.labels, val_fraction, split_seed)
        require(
            len(held_out) > 0,
            f"data.val_fraction: {val_fraction} of {len(raw.train)} training images leaves none for validation. "
            "Give a larger fraction or more images.",
        )
        val = SplitIndices("train", held_out)
    else:
        val = SplitIndices("val", every["val"])
    if train_size is not None:
        require(
            train_size <= len(train),
            f"data.train_size: {train_size} is more than the {len(train)} training images. Give {len(train)} or less.",
        )
        train = train[stratified_subset(raw.train.labels[train], train_size, split_seed)]
    probe = train[stratified_subset(raw.train.labels[train], len(val.indices), split_seed)]
    splits = {"train": SplitIndices("train", train), "val": val, "probe": SplitIndices("train", probe)}
    if "test" in every:
        splits["test"] = SplitIndices("test", every["test"])
    return splits


def check_splits(raw: RawSplits, splits: Mapping[str, SplitIndices], batch_size: int) -> None:
    """Check that the training split can be trained on: labels in range, no class missing, a batch not too large."""
    classes = len(raw.class_names)
    for name, images in raw.present().items():
        low, high = int(images.labels.min()), int(images.labels.max())
        require(
            low >= 0 and high < classes,
            f"data: labels of the {name} split must be in 0..{classes - 1} (there are {classes} classes), "
            f"got {low if low < 0 else high}",
        )
    missing = _missing_classes(raw, splits["train"])
    require(
        not missing,
        f"data: the training split has no image of class {missing}. "
        "Add training images of it, or remove the class from the data.",
    )
    size = len(splits["train"].indices)
    require(
        batch_size <= size,
        f"data.batch_size: {batch_size} is larger than the training set of {size} images. "
        f"Give data.batch_size={size} or less.",
    )


def validation_warning(raw: RawSplits, splits: Mapping[str, SplitIndices]) -> str | None:
    """Return the warning about classes that are trained on but not validated; None if there are none."""
    missing = _missing_classes(raw, splits["val"])
    if not missing:
        return None
    why = "" if raw.val is not None else " (a class of one image keeps it for training)"
    return (
        f"data: the validation split has no image of class {missing}{why}. It is trained on, but nothing "
        "measures how well it is learned. Add images of it, or remove the class from the data."
    )


def check_classes_differ(pictures: Sequence[int], labels: NDArray[np.int64], class_names: Sequence[str]) -> None:
    """Refuse training images that do not tell the classes apart: ``pictures`` is one number for equal pixels."""
    of_class = [set[int]() for _ in class_names]
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        of_class[label].add(picture)
    if any(of_class) and all(found == of_class[0] for found in of_class):
        what = "images are all the same picture" if len(of_class[0]) == 1 else "classes all have the same pictures"
        raise DataError(f"data: the training {what}, so there is nothing to learn. Look at the files and their labels.")


def images_trained_on(pictures: Mapping[str, Sequence[Hashable]]) -> Iterator[str]:
    """Say how many of the validation and test images are training images too, if any."""
    trained = set(pictures["train"])
    for name, found in pictures.items():
        if name != "train" and (count := sum(picture in trained for picture in found)):
            word = SPLIT_WORDS[name]
            yield (
                f"{count:,} of the {len(found):,} {word} images are training images too, which makes the {word} "
                "accuracy too good. Remove them from one of the two."
            )


def _missing_classes(raw: RawSplits, split: SplitIndices) -> str:
    """Name up to five of the classes that a split has no image of; "" if it has all."""
    labels = raw.present()[split.origin].labels[split.indices]
    missing = np.flatnonzero(np.bincount(labels, minlength=len(raw.class_names)) == 0)
    return ", ".join(repr(raw.class_names[index]) for index in missing[:5]) + " and others" * (len(missing) > 5)


def flip_labels(raw: RawSplits, train: NDArray[np.int64], share: float, seed: int) -> RawSplits:
    """Replace a share of the training labels by another class, each of the others with the same probability.

    ``train`` are the indices of the training images, which exclude those of the validation split.
    """
    classes = len(raw.class_names)
    if share == 0 or classes < 2:
        return raw
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_FLIP_STREAM,))))
    flipped = rng.permutation(train)[: round(share * len(train))]
    labels = raw.train.labels.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, classes, len(flipped))) % classes
    return replace(raw, train=replace(raw.train, labels=labels))


def data_fingerprint(raw: RawSplits, splits: Mapping[str, SplitIndices], shape: tuple[int, int, int]) -> str:
    """Hash the class names, the images' shape, all labels of train, val and test, and some of their images as stored.

    ``shape`` is channels, height and width after decoding. The hash has 16 hexadecimal digits.
    """
    digest = hashlib.sha256(repr((raw.class_names, shape)).encode())
    present = raw.present()
    for name in ("train", "val", "test"):
        if name not in splits:
            continue
        images, indices = present[splits[name].origin], splits[name].indices
        digest.update(f"{name} {len(indices)}".encode())
        digest.update(images.labels[indices].astype("<i8").tobytes())
        for index in indices[:: max(1, len(indices) // _FINGERPRINT_IMAGES)].tolist():
            # As stored: decoded pixels could differ between versions of a JPEG library.
            item = images.item(index)
            digest.update(item.read_bytes() if isinstance(item, Path) else bytes(item))
    return digest.hexdigest()[:16]
