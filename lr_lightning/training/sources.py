"""Where images come from: each source returns a `RawSplits`, and the app's `data=` choices name the sources."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lr_lightning.diagnosis.stratify import stratified_split
from lr_lightning.errors import DataError
from lr_lightning.training.images import Encoded, Images, RawSplits, require

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_SPLIT_NAMES = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}
_TEST_FRACTION, _TEST_SEED = 0.2, 0  # of the digits
_NETWORK_SECONDS = 5.0
_Labels = NDArray[np.int64] | list[str]


def digits() -> RawSplits:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, 10 classes; no network.

    There is no test split, so the same stratified fifth is always held out. The grey values 0..16 are scaled to 0..255.
    """
    places = getattr(find_spec("sklearn"), "submodule_search_locations", None) or [""]
    file = Path(
        places[0], "datasets", "data", "digits.csv.gz"
    )  # read without scikit-learn, whose import takes a second
    if file.is_file():
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        data, labels = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        data, labels = (column.astype(np.int64) for column in load_digits(return_X_y=True))
    pixels = np.rint(data.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    keep, held_out = stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    train, test = (Images(labels[rows], array=pixels[rows]) for rows in (keep, held_out))
    return RawSplits(train, None, test, class_names=tuple("0123456789"), name="digits")


def image_folder(root: str | Path, *, name: str | None = None) -> RawSplits:
    """Read image files from one folder per class, or from ``train/ val/ test/`` with such folders.

    Classes are the folders' names, sorted. Files may lie deeper; hidden files and folders are left out. A relative path
    starts at the working directory. Images are read when they are needed. If ``root`` contains a ``train`` folder,
    ``val`` (or ``valid``, ``validation``) and ``test`` are looked for beside it.

    Raises:
        DataError: The folder does not exist or has no class folders, or a class folder is empty.
    """
    folder = Path(root).expanduser().absolute()
    require(folder.is_dir(), f"data.root: no such folder: {folder}. Give a folder with one folder a class.")
    splits = {"train": folder}
    if (folder / "train").is_dir():
        splits = {
            split: folder / alias
            for split, aliases in _SPLIT_NAMES.items()
            for alias in aliases[::-1]  # of several, the first name takes effect
            if (folder / alias).is_dir()
        }
    files = {split: _class_files(path) for split, path in splits.items()}
    names = sorted(set().union(*files.values()))
    images = {split: _labelled(classes, names) for split, classes in files.items()}
    return RawSplits(images["train"], images.get("val"), images.get("test"), tuple(names), name or folder.name)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each class folder, sorted."""
    classes = {
        entry.name: sorted(
            path
            for path in entry.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(entry).parts)
        )
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    require(bool(classes), f"data.root: {folder} has no folders in it. Give a folder with one folder a class.")
    for name, files in classes.items():
        empty = f"data.root: the class folder {folder / name} is empty. Add images or remove the folder."
        require(bool(files), empty)
    return classes


def _labelled(classes: dict[str, list[Path]], names: list[str]) -> Images:
    labels = [names.index(name) for name, files in classes.items() for _ in files]
    return Images(np.asarray(labels, np.int64), encoded=[path for files in classes.values() for path in files])


def parquet(
    train: str | Path,
    test: str | Path | None = None,
    *,
    val: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
) -> RawSplits:
    """Read images from one parquet file per split. Relative paths start at the working directory.

    Class names come from the file's Hugging Face metadata if it has any, else they are the sorted labels. The images
    stay encoded. The image column is by default ``image`` or ``img``, the label column (integers or strings) ``label``,
    ``fine_label`` or ``labels``.

    Raises:
        DataError: A file is missing or not a parquet file, or a column is missing or of the wrong type.
    """
    paths = {"train": train, "val": val, "test": test}
    tables = {
        split: _read_parquet(Path(path).expanduser().absolute(), f"data.{split}", image_column, label_column)
        for split, path in paths.items()
        if path is not None
    }
    names = _names_in_metadata(tables["train"])
    return _splits_from_tables(tables, names, name or Path(tables["train"].origin).parent.name)


def hub(
    path: str,
    subset: str | None = None,
    *,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | Path | None = None,
) -> RawSplits:
    """Load an image data set from the Hugging Face hub, from its local cache, or from a local folder in its layout.

    ``path`` is a hub id, such as ``uoft-cs/cifar10``, or an existing folder. The splits are ``train``, ``validation``
    and ``test`` as far as they exist; the images stay encoded. Without a network the cache is used; if the data is not
    there either, the error comes within seconds. The columns' default names are those of `parquet`.

    Raises:
        DataError: The data cannot be reached or found, or has no such columns or no training split.
    """
    # The hub's libraries read this when they are imported. The user's own choice stands.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    import datasets

    folder = Path(path).expanduser()
    is_local = folder.is_dir()
    offline = not is_local and not _reachable(datasets.config.HF_ENDPOINT)
    place, cache = str(folder.absolute()) if is_local else path, None if cache_dir is None else str(cache_dir)
    try:
        with _offline() if offline else nullcontext():
            loaded = datasets.load_dataset(place, subset, revision=revision, cache_dir=cache)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if offline:
            raise DataError(
                f"data.path: {path} is not in the local cache and {datasets.config.HF_ENDPOINT} cannot be reached. "
                "Connect to the network once, or use local files: data=parquet data.train=FILE data.test=FILE, or "
                "data=image_folder data.root=FOLDER."
            ) from error
        raise DataError(f"data.path: cannot load {path}: {error}") from error
    tables: dict[str, _ImageTable] = {}
    for split, aliases in _SPLIT_NAMES.items():
        if found := next((alias for alias in aliases if alias in loaded), None):
            tables[split] = _hub_table(loaded[found], f"the {found} split of {path}", image_column, label_column)
    if "train" not in tables:
        raise DataError(f"data.path: {path} has no train split, only {', '.join(map(repr, loaded))}.")
    feature = loaded["train"].features[tables["train"].label]
    return _splits_from_tables(tables, getattr(feature, "names", None), folder.name)


def _reachable(endpoint: str, timeout: float = _NETWORK_SECONDS) -> bool:
    """Check whether the hub answers; its libraries would retry for half a minute before they give up."""
    from huggingface_hub import get_session

    answers: list[int] = []

    def ask() -> None:
        # The HTTP client behind the session, and so its exceptions, differ between versions of the library.
        with suppress(Exception):
            answers.append(get_session().head(endpoint, timeout=timeout).status_code)

    # In a thread, since no timeout covers the look-up of a host name.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` use its cache only. It reads the environment just once, at import."""
    import datasets
    import huggingface_hub.constants as hub_constants

    before = datasets.config.HF_HUB_OFFLINE, hub_constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub_constants.HF_HUB_OFFLINE = before


@dataclass(frozen=True)
class _ImageTable:
    """One split as an Arrow table, with the names of its columns."""

    table: pa.Table
    image: str  # binary, or a struct of ``bytes`` and, for images stored beside the table, ``path``
    label: str  # integers or strings
    origin: str  # where the table comes from, for messages
    key: str  # the config key that names it, for messages


def _read_parquet(path: Path, key: str, image_column: str | None, label_column: str | None) -> _ImageTable:
    require(path.is_file(), f"{key}: no such file: {path}. Give the path of a parquet file.")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image, label = _find_columns(names, image_column, label_column, f"{key}: {path}")
            # By row groups: read at once, a struct column above 2 GiB would not fit Arrow's 32-bit offsets.
            groups = [file.read_row_group(group, columns=[image, label]) for group in range(file.num_row_groups)]
            table = pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{key}: {path} is not a readable parquet file ({error}). Give another file.") from error
    return _ImageTable(table, image, label, str(path), key)


def _hub_table(dataset: Any, origin: str, image_column: str | None, label_column: str | None) -> _ImageTable:
    import datasets

    image, label = _find_columns(dataset.column_names, image_column, label_column, f"data.path: {origin}")
    dataset = dataset.select_columns([image, label])
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    # In Arrow form the rows stay memory-mapped from the cache.
    return _ImageTable(dataset.with_format("arrow")[:], image, label, origin, "data.path")


def _find_columns(names: Sequence[str], image: str | None, label: str | None, where: str) -> tuple[str, str]:
    """Return the names of the image and the label column: those asked for, or the first known names."""

    def find(kind: str, candidates: Sequence[str]) -> str:
        for candidate in candidates:
            if candidate in names:
                return candidate
        looked_for, present = " or ".join(map(repr, candidates)), ", ".join(map(repr, names)) or "none"
        raise DataError(
            f"{where} has no {kind} column {looked_for}; its columns are {present}. Name one with data.{kind}_column."
        )

    return find("image", (image,) if image else _IMAGE_COLUMNS), find("label", (label,) if label else _LABEL_COLUMNS)


def _names_in_metadata(table: _ImageTable) -> list[str] | None:
    """Return the class names from the metadata that the `datasets` library writes into a schema."""
    try:
        metadata = json.loads((table.table.schema.metadata or {})[b"huggingface"])
        return [str(name) for name in metadata["info"]["features"][table.label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _splits_from_tables(tables: Mapping[str, _ImageTable], class_names: Sequence[str] | None, name: str) -> RawSplits:
    """Make splits of tables; by default the class names are the sorted labels of all tables."""
    raw = {split: _raw_labels(table) for split, table in tables.items()}
    as_text = {isinstance(labels, list) for labels in raw.values()}
    require(len(as_text) == 1, "data: labels are integers in one split and strings in another. Use the same in all.")
    index: dict[Any, int] | None = None
    if class_names is None or as_text == {True}:
        known: list[Any] = list(class_names or sorted({label for labels in raw.values() for label in set(labels)}))
        index = {label: number for number, label in enumerate(known)}
        class_names = [str(label) for label in known]
    images = {
        split: Images(_class_indices(raw[split], index, table), encoded=_encoded(table), origin=table.origin)
        for split, table in tables.items()
    }
    return RawSplits(images["train"], images.get("val"), images.get("test"), tuple(class_names), name)


def _raw_labels(table: _ImageTable) -> _Labels:
    column = table.table.column(table.label)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"{table.key}: row {row} of {table.origin} has no label. Give it one or remove it.")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [str(label) for label in column.to_pylist()]
    raise DataError(
        f"{table.key}: expected integers or strings in column {table.label!r} of {table.origin}, got {column.type}. "
        "Name another column with data.label_column."
    )


def _class_indices(labels: _Labels, index: Mapping[Any, int] | None, table: _ImageTable) -> NDArray[np.int64]:
    if index is None:
        return np.asarray(labels, np.int64)
    if unknown := sorted(set(labels) - index.keys()):
        raise DataError(f"{table.key}: {table.origin} has the label {unknown[0]!r}, which is none of the classes.")
    return np.fromiter((index[label] for label in labels), np.int64, count=len(labels))


def _encoded(table: _ImageTable) -> "_EncodedColumn":
    column = table.table.column(table.image)
    kind = column.type
    is_struct = pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]
    if not (is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{table.key}: expected encoded images (bytes) in column {table.image!r} of {table.origin}, got {kind}. "
            "Name another column with data.image_column."
        )
    return _EncodedColumn(column)


class _EncodedColumn(Sequence[Encoded]):
    """An Arrow column of encoded images, read row by row without a copy of the column."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "_EncodedColumn": ...
    def __getitem__(self, index: int | slice) -> "Encoded | _EncodedColumn":
        """Return one row's bytes or path (DataError if it is empty); a slice is a view."""
        if isinstance(index, slice):
            return _EncodedColumn(self.column[index])
        value = self.column[index].as_py()
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            return bytes(content)
        if path is None:
            raise DataError("there is no image in it")
        return Path(path)
