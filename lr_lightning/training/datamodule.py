"""The data of a run: splits, normalization, loaders, and the work done on the batch's device."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lr_lightning.errors import DataError
from lr_lightning.training.decode import EncodedImages, ImageStore, choose_format, cores, decode_all
from lr_lightning.training.images import RawSplits, require
from lr_lightning.training.loader import BatchLoader, TrainBatch
from lr_lightning.training.split import check_splits, choose_splits, data_fingerprint, flip_labels, validation_warning
from lr_lightning.training.transforms import (
    NORMALIZATIONS,
    Fill,
    Normalization,
    crop_and_flip,
    draw_augmentation,
    fit_normalizer,
)

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MAX_EVAL_BATCH = 1000


def parse_size(size: str | int) -> int:
    """Return the bytes of a size such as ``"2 GB"``, ``"500MB"`` or ``1000``; units are decimal.

    Raises:
        DataError: It is not such a size.

    Example:
        >>> parse_size("1.5 GB")
        1500000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS:
        raise DataError(f"data.in_memory_limit must be a size such as '2 GB' or '500 MB', got {size!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@dataclass(frozen=True)
class _Split:
    """The examples of one split: some of the images of a store."""

    images: ImageStore
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]


class ImageDataModule(L.LightningDataModule):
    """Images cut into batches by index, normalized and augmented on the batch's device.

    A LightningModule sees plain ``(x, y)``: float32 [B, C, H, W] (in the trainer's precision) and int64 [B].

    ``prepare`` (called by ``setup``) sets ``num_classes``, ``in_channels``, ``image_size`` (height, width),
    ``class_names``, ``dataset_name``, ``sizes``, ``has_test`` and ``fingerprint``.

    Args:
        source: Returns the data; called once.
        batch_size: Training images in a batch of one process.
        eval_batch_size: Evaluation images in a batch; by default 4 · batch_size, at most 1000.
        val_fraction: Share of the training images held out for validation, stratified, unless the data has a
            validation split.
        split_seed: Seed of that split and of the probe.
        seed: Seed of the data's order and augmentation.
        crop_padding: Pixels of padding for the random crop; 0 for none.
        crop_fill: ``zero`` or ``reflect``, the content of the padding.
        flip: Whether half of the training images are mirrored.
        normalize: ``standard`` (per channel), ``mean_image`` (range 0..255 minus the mean image) or ``unit`` (x / 255).
        image_size: Side to which all images are resized; by default their own, or 64 if they differ.
        in_memory_limit: Decoded size up to which all images are decoded once and kept, such as ``"500 MB"`` (decimal).
        num_workers: Processes that decode larger data; ``None`` or ``"auto"`` for one less than there are cores.
        channels_last: Memory layout of the batches.
        drop_last: Whether an incomplete last training batch is left out.
        train_size: Training images to keep, stratified; all by default.
        flip_labels: Share of the training images, the probe's among them, that get the label of another class, which
            a network can only memorize.

    Raises:
        DataError: A setting cannot be used.
    """

    def __init__(
        self,
        source: Callable[[], RawSplits],
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        crop_padding: int = 0,
        crop_fill: Fill = "zero",
        flip: bool = False,
        normalize: Normalization = "standard",
        image_size: int | None = None,
        in_memory_limit: str | int = "2 GB",
        num_workers: int | Literal["auto"] | None = "auto",
        channels_last: bool = True,
        drop_last: bool = True,
        train_size: int | None = None,
        flip_labels: float = 0.0,
    ) -> None:
        super().__init__()
        workers = max(1, cores() - 1) if num_workers in (None, "auto") else num_workers
        if eval_batch_size is None:
            eval_batch_size = max(batch_size, min(4 * batch_size, _MAX_EVAL_BATCH))
        _check_least("data.batch_size", batch_size, 1)
        _check_least("data.eval_batch_size", eval_batch_size, 1)
        _check_least("data.split_seed", split_seed, 0)
        _check_least("data.crop_padding", crop_padding, 0)
        _check_least("data.image_size", 1 if image_size is None else image_size, 1)
        require(isinstance(workers, int) and workers >= 0, f"data.num_workers must be >= 0 or auto, got {num_workers}")
        _check_least("data.train_size", 1 if train_size is None else train_size, 1)
        require(0 <= flip_labels <= 1, f"data.flip_labels must be in [0, 1], got {flip_labels}")
        _check_least("seed", seed, 0)
        _check_one_of("data.normalize", normalize, NORMALIZATIONS)
        _check_one_of("data.crop_fill", crop_fill, get_args(Fill))
        self.source = source
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.seed = seed
        self.crop_padding = crop_padding
        self.crop_fill = crop_fill
        self.flip = flip
        self.normalize = normalize
        self.requested_size = image_size
        self.memory_limit = parse_size(in_memory_limit)
        self.num_workers = int(workers or 0)
        self.channels_last = channels_last
        self.drop_last = drop_last
        self.train_size, self.flip_labels = train_size, flip_labels
        self.class_names: tuple[str, ...] = ()
        self.dataset_name = ""
        self.fingerprint = ""
        self.in_memory = True
        self._splits: dict[str, _Split] = {}
        self._expected_fingerprint: str | None = None

    def prepare(self) -> None:
        """Load, split, decode and measure the data; a second call does nothing.

        Raises:
            DataError: The data, or a setting together with it, cannot be used.
        """
        if self._splits:
            return
        raw = self.source()
        chosen = choose_splits(raw, self.val_fraction, self.split_seed, self.train_size)
        check_splits(raw, chosen, self.batch_size)
        if warning := validation_warning(raw, chosen):
            rank_zero_warn(warning)
        raw = flip_labels(raw, chosen["train"].indices, self.flip_labels, self.split_seed)
        self.dataset_name, self.class_names = raw.name, raw.class_names
        present = raw.present()
        fmt = choose_format(list(present.values()), self.requested_size)
        self.in_channels, self.image_size = fmt.channels, (fmt.height, fmt.width)
        smallest = min(self.image_size)
        require(
            self.crop_fill != "reflect" or self.crop_padding < smallest,
            f"data.crop_padding must be < {smallest} (the image size) with data.crop_fill=reflect, "
            f"got {self.crop_padding}",
        )
        self.in_memory = sum(map(len, present.values())) * fmt.bytes_per_image <= self.memory_limit
        stores: dict[str, ImageStore] = {}
        if self.in_memory:
            stores |= decode_all(present, fmt)
        else:
            stores |= {name: EncodedImages(images, fmt) for name, images in present.items()}
        splits = {
            name: _Split(stores[split.origin], present[split.origin].labels, split.indices)
            for name, split in chosen.items()
        }
        train = splits["train"]
        self._normalizer = fit_normalizer(train.images, train.indices, self.normalize, decoded=self.in_memory)
        self.fingerprint = data_fingerprint(raw, chosen, (fmt.channels, fmt.height, fmt.width))
        self._check_fingerprint()
        self._splits = splits

    def setup(self, stage: str | None = None) -> None:
        """Prepare the data, on every process."""
        self.prepare()

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 before ``prepare``."""
        return len(self.class_names)

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return "test" in self._splits

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of train, val, probe and, if there is a test set, test."""
        return {name: len(split.indices) for name, split in self._splits.items()}

    def describe(self) -> dict[str, str | int | float]:
        """Return name, sizes, format, split seed and fingerprint as plain values, for the log."""
        height, width = self.image_size
        return {
            "name": self.dataset_name,
            "fingerprint": self.fingerprint,
            **{f"{split}_size": size for split, size in self.sizes.items()},
            "classes": self.num_classes,
            "channels": self.in_channels,
            "height": height,
            "width": width,
            "split_seed": self.split_seed,
            "flipped_labels": self.flip_labels,
            "in_memory": str(self.in_memory).lower(),
        }

    def train_dataloader(self) -> BatchLoader:
        """Return the loader of shuffled training batches, ``TrainBatch``.

        Raises:
            DataError: One batch of all processes takes more images than there are.
        """
        world, size = self._rank_and_world()[1], self.sizes["train"]
        require(
            not self.drop_last or self.batch_size * world <= size,
            f"data.batch_size: {world} processes of {self.batch_size} are more than the training set of {size} images. "
            f"Give data.batch_size={size // world} or less.",
        )
        draw = None
        if self.crop_padding > 0 or self.flip:
            draw = partial(draw_augmentation, padding=self.crop_padding, flip=self.flip)
        # Lightning's overfit_batches repeats the same batches in every epoch.
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return self._loader(
            "train", self.batch_size, train=True, shuffle=shuffle, drop_last=self.drop_last, seed=self.seed, draw=draw
        )

    def val_dataloader(self) -> BatchLoader:
        """Return the loader of validation batches ``(image, label)``, in a fixed order."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader | list[Any]:
        """Return the loader of test batches ``(image, label)``, or an empty list if there is no test set."""
        return self._loader("test", self.eval_batch_size) if self.has_test else []

    def probe_dataloader(self) -> BatchLoader:
        """Return the loader of the probe: a frozen, stratified part of the training split, as large as validation."""
        return self._loader("probe", self.eval_batch_size)

    def _loader(self, name: str, batch_size: int, **settings: Any) -> BatchLoader:
        split = self._splits[name]
        rank, world = self._rank_and_world()
        return BatchLoader(
            split.images,
            split.labels,
            indices=split.indices,
            batch_size=batch_size,
            rank=rank,
            world=world,
            num_workers=0 if self.in_memory else self.num_workers,
            **settings,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment (in training) and normalize a batch of uint8 images; return any other batch unchanged."""
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            return batch
        image, label = batch[0], batch[1]
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 4:
            return batch
        if isinstance(batch, TrainBatch) and batch.draws is not None:
            image = crop_and_flip(image, batch.draws, padding=self.crop_padding, fill=self.crop_fill)
        if self._normalizer.offset.device != image.device:
            self._normalizer = self._normalizer.to(image.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        image = self._normalizer(image).contiguous(memory_format=layout)
        # Lightning converts to the trainer's precision before the transfer, when these were still integers.
        return (image if self.trainer is None else self.trainer.precision_plugin.convert_input(image)), label

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint and what a prediction needs, as plain values and tensors."""
        if not self._splits:
            return {}
        return {
            "fingerprint": self.fingerprint,
            "offset": self._normalizer.offset.cpu(),
            "scale": self._normalizer.scale.cpu(),
            "class_names": list(self.class_names),
            "image_size": list(self.image_size),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the data is that of the checkpoint, which implies the same statistics.

        Raises:
            DataError: The data has changed; before ``prepare``, that method raises it.
        """
        self._expected_fingerprint = state_dict.get("fingerprint")
        if self._splits:
            self._check_fingerprint()

    def _check_fingerprint(self) -> None:
        expected = self._expected_fingerprint
        require(
            expected in (None, self.fingerprint),
            f"data: the images, labels or splits have changed since the checkpoint was made (fingerprint {expected}, "
            f"now {self.fingerprint}). Use the same files, data.val_fraction, data.split_seed and data.image_size.",
        )


def _check_least(key: str, value: int, least: int) -> None:
    require(value >= least, f"{key} must be >= {least}, got {value}")


def _check_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, f"{key} must be one of {', '.join(allowed)}, got {value!r}")
