"""Schemas of the data: where the images come from, and how they are cut into batches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from lr_lightning.app.schemas.problems import AT_LEAST_ONE, Rule, Schema, existing_file, must, one_of


@dataclass
class DataConfig(Schema):
    """Where the images come from, and how they are cut into batches."""

    name: str = MISSING
    _target_: str = MISSING  # a callable that returns the raw splits; its arguments are the keys of the choice
    kwargs: dict[str, Any] = field(default_factory=dict)  # more arguments for a _target_ of your own
    batch_size: int = 64  # training examples in a batch
    batch_size_is: str = "per_process"  # per_process | global: batch_size is that of all processes together
    eval_batch_size: int | None = None  # default: four times batch_size, at most 1000
    val_fraction: float = 0.1  # share of the training data, stratified; unused if the data has a validation split
    split_seed: int = 0  # of the validation split and the probe; independent of the training seed
    crop_padding: int = 0  # pixels of padding before a random crop; 0: no crops
    crop_fill: str = "zero"  # what the padding holds: zero | reflect
    flip: bool = False  # random horizontal flips
    image_size: int | None = None  # resize to this square; default: keep the size, or 64 if sizes differ
    in_memory_limit: str = "2 GB"  # larger data sets are decoded by DataLoader workers
    num_workers: int | None = None  # DataLoader workers; default: one less than the CPU cores
    drop_last: bool = True  # leave out an epoch's last, smaller batch
    train_size: int | None = None  # keep only this many training images, stratified; default: all
    flip_labels: float = 0.0  # share of the training labels that are replaced by another class: noise to memorise

    def _rules(self) -> Mapping[str, Rule]:
        return {
            "batch_size": AT_LEAST_ONE,
            "batch_size_is": one_of("per_process", "global"),
            "eval_batch_size": AT_LEAST_ONE,
            "val_fraction": must("lie between 0 and 1; the validation set chooses the checkpoint", lambda v: 0 < v < 1),
            "split_seed": must("be 0 or more", lambda v: v >= 0),
            "crop_padding": must("be 0 (no crops) or more pixels", lambda v: v >= 0),
            "crop_fill": one_of("zero", "reflect"),
            "image_size": AT_LEAST_ONE,
            "num_workers": must("be 0 or more", lambda v: v >= 0),
            "train_size": AT_LEAST_ONE,
            "flip_labels": must("lie in [0, 1], a share of the training labels", lambda v: 0 <= v <= 1),
        }


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
    train: str = MISSING
    val: str | None = None  # default: a share of the training data, see val_fraction
    test: str | None = None
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label

    def _rules(self) -> Mapping[str, Rule]:
        file = existing_file("Give the path of a parquet file.")
        return {**super()._rules(), "train": file, "val": file, "test": file}


@dataclass
class ImageFolderConfig(DataConfig):
    """A folder of images for each class, or train/, val/ and test/ with such folders."""

    name: str = "image_folder"
    _target_: str = "lr_lightning.training.sources.image_folder"
    root: str = MISSING

    def _rules(self) -> Mapping[str, Rule]:
        def folder(value: str) -> str | None:
            if Path(value).expanduser().is_dir():
                return None
            return (
                f"no such folder: '{value}' (in {Path.cwd()}). Give a folder with one folder of images for each class."
            )

        return {**super()._rules(), "root": folder}
