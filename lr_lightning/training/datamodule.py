"""The data of a run: splits, normalization, loaders, and the work done on the batch's device."""

import logging
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lr_lightning._threads import usable_cores
from lr_lightning.diagnosis.statistics import stratified_subset
from lr_lightning.errors import DataError, UsageError
from lr_lightning.training import transforms
from lr_lightning.training.decode import (
    MAX_PIXELS,
    EncodedImages,
    Format,
    ImageStore,
    choose_format,
    decode_all,
    decoded_keys,
    stored_keys,
    without_unreadable,
)
from lr_lightning.training.images import (
    Images,
    RawSplits,
    SplitIndices,
    check_classes_differ,
    check_splits,
    choose_splits,
    data_fingerprint,
    flip_labels,
    images_trained_on,
    require,
    validation_warning,
)
from lr_lightning.training.loader import BatchLoader, TrainBatch
from lr_lightning.training.transforms import OPERATIONS, Fill, Normalization, trivial_augment

log = logging.getLogger(__name__)

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MAX_EVAL_BATCH = 1000
_FEW = 500  # training images that are compared where all would have to be decoded


def parse_size(size: str | int, name: str = "size") -> int:
    """Return the bytes of a size such as ``"2 GB"``, ``"500MB"`` or ``1000``; units are decimal.

    ``name`` is the key or argument that an error names.

    Example:
        >>> parse_size("1.5 GB")
        1500000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS:
        raise DataError(f"{name} must be a size such as '2 GB' or '500 MB', got {size!r}")
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

    The arguments are the keys of ``data``. Those that the names do not explain:

    - ``batch_size`` is of one process; ``eval_batch_size`` is by default 4 · batch_size, at most 1000.
    - ``val_fraction`` of the training images is held out, stratified, unless the data has a validation split;
      ``split_seed`` decides which, and the probe. ``seed`` decides the order and the augmentation.
    - ``crop_padding`` is in pixels. ``flip`` mirrors half of the training images.
    - ``normalize`` is ``standard`` (per channel), ``mean_image`` (0..255 minus the mean image) or ``unit`` (x / 255).
    - ``image_size`` is the side to resize to; by default the images' own, or 64 if they differ.
    - Data whose decoded size exceeds ``in_memory_limit`` is decoded anew in each epoch, by ``num_workers`` processes
      (``None`` or ``"auto"``: one less than there are cores).
    - ``max_megapixels`` is the size of the largest image that is read. ``on_bad_image`` says whether images that cannot
      be read are an ``error``, or are left out (``skip``), for which every image is decoded once more at the start.
      Unless the run ``needs_test``, a test split with such images is left out.
    - ``train_size`` training images are kept, stratified.
    - ``trivial_augment`` changes each training image by one random operation, such as a rotation.
    - ``random_erasing`` is the share of training images that lose a box. ``mixup`` and ``cutmix`` mix pairs of training
      images, by shares from a Beta distribution with this parameter; the labels of a training batch are then shares of
      the classes, float32 [B, num_classes].
    - ``flip_labels`` is the share of training images, the probe's among them, that get the label of another class,
      which a network can only memorize.

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
        trivial_augment: bool = False,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        normalize: Normalization = "standard",
        image_size: int | None = None,
        in_memory_limit: str | int = "2 GB",
        num_workers: int | Literal["auto"] | None = "auto",
        channels_last: bool = True,
        drop_last: bool = True,
        train_size: int | None = None,
        flip_labels: float = 0.0,
        max_megapixels: float = MAX_PIXELS / 1e6,
        on_bad_image: Literal["error", "skip"] = "error",
        needs_test: bool = True,
    ) -> None:
        super().__init__()
        workers = max(1, usable_cores() - 1) if num_workers in (None, "auto") else num_workers
        if eval_batch_size is None:
            eval_batch_size = max(batch_size, min(4 * batch_size, _MAX_EVAL_BATCH))
        require(isinstance(workers, int) and workers >= 0, f"data.num_workers must be >= 0 or auto, got {num_workers}")
        require(max_megapixels > 0, f"data.max_megapixels must be > 0, got {max_megapixels}")
        self.source, self.batch_size, self.eval_batch_size = source, batch_size, eval_batch_size
        self.val_fraction, self.split_seed, self.seed = val_fraction, split_seed, seed
        self.crop_padding, self.crop_fill, self.flip, self.normalize = crop_padding, crop_fill, flip, normalize
        self.trivial_augment = trivial_augment
        self.random_erasing, self.mixup, self.cutmix = random_erasing, mixup, cutmix
        self.memory_limit = parse_size(in_memory_limit, "data.in_memory_limit")
        self.num_workers, self.requested_size = int(workers or 0), image_size
        self.channels_last, self.drop_last = channels_last, drop_last
        self.train_size, self.flip_labels = train_size, flip_labels
        self.max_pixels, self.on_bad_image, self.needs_test = round(max_megapixels * 1e6), on_bad_image, needs_test
        self.class_names: tuple[str, ...] = ()
        self.dataset_name, self.fingerprint, self.in_memory = "", "", True
        self._format: Format | None = None
        self._splits: dict[str, _Split] = {}
        self._expected_fingerprint: str | None = None
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Refuse values out of range, by the names of their config keys."""
        for key, value, least in (
            ("data.batch_size", self.batch_size, 1),
            ("data.eval_batch_size", self.eval_batch_size, 1),
            ("data.split_seed", self.split_seed, 0),
            ("data.crop_padding", self.crop_padding, 0),
            ("data.image_size", self.requested_size, 1),
            ("data.train_size", self.train_size, 1),
            ("seed", self.seed, 0),
        ):
            require(value is None or value >= least, f"{key} must be >= {least}, got {value}")
        for key, share in (("flip_labels", self.flip_labels), ("random_erasing", self.random_erasing)):
            require(0 <= share <= 1, f"data.{key} must be in [0, 1], got {share}")
        for key, parameter in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            require(0 <= parameter < math.inf, f"data.{key} must be a finite number, 0 or more, got {parameter}")
        for key, choice, known in (
            ("data.normalize", self.normalize, transforms.NORMALIZATIONS),
            ("data.crop_fill", self.crop_fill, get_args(Fill)),
            ("data.on_bad_image", self.on_bad_image, ("error", "skip")),
        ):
            require(choice in known, f"{key} must be one of {', '.join(known)}, got {choice!r}")

    def prepare(self) -> None:
        """Load, split, decode and measure the data; a second call does nothing."""
        if self._splits:
            return
        raw, chosen = self._choose(self.source())
        if self.on_bad_image == "skip":
            raw, chosen = self._choose(raw.map(partial(without_unreadable, max_pixels=self.max_pixels)))
        if warning := validation_warning(raw, chosen):
            rank_zero_warn(warning)
        true_labels = raw.train.labels
        raw = flip_labels(raw, chosen["train"].indices, self.flip_labels, self.split_seed)
        self.dataset_name, self.class_names = raw.name, raw.class_names
        try:
            fmt, stores = self._read(raw.present())
        except DataError as error:
            if self.needs_test or raw.test is None:
                raise
            raw = replace(raw, test=None)
            chosen.pop("test")
            fmt, stores = self._read(raw.present())  # or the training set's own error
            rank_zero_warn(f"The test split is left out, since test=false: {error}")
        splits = {
            name: _Split(stores[part.origin], raw.present()[part.origin].labels, part.indices)
            for name, part in chosen.items()
        }
        self._check_pictures(splits, true_labels)
        train = splits["train"]
        self._normalizer = transforms.fit_normalizer(
            train.images, train.indices, self.normalize, decoded=self.in_memory
        )
        self.fingerprint = data_fingerprint(raw, chosen, (fmt.channels, fmt.height, fmt.width))
        self._check_fingerprint()
        self._format, self._splits = fmt, splits

    def _read(self, present: Mapping[str, Images]) -> tuple[Format, Mapping[str, ImageStore]]:
        fmt = choose_format(list(present.values()), self.requested_size, self.max_pixels)
        smallest = min(fmt.height, fmt.width)
        require(
            self.crop_fill != "reflect" or self.crop_padding < smallest,
            f"data.crop_padding must be < {smallest} (the image size) with data.crop_fill=reflect, "
            f"got {self.crop_padding}",
        )
        self.in_memory = sum(map(len, present.values())) * fmt.bytes_per_image <= self.memory_limit
        if self.in_memory:
            return fmt, decode_all(present, fmt)
        return fmt, {name: EncodedImages(images, fmt) for name, images in present.items()}

    def _choose(self, raw: RawSplits) -> tuple[RawSplits, dict[str, SplitIndices]]:
        chosen = choose_splits(raw, self.val_fraction, self.split_seed, self.train_size)
        check_splits(raw, chosen, self.batch_size)
        return raw, chosen

    def _check_pictures(self, splits: Mapping[str, _Split], labels: NDArray[np.int64]) -> None:
        """Refuse training images that are alike in all classes, and count held-out images that are trained on."""
        train = splits["train"]
        few = train.indices[stratified_subset(labels[train.indices], _FEW, 0)] if not self.in_memory else train.indices
        check_classes_differ(decoded_keys(train.images, few), labels[few], self.class_names)
        keys: dict[str, Sequence[Hashable]] = {}
        for name, part in splits.items():
            if name != "probe":
                encoded = part.images.images if isinstance(part.images, EncodedImages) else None
                keys[name] = stored_keys(encoded, part.indices) if encoded else decoded_keys(part.images, part.indices)
        for sentence in images_trained_on(keys):
            log.warning(sentence)

    def setup(self, stage: str | None = None) -> None:
        """Prepare the data, on every process."""
        self.prepare()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        self._loaded_format("num_classes")
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self._loaded_format("in_channels").channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        fmt = self._loaded_format("image_size")
        return fmt.height, fmt.width

    def _loaded_format(self, name: str) -> Format:
        if self._format is None:
            raise UsageError(f"{name} is not known before the data is loaded: call prepare() first")
        return self._format

    @property
    def has_test(self) -> bool:
        """Whether there is a test set."""
        return "test" in self._splits

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of train, val, probe and, if there is a test set, test."""
        return {name: len(part.indices) for name, part in self._splits.items()}

    @property
    def class_sizes(self) -> dict[str, list[int]]:
        """Number of images of each class, in train, val and, if there is a test set, test."""
        return {
            name: np.bincount(part.labels[part.indices], minlength=self.num_classes).tolist()
            for name, part in self._splits.items()
            if name != "probe"
        }

    def describe(self) -> dict[str, str | int | float]:
        """Return name, sizes, format, split seed and fingerprint as plain values, for the log."""
        return {
            "name": self.dataset_name,
            "fingerprint": self.fingerprint,
            **{f"{name}_size": size for name, size in self.sizes.items()},
            "classes": self.num_classes,
            "channels": self.in_channels,
            "height": self.image_size[0],
            "width": self.image_size[1],
            "split_seed": self.split_seed,
            "flipped_labels": self.flip_labels,
            "in_memory": str(self.in_memory).lower(),
        }

    def train_dataloader(self) -> BatchLoader:
        """Return the loader of shuffled training batches, ``TrainBatch``."""
        world, size = self._rank_and_world()[1], self.sizes["train"]
        require(
            not self.drop_last or self.batch_size * world <= size,
            f"data.batch_size: {world} processes of {self.batch_size} are more than the training set of {size} images. "
            + (
                f"Give data.batch_size={size // world} or less."
                if size >= world
                else "Start fewer, or give more images."
            ),
        )
        draw = None
        if self._crops or self._mixes or self.random_erasing > 0 or self.trivial_augment:
            draw = partial(
                transforms.draw_augmentation,
                padding=self.crop_padding,
                flip=self.flip,
                erasing=self.random_erasing,
                mixup=self.mixup,
                cutmix=self.cutmix,
                operations=len(OPERATIONS) if self.trivial_augment else 0,
            )
        # Lightning's overfit_batches repeats the same batches in every epoch.
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return self._loader(
            "train", self.batch_size, train=True, shuffle=shuffle, drop_last=self.drop_last, seed=self.seed, draw=draw
        )

    @property
    def _crops(self) -> bool:
        return self.crop_padding > 0 or self.flip

    @property
    def _mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

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
        part = self._splits[name]
        settings["rank"], settings["world"] = self._rank_and_world()
        settings["num_workers"] = 0 if self.in_memory else self.num_workers
        return BatchLoader(part.images, part.labels, indices=part.indices, batch_size=batch_size, **settings)

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment (in training) and normalize a batch of uint8 images; return any other batch unchanged."""
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            return batch
        image, label = batch[0], batch[1]
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 4:
            return batch
        draws = batch.draws if isinstance(batch, TrainBatch) else None
        if draws is not None and self._crops:
            image = transforms.crop_and_flip(image, draws, padding=self.crop_padding, fill=self.crop_fill)
        if draws is not None and self.trivial_augment:
            image = trivial_augment(image, draws.operations, draws.strengths)
        if self._normalizer.offset.device != image.device:
            self._normalizer = self._normalizer.to(image.device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        image = self._normalizer(image)
        if draws is not None and self.random_erasing > 0:
            image.masked_fill_(transforms.inside(draws.erased, *self.image_size), 0.0)
        if draws is not None and self._mixes:
            image, label = transforms.mix(image, label, draws, self.num_classes)
        batch = image.contiguous(memory_format=layout), label
        # Lightning converts to the trainer's precision before the transfer, when these were still integers.
        return batch if self.trainer is None else self.trainer.precision_plugin.convert_input(batch)

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
            "ranges": {depth: list(values) for depth, values in self._loaded_format("ranges").ranges.items()},
            "max_pixels": self.max_pixels,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the data has the checkpoint's fingerprint, now, or in ``prepare`` if it is not loaded yet.

        Equal data has equal normalization statistics, so these are not restored.
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
