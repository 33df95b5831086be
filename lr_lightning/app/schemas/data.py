"""Schemas of the data: where the images come from, and how they are cut into batches."""

from dataclasses import dataclass, field
from glob import iglob
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING

from lr_lightning.app.schemas import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, Schema, existing, must, one_of, positive

_CountOrNone = Annotated[int | None, AT_LEAST_1]
_FOLDER = existing("folder", "Give a folder with one folder of images for each class.")
_SHARE = must("lie between 0 and 1; the validation set chooses the checkpoint", lambda v: 0 < v < 1)
_PIXELS = must("be 0 (no crops) or more pixels", lambda v: v >= 0)
_ERASED = must("lie in [0, 1], a share of the training images", lambda v: 0 <= v <= 1)
_FLIPPED = must("lie in [0, 1], a share of the training labels", lambda v: 0 <= v <= 1)


def _parquet(value: Any) -> str | None:
    """Require paths or patterns of files that exist."""
    for text in value if isinstance(value, list) else [value]:
        path = Path(str(text)).expanduser()
        if not path.exists() and next(iglob(str(path), recursive=True), None) is None:
            return f"no such file: '{text}' (in {Path.cwd()}). Give the path of a parquet file, a folder or a pattern."
    return None


@dataclass
class DataConfig(Schema):
    """Where the images come from, and how they are cut into batches."""

    name: str = MISSING
    _target_: str = MISSING  # a callable that returns the raw splits; its arguments are the keys of the choice
    kwargs: dict[str, Any] = field(default_factory=dict)  # more arguments for a _target_ of your own
    batch_size: Annotated[int, AT_LEAST_1] = 64  # training examples in a batch
    # per_process | global: batch_size is that of all processes together
    batch_size_is: Annotated[str, one_of("per_process", "global")] = "per_process"
    eval_batch_size: _CountOrNone = None  # default: four times batch_size, at most 1000
    # share of the training data, stratified; unused if the data has a validation split
    val_fraction: Annotated[float, _SHARE] = 0.1
    # of the validation split and the probe; independent of the training seed
    split_seed: Annotated[int, AT_LEAST_0] = 0
    crop_padding: Annotated[int, _PIXELS] = 0  # pixels of padding before a random crop; 0: no crops
    crop_fill: Annotated[str, one_of("zero", "reflect")] = "zero"  # what the padding holds: zero | reflect
    flip: bool = False  # random horizontal flips
    trivial_augment: bool = False  # one random operation of random strength on each training image
    random_erasing: Annotated[float, _ERASED] = (
        0.0  # share of the training images that lose a random box; 0.25 is usual
    )
    # mix pairs of training images and their labels: Beta(mixup, mixup) is their share; 0.2 is usual, 0: off
    mixup: Annotated[float, NOT_NEGATIVE] = 0.0
    # paste a box of another training image, and mix the labels: Beta(cutmix, cutmix) is its area; 1 is usual, 0: off
    cutmix: Annotated[float, NOT_NEGATIVE] = 0.0
    image_size: _CountOrNone = None  # resize to this square; default: keep the size, or 64 if sizes differ
    in_memory_limit: str = "2 GB"  # larger data sets are decoded by DataLoader workers
    # DataLoader workers; default: half of this process's cores, with a GPU all but one
    num_workers: Annotated[int | None, AT_LEAST_0] = None
    drop_last: bool = True  # leave out an epoch's last, smaller batch
    train_size: _CountOrNone = None  # keep only this many training images, stratified; default: all
    # share of the training labels that are replaced by another class: noise to memorize
    flip_labels: Annotated[float, _FLIPPED] = 0.0
    on_bad_image: Annotated[str, one_of("error", "skip")] = "error"  # an image that cannot be read: error | skip
    max_megapixels: Annotated[float, positive("such as 100")] = 100.0  # a larger image is not read


@dataclass
class DigitsConfig(DataConfig):
    """scikit-learn's 1,797 digits of 8×8, which need no download."""

    name: str = "digits"
    _target_: str = "lr_lightning.training.sources.digits"


@dataclass
class HubConfig(DataConfig):
    """A data set of the Hugging Face hub, or a local copy of one."""

    name: str = "hub"
    _target_: str = "lr_lightning.training.sources.hub"
    path: str = MISSING  # id on the hub, such as uoft-cs/cifar10, or a local folder
    subset: str | None = None  # the data set's configuration, if it has several
    revision: str | None = None  # branch, tag or commit
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label, fine_label or labels
    cache_dir: str | None = None  # default: the cache of the datasets library


@dataclass
class ParquetConfig(DataConfig):
    """Your own parquet files with images and labels."""

    name: str = "parquet"
    _target_: str = "lr_lightning.training.sources.parquet"
    train: Annotated[Any, _parquet] = MISSING  # a file, a pattern ('train-*.parquet'), a folder, or a list of these
    val: Annotated[Any, _parquet] = None  # default: a share of the training data, see val_fraction
    test: Annotated[Any, _parquet] = None
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label


@dataclass
class ImageFolderConfig(DataConfig):
    """A folder of images for each class, or train/, val/ and test/ with such folders."""

    name: str = "image_folder"
    _target_: str = "lr_lightning.training.sources.image_folder"
    root: Annotated[str, _FOLDER] = MISSING
