"""Where the images come from, and how they are cut into batches."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DataConfig:
    """Where the images come from and how they are cut into batches."""

    name: str = MISSING
    _target_: str = MISSING  # a callable that returns the raw splits; its arguments are the choice's own keys
    kwargs: dict[str, Any] = field(default_factory=dict)  # more arguments for an outside _target_
    batch_size: int = 64  # examples a step and process
    batch_size_is: str = "per_process"  # per_process | global: of all processes together
    eval_batch_size: int | None = None  # default: four times batch_size, at most 1000
    val_fraction: float = 0.1  # of the training data, stratified; not used where the data has a validation split
    split_seed: int = 0  # of the validation split and the probe; apart from the training seed
    crop_padding: int = 0  # random crops after padding by so many pixels; 0: none
    crop_fill: str = "zero"  # what the padding holds: zero | reflect
    flip: bool = False  # random horizontal flips
    image_size: int | None = None  # resize to a square; default: as they are, or 64 where sizes differ
    in_memory_limit: str = "2 GB"  # larger sets are decoded by DataLoader workers
    num_workers: int | None = None  # of those; default: one less than the cores
    drop_last: bool = True  # leave out an epoch's last, smaller batch
    train_size: int | None = None  # keep so many training images, stratified; default: all
    flip_labels: float = 0.0  # share of the training labels that are replaced by another class: noise to memorise


@dataclass
class DigitsConfig(DataConfig):
    """scikit-learn's 1,797 embedded 8×8 digits: no network."""

    name: str = "digits"
    _target_: str = "lr_lightning.training.sources.digits"


@dataclass
class HubConfig(DataConfig):
    """A data set of the Hugging Face hub, or a local copy of one."""

    name: str = "hub"
    _target_: str = "lr_lightning.training.sources.hub"
    path: str = MISSING  # the hub's id, such as uoft-cs/cifar10, or a local folder
    subset: str | None = None  # the data set's configuration, where it has several
    revision: str | None = None  # branch, tag or commit
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label, fine_label or labels
    cache_dir: str | None = None  # default: the library's own


@dataclass
class ParquetConfig(DataConfig):
    """Parquet files; the image and label columns are found by themselves."""

    name: str = "parquet"
    _target_: str = "lr_lightning.training.sources.parquet"
    train: str = MISSING
    val: str | None = None  # default: a part of the training data
    test: str | None = None
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label


@dataclass
class ImageFolderConfig(DataConfig):
    """One folder a class, or train/ val/ test/ of those."""

    name: str = "image_folder"
    _target_: str = "lr_lightning.training.sources.image_folder"
    root: str = MISSING
