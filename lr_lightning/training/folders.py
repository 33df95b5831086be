"""Which folders of an image set are its splits, which are its classes, and which files belong to each."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from lr_lightning.errors import DataError
from lr_lightning.training.images import require

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FILLER_WORDS = {"seg", "set", "data", "dataset", "split", "image", "images", "imgs"}  # as in seg_train, Training Set
_FUSED = re.compile(rf"^({'|'.join(sum(SPLIT_NAMES.values(), ()))})(?:{'|'.join(_FILLER_WORDS)})$")  # trainset
_JUNK = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"}
_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".heic", ".jp2", ".pgm", ".ppm"}
_NOT_IMAGES = {".txt", ".csv", ".tsv", ".json", ".xml", ".md", ".yaml", ".yml", ".html", ".pdf", ".zip", ".mat", ".db"}
Classes = dict[str, list[Path]]
"""The files of each class, by its name."""


def split_of(name: str) -> str | None:
    """Return the split that a name means, ``train``, ``val`` or ``test``, whatever its case; None for another name.

    Example:
        >>> split_of("TrainingSet"), split_of("seg_test"), split_of("val2017"), split_of("bullet_train")
        ('train', 'test', 'val', None)
    """
    words = _words(name)
    return next((split for split, names in SPLIT_NAMES.items() if len(words) == 1 and words[0] in names), None)


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()  # TrainingSet
    words = (_FUSED.sub(r"\1", word.strip("0123456789")) for word in re.split(r"[\W_]+", apart))
    return [word for word in words if word and word not in _FILLER_WORDS]


def _named_as_splits(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the split of each folder that is named as one; ``cars_train`` counts if ``cars_test`` lies beside it."""
    alone: dict[Path, str] = {}
    pairs: dict[tuple[int, tuple[str, ...]], dict[Path, str]] = {}
    for path in paths:
        if split := split_of(path.name):
            alone[path] = split
        words = _words(path.name)
        for end, rest in ((0, words[1:]), (-1, words[:-1])) if len(words) > 1 else ():
            if split := split_of(words[end]):
                pairs.setdefault((end, tuple(rest)), {})[path] = split
    return alone or next((pair for pair in pairs.values() if {"train"} < set(pair.values())), {})


def find_splits(root: Path) -> dict[str, Classes]:
    """Return the splits of an image set, ``train`` and, as far as they exist, ``val`` and ``test``.

    A folder with the name of a split and with class folders is a split, unless the folders beside it show that it is
    a class. The log names every folder that is left out, and the folder of the splits if it lies deeper.

    Raises:
        DataError: There are no two class folders, one is empty, or it is not clear what the folders are.
    """
    folder = _below_wrappers(root)
    if folder != root:
        log.info(f"data.root: the classes or splits are the folders in {folder}.")
    found = _folders(folder)
    require(bool(found), f"data.root: {folder} has no folders in it. Give a folder with one folder a class.")
    named: dict[str, list[Path]] = {split: [] for split in SPLIT_NAMES}
    for path, split in (splits_of := _named_as_splits(found)).items():
        named[split].append(path)
    others = [path for path in found if path not in splits_of]
    if _are_classes(folder, named, others):
        if len(set(splits_of.values())) > 1:
            names, place = _names(splits_of), folder / "train" / "CLASS"
            log.warning(
                f"data.root: {names} and the folders beside them are taken as classes. If they are splits, move the "
                f"images into folders such as {place}."
            )
        return {"train": _class_files(folder, training=True)}
    train, *left_out = named["train"]
    splits = {"train": _class_files(_below_wrappers(train), training=True)}
    for split in ("val", "test"):
        for number, path in enumerate(named[split]):
            classes = _held_out(path, splits["train"])
            if number == 0 and classes is None:
                why = "has no folders of the training classes, so it is not used. predict.py predicts its images."
                log.info(f"data.root: {path} {why}")
            elif number == 0 and classes is not None:
                splits[split] = classes
            else:
                left_out.append(path)
    for path in [*left_out, *others]:
        log.warning(f"data.root: {path} is left out: it is neither the training, the validation nor the test folder.")
    return splits


def _are_classes(folder: Path, named: dict[str, list[Path]], others: list[Path]) -> bool:
    """Tell whether the folders are classes, although some may be named as splits; DataError if nobody can tell."""
    held_out = [*named["val"], *named["test"]]
    if not named["train"]:
        siblings = {path.name for path in others}
        for path in held_out:
            shared = siblings & {below.name for below in _folders(path)}
            require(
                not shared,
                f"data.root: the split {path} has the class folders {', '.join(sorted(shared))}, but the training "
                f"images lie beside it, not in a split. Move the class folders of {folder} into {folder}/train.",
            )
        require(
            bool(others) or not held_out,
            f"data.root: {folder} has no training folder, only {_names(held_out)}. Add {folder}/train.",
        )
        return True
    train = named["train"][0]
    inside = {class_name(path) for path in _folders(train)}
    same_classes = any(inside & {class_name(below) for below in _folders(path)} for path in held_out)
    if _has_images(train) and not same_classes and (others or len(inside) < 2):
        require(
            bool(others),
            f"data.root: {train} has images, but no folder for each class. Sort them into {train}/CLASS.",
        )
        return True
    require(
        bool(held_out) or not others,
        f"data.root: {train} has folders of images, and so has {folder} beside it ({_names(others)}). If train is a "
        f"split, give data.root={train}; if it is a class, move its images out of their folders.",
    )
    return False


def _held_out(path: Path, training: Classes) -> Classes | None:
    """Return the classes of a validation or test folder; None if it has none of the training classes.

    A class that is written with other capitals or spaces gets the name that it has in training.
    """
    alike = {_folded(name): name for name in training}
    written = alike if len(alike) == len(training) else {}
    for folder in (path, _below_wrappers(path)):
        names = {class_name(below) for below in _folders(folder)}
        if not any(name in training or _folded(name) in written for name in names):
            continue
        renamed = {name: name if name in training else written.get(_folded(name), name) for name in names}
        if changed := [f"{old!r} is taken as {new!r}" for old, new in sorted(renamed.items()) if old != new]:
            log.info(f"data.root: in {folder}, {', '.join(changed)}.")
        classes: Classes = {}
        for name, files in _class_files(folder, training=False).items():
            classes.setdefault(renamed[name], []).extend(files)
        return classes
    return None


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _class_files(folder: Path, *, training: bool) -> Classes:
    """Return the files of each class folder, sorted; in training each must have some, and there must be two."""
    classes: Classes = {}
    if stray := sum(Path(entry.name).suffix.lower() in _IMAGES for entry in _entries(folder)):
        log.warning(f"data.root: {stray:,} images in {folder} lie outside of the class folders and are left out.")
    siblings, below_each = {class_name(path) for path in _folders(folder)}, []
    for path in _folders(folder):
        inside = [below for below in _folders(path) if split_of(below.name)]
        below_each.append({class_name(below) for below in _folders(path)})
        shared = (siblings - {class_name(path)}) & below_each[-1]
        require(
            not training or len(shared) < 2,
            f"data.root: {folder} has the class folders {', '.join(sorted(shared))}, and {path} has folders of "
            f"the same names. Move {path} elsewhere, or remove it.",
        )
        require(
            not (training and any(split_of(below.name) == "train" for below in inside) and len(inside) > 1),
            f"data.root: the splits {_names(inside)} lie inside the class folder {path}. "
            f"Put them above the classes: {folder}/train/{path.name}; or give data.root={path}, if it is no class.",
        )
        files = files_below(path)
        require(
            bool(files) or not training,
            f"data.root: the class folder {path} is empty. Add images or remove the folder.",
        )
        if files:
            classes.setdefault(class_name(path), []).extend(files)
    if training and len(classes) > 1 and len(below_each[0]) > 1 and all(each == below_each[0] for each in below_each):
        inner = sorted(below_each[0])
        log.warning(
            f"data.root: the classes are {', '.join(classes)}, and each of these folders has the folders "
            f"{', '.join(inner)}. If {', '.join(inner)} are the classes instead, move all images of a class into one "
            f"folder, such as {folder}/{inner[0]}."
        )
    require(
        len(classes) > 1 or not training,
        f"data.root: {folder} has {_names(_folders(folder)) or 'no folder'} alone. Give a folder with two or more "
        "class folders.",
    )
    return classes


def class_name(path: Path) -> str:
    """Return the class that a folder's name says. File systems write an accent in two ways; this makes them one."""
    return unicodedata.normalize("NFC", path.name)


def _below_wrappers(folder: Path) -> Path:
    """Follow folders that hold nothing but one folder with folders, as unpacked archives often do."""
    while not _has_images(folder) and len(below := _folders(folder)) == 1:
        (only,) = below
        if _has_images(only) or not _folders(only):
            break
        if split_of(only.name) and split_of(folder.name) != split_of(only.name):
            break
        folder = only
    return folder


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            shown = [e for e in entries if not e.name.startswith(".") and e.name.casefold() not in _JUNK]
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read ({error.strerror}). Give another one.") from error
    return sorted(shown, key=lambda entry: entry.name)


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted. Hidden folders are left out, and links to a folder that contains them."""
    here = folder.resolve()
    found = [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]
    return [path for path in found if not (path.is_symlink() and here.is_relative_to(path.resolve()))]


def _has_images(folder: Path) -> bool:
    """Tell whether a folder contains images itself. If it has no folders, files of an unknown kind count as images."""
    entries = _entries(folder)
    kinds = {Path(entry.name).suffix.lower() for entry in entries if not entry.is_dir()}
    return bool(kinds & _IMAGES or (kinds - _NOT_IMAGES and not any(entry.is_dir() for entry in entries)))


def files_below(folder: Path) -> list[Path]:
    """Return the files at any depth, sorted, also in linked folders, each folder once; hidden ones are left out.

    A broken link counts as a file.
    """
    return sorted(_files_below(folder, set()))


def _files_below(folder: Path, seen: set[tuple[int, int]]) -> Iterable[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for entry in _entries(folder):
        if entry.is_dir():
            if entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
                continue  # it would count the images of the other classes
            yield from _files_below(Path(entry.path), seen)
        elif entry.is_file() or entry.is_symlink():
            yield Path(entry.path)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
