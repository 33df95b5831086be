"""Where images come from. Each function here gives a `RawSplits`; the app's `data=` choices name them."""

from pathlib import Path

import numpy as np

from lr_lightning.diagnosis.stratify import stratified_split
from lr_lightning.training.hub import hub
from lr_lightning.training.images import DataError, Images, RawSplits
from lr_lightning.training.tables import parquet

__all__ = ["DataError", "Images", "RawSplits", "digits", "hub", "image_folder", "parquet"]

_TEST_FRACTION = 0.2
_TEST_SEED = 0
_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def digits() -> RawSplits:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, 10 classes; no network.

    The set has no test split of its own: a stratified fifth is held out, always the same one.

    Returns:
        The splits, one channel, the grey values 0..16 scaled to 0..255.
    """
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    pixels = np.rint(data.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = target.astype(np.int64)
    keep, held_out = stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    return RawSplits(
        train=Images(labels[keep], array=pixels[keep]),
        val=None,
        test=Images(labels[held_out], array=pixels[held_out]),
        class_names=tuple(str(digit) for digit in range(10)),
        name="digits",
    )


def image_folder(root: str | Path, *, name: str | None = None) -> RawSplits:
    """Read image files: one folder a class, or ``train/ val/ test/`` of such folders.

    Classes are the folders' names, sorted. Files may lie deeper; hidden files and folders are left out. A relative path
    starts at the working directory.

    Args:
        root: The folder. With a ``train`` folder in it, ``val`` (also ``valid``, ``validation``) and ``test`` are
            looked for beside that.
        name: Name of the data set; by default the folder's.

    Returns:
        The splits; the images are read when they are needed.

    Raises:
        DataError: If the folder is missing, has no class folders, or a class folder is empty.
    """
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"data.root: no such folder: {folder}. Give a folder with one folder a class.")
    splits = {"train": folder}
    if (folder / "train").is_dir():
        splits = {
            split: folder / alias
            for split, aliases in _SPLIT_FOLDERS.items()
            for alias in aliases
            if (folder / alias).is_dir()
        }
    files = {split: _class_files(path) for split, path in splits.items()}
    names = sorted(set().union(*files.values()))
    images = {split: _labelled(classes, names) for split, classes in files.items()}
    return RawSplits(images["train"], images.get("val"), images.get("test"), tuple(names), name or folder.name)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each class folder, sorted."""
    classes = {
        entry.name: sorted(
            path
            for path in entry.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(entry).parts)
        )
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if not classes:
        raise DataError(f"data.root: {folder} has no folders in it. Give a folder with one folder a class.")
    for name, files in classes.items():
        if not files:
            raise DataError(f"data.root: the class folder {folder / name} is empty. Add images or remove the folder.")
    return classes


def _labelled(classes: dict[str, list[Path]], names: list[str]) -> Images:
    labels = [names.index(name) for name, files in classes.items() for _ in files]
    return Images(np.asarray(labels, np.int64), encoded=[path for files in classes.values() for path in files])
