"""Which images each split of a run uses, and whether they can be trained on: pure functions of the raw splits."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.stratify import stratified_split, stratified_subset
from lr_lightning.training.images import Images, RawSplits, require

_FINGERPRINT_IMAGES = 64
_FLIP_STREAM = 1


@dataclass(frozen=True)
class Choice:
    """Some images of a raw split.

    Attributes:
        origin: ``train``, ``val`` or ``test`` of the raw splits.
        indices: Which of its images, int64.
    """

    origin: str
    indices: NDArray[np.int64]


def choose(raw: RawSplits, val_fraction: float, split_seed: int, train_size: int | None = None) -> dict[str, Choice]:
    """Choose the images of ``train``, ``val``, ``probe`` and, if there is one, ``test``.

    Args:
        raw: The data.
        val_fraction: Share of the training images to hold out, stratified, if the data has no validation split.
        split_seed: Seed of that split, of the probe and of the training images that are kept.
        train_size: Images to keep in the training split, stratified; all by default.

    Returns:
        The choices. The probe is a stratified subset of the training split, as large as the validation split.

    Raises:
        DataError: If a split would be empty.
    """
    for name, images in raw.present().items():
        require(len(images) > 0, f"data: the {name} split has no images. Give one that has.")
    train = np.arange(len(raw.train), dtype=np.int64)
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
        val = Choice("train", held_out)
    else:
        val = Choice("val", np.arange(len(raw.val), dtype=np.int64))
    if train_size is not None:
        require(
            train_size <= len(train),
            f"data.train_size: {train_size} is more than the {len(train)} training images. Give that or less.",
        )
        train = train[stratified_subset(raw.train.labels[train], train_size, split_seed)]
    probe = train[stratified_subset(raw.train.labels[train], len(val.indices), split_seed)]
    chosen = {"train": Choice("train", train), "val": val, "probe": Choice("train", probe)}
    if raw.test is not None:
        chosen["test"] = Choice("test", np.arange(len(raw.test), dtype=np.int64))
    return chosen


def check(raw: RawSplits, chosen: Mapping[str, Choice], batch_size: int) -> None:
    """Check that the training split can be trained on.

    Raises:
        DataError: If a label is out of range, a class is missing from the training split, or a batch is larger than it.
    """
    classes = len(raw.class_names)
    for name, images in raw.present().items():
        low, high = int(images.labels.min()), int(images.labels.max())
        require(
            low >= 0 and high < classes,
            f"data: labels of the {name} split must be in 0..{classes - 1} (there are {classes} classes), "
            f"got {low if low < 0 else high}",
        )
    train = chosen["train"].indices
    missing = np.flatnonzero(np.bincount(raw.train.labels[train], minlength=classes) == 0)
    require(
        len(missing) == 0,
        f"data: the training split has no image of class {_names(raw, missing)}. "
        "Add training images of it, or remove the class from the data.",
    )
    require(
        batch_size <= len(train),
        f"data.batch_size: {batch_size} is larger than the training set of {len(train)} images. "
        f"Give data.batch_size={len(train)} or less.",
    )


def unvalidated(raw: RawSplits, chosen: Mapping[str, Choice]) -> str | None:
    """What to warn of where a class is trained on but not validated; None where there is none such."""
    val = chosen["val"]
    labels = raw.present()[val.origin].labels[val.indices]
    absent = np.flatnonzero(np.bincount(labels, minlength=len(raw.class_names)) == 0)
    if not len(absent):
        return None
    why = "" if raw.val is not None else " (a class of one image keeps it for training)"
    return (
        f"data: the validation split has no image of class {_names(raw, absent)}{why}. It is trained on, but nothing "
        "measures how well it is learnt. Add images of it, or remove the class from the data."
    )


def _names(raw: RawSplits, classes: NDArray[np.int64]) -> str:
    """Up to five of them."""
    return ", ".join(repr(raw.class_names[index]) for index in classes[:5]) + " and others" * (len(classes) > 5)


def with_flipped_labels(raw: RawSplits, train: NDArray[np.int64], share: float, seed: int) -> RawSplits:
    """The same data with a share of the training labels replaced by another class, each of the others as likely.

    Args:
        raw: The data.
        train: The training images, of which the validation images are none.
        share: Share of them whose labels are flipped, in [0, 1].
        seed: Of the draw; nothing else influences it.
    """
    classes = len(raw.class_names)
    if share == 0 or classes < 2:
        return raw
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_FLIP_STREAM,))))
    chosen = rng.permutation(train)[: round(share * len(train))]
    labels = raw.train.labels.copy()
    labels[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return replace(raw, train=replace(raw.train, labels=labels))


def fingerprint(raw: RawSplits, chosen: Mapping[str, Choice], shape: tuple[int, int, int]) -> str:
    """Hash the classes, the images' shape, all labels of train, val and test, and some of their images as stored.

    Args:
        raw: The data.
        chosen: The images of each split.
        shape: Channels, height and width after decoding.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(repr((raw.class_names, shape)).encode())
    present = raw.present()
    for name in ("train", "val", "test"):
        if name not in chosen:
            continue
        images, indices = present[chosen[name].origin], chosen[name].indices
        digest.update(f"{name} {len(indices)}".encode())
        digest.update(images.labels[indices].astype("<i8").tobytes())
        for index in indices[:: max(1, len(indices) // _FINGERPRINT_IMAGES)].tolist():
            digest.update(_content(images, index))
    return digest.hexdigest()[:16]


def _content(images: Images, index: int) -> bytes:
    """The bytes of an image as stored: decoded ones could differ between two versions of a JPEG library."""
    item = images.item(index)
    if isinstance(item, Path):
        return item.read_bytes()
    return item.tobytes() if isinstance(item, np.ndarray) else item
