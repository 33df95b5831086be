"""Where images come from: each source returns a `RawSplits`, and the app's `data=` choices name the sources."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lr_lightning.diagnosis.statistics import stratified_split
from lr_lightning.errors import DataError
from lr_lightning.training.folders import find_splits, split_of
from lr_lightning.training.images import Encoded, Images, RawSplits, require

log = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_TEST_FRACTION, _TEST_SEED = 0.2, 0  # of the digits
_NETWORK_SECONDS = 5.0
Paths = str | Path | Sequence[str | Path]
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

    Classes are the folders' names, sorted. Files may lie deeper, and in linked folders; hidden files and folders are
    left out. A relative path starts at the working directory. Images are read when they are needed. `find_splits` tells
    splits and classes apart.

    Raises:
        DataError: The folder does not exist or has no class folders, or a class folder is empty.
    """
    folder = Path(root).expanduser().absolute()
    require(folder.is_dir(), f"data.root: no such folder: {folder}. Give a folder with one folder a class.")
    files = find_splits(folder)
    names = sorted(set().union(*files.values()))
    images = {split: _labelled(classes, names) for split, classes in files.items()}
    return RawSplits(images["train"], images.get("val"), images.get("test"), tuple(names), name or folder.name)


def _labelled(classes: dict[str, list[Path]], names: list[str]) -> Images:
    index = {name: number for number, name in enumerate(names)}
    labels = [index[name] for name, files in classes.items() for _ in files]
    return Images(np.asarray(labels, np.int64), encoded=[path for files in classes.values() for path in files])


def parquet(
    train: Paths,
    test: Paths | None = None,
    *,
    val: Paths | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
) -> RawSplits:
    """Read images from parquet files: for each split a file, a pattern, a folder of files, or a list of these.

    Relative paths start at the working directory. Class names come from the file's Hugging Face metadata if it has any,
    else they are the sorted labels. The images stay encoded; an image that is a ``path`` is relative to its parquet
    file. The image column is by default ``image`` or ``img``, the label column (integers or strings) ``label``,
    ``fine_label`` or ``labels``. A test split without labels is left out.

    Raises:
        DataError: A file is missing or not a parquet file, or a column is missing or of the wrong type.
    """
    given = {"train": train, "val": val, "test": test}
    tables = {
        split: _read_shards(parquet_files(paths, f"data.{split}"), f"data.{split}", image_column, label_column)
        for split, paths in given.items()
        if paths is not None
    }
    names = _names_in_metadata(tables["train"])
    return _splits_from_tables(tables, names, name or Path(tables["train"].origin).parent.name)


def parquet_files(paths: Paths, key: str) -> list[Path]:
    """Return the files that a path, a pattern, a folder or a list of these means, sorted for each; ``key`` names it.

    Raises:
        DataError: There is no such file, or a folder mixes the files of several splits.
    """
    if not isinstance(paths, str | Path):
        return [file for path in paths for file in parquet_files(path, key)]
    path = Path(paths).expanduser().absolute()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
        splits = {split for file in files for word in re.split(r"\W", file.stem)[:1] if (split := split_of(word))}
        require(
            len(splits) <= 1,
            f"{key}: {path} holds files of several splits ({', '.join(sorted(splits))}). Give a pattern, such as "
            f"'{path}/train*.parquet'.",
        )
    else:
        files = [path] if path.is_file() else sorted(map(Path, glob(str(path), recursive=True)))
    require(bool(files), f"{key}: no such file: {path}. Give the path of a parquet file, a folder or a pattern.")
    return files


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
    for found in loaded:
        if (split := split_of(found)) is None or split in tables:
            log.warning(
                f"data.path: the {found} split of {path} is left out: only train, validation and test are used."
            )
        else:
            origin = f"the {found} split of {path}"
            tables[split] = _hub_table(loaded[found], origin, image_column, label_column, is_test=split == "test")
    if "train" not in tables:
        raise DataError(f"data.path: {path} has no train split, only {', '.join(map(repr, loaded))}.")
    training = next(loaded[found] for found in loaded if split_of(found) == "train")
    feature = training.features[tables["train"].label]
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
    shards: tuple[tuple[str, int], ...] = ()  # the files that the table consists of, and their rows


def _read_shards(files: Sequence[Path], key: str, image_column: str | None, label_column: str | None) -> _ImageTable:
    """Read the files of one split as one table; those after the first have its columns."""
    first = _read_parquet(files[0], key, image_column, label_column)
    others = [_read_parquet(path, key, first.image, first.label) for path in files[1:]]
    try:
        table = pa.concat_tables([first.table, *(other.table for other in others)], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"{key}: the files have different columns ({error}). Give files of one kind.") from error
    shards = tuple((shard.origin, len(shard.table)) for shard in (first, *others))
    return replace(first, table=table.replace_schema_metadata(first.table.schema.metadata), shards=shards)


def _read_parquet(path: Path, key: str, image_column: str | None, label_column: str | None) -> _ImageTable:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image, label = _find_columns(names, image_column, label_column, f"{key}: {path}", key == "data.test")
            columns = [name for name in (image, label) if name]
            # By row groups: read at once, a struct column above 2 GiB would not fit Arrow's 32-bit offsets.
            groups = [file.read_row_group(group, columns=columns) for group in range(file.num_row_groups)]
            table = pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{key}: {path} is not a readable parquet file ({error}). Give another file.") from error
    return _ImageTable(table, image, label, str(path), key)


def _hub_table(
    dataset: Any, origin: str, image_column: str | None, label_column: str | None, *, is_test: bool
) -> _ImageTable:
    import datasets

    def only(kind: type, known: Sequence[str]) -> str | None:
        found = [name for name, feature in dataset.features.items() if isinstance(feature, kind)]
        return found[0] if len(found) == 1 and not set(known) & set(dataset.column_names) else None

    image_column = image_column or only(datasets.Image, _IMAGE_COLUMNS)
    label_column = label_column or only(datasets.ClassLabel, _LABEL_COLUMNS)
    image, label = _find_columns(dataset.column_names, image_column, label_column, f"data.path: {origin}", is_test)
    dataset = dataset.select_columns([name for name in (image, label) if name])
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    # In Arrow form the rows stay memory-mapped from the cache.
    return _ImageTable(dataset.with_format("arrow")[:], image, label, origin, "data.path")


def _find_columns(
    names: Sequence[str], image: str | None, label: str | None, where: str, is_test: bool
) -> tuple[str, str]:
    """Return the names of the image and the label column: those asked for, or the first known names.

    The name of the label column is empty if a test split has no labels.
    """

    def find(kind: str, candidates: Sequence[str]) -> str:
        for candidate in candidates:
            if candidate in names:
                return candidate
        looked_for, present = " or ".join(map(repr, candidates)), ", ".join(map(repr, names)) or "none"
        raise DataError(
            f"{where} has no {kind} column {looked_for}; its columns are {present}. Name one with data.{kind}_column."
        )

    labels = (label,) if label else _LABEL_COLUMNS
    has_labels = not is_test or set(labels) & set(names)
    return find("image", (image,) if image else _IMAGE_COLUMNS), find("label", labels) if has_labels else ""


def _names_in_metadata(table: _ImageTable) -> list[str] | None:
    """Return the class names from the metadata that the `datasets` library writes into a schema."""
    try:
        metadata = json.loads((table.table.schema.metadata or {})[b"huggingface"])
        return [str(name) for name in metadata["info"]["features"][table.label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _splits_from_tables(tables: Mapping[str, _ImageTable], class_names: Sequence[str] | None, name: str) -> RawSplits:
    """Make splits of tables; by default the class names are the sorted labels of all tables."""
    if "test" in tables and not _has_labels(tables["test"]):
        log.info(f"{tables['test'].key}: {tables['test'].origin} has no labels, so there is no test set.")
        tables = {split: table for split, table in tables.items() if split != "test"}
    raw = {split: _raw_labels(table) for split, table in tables.items()}
    as_text = {isinstance(labels, list) for labels in raw.values()}
    require(len(as_text) == 1, "data: labels are integers in one split and strings in another. Use the same in all.")
    index: dict[Any, int] | None = None
    if class_names is None or as_text == {True}:
        known: list[Any] = list(class_names or sorted({label for labels in raw.values() for label in set(labels)}))
        index = {label: number for number, label in enumerate(known)}
        class_names = [str(label) for label in known]
    images = {
        split: Images(
            _class_indices(raw[split], index, table), encoded=_encoded(table), origin=table.origin, shards=table.shards
        )
        for split, table in tables.items()
    }
    return RawSplits(images["train"], images.get("val"), images.get("test"), tuple(class_names), name)


def _has_labels(table: _ImageTable) -> bool:
    """Tell whether a test split has labels: published ones often have none, or -1 everywhere."""
    if not table.label:
        return False
    column = table.table.column(table.label)
    return column.null_count < len(column) and pc.unique(column).to_pylist() not in ([-1], ["-1"])


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
    return _EncodedColumn(column, table.shards)


class _EncodedColumn(Sequence[Encoded]):
    """An Arrow column of encoded images, read row by row without a copy of the column.

    A relative path is relative to the file, of ``shards``, that its row is from.
    """

    def __init__(self, column: pa.ChunkedArray, shards: tuple[tuple[str, int], ...] = ()) -> None:
        self.column, self.shards = column, shards
        self.ends = np.cumsum([rows for _, rows in shards])

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """Return the bytes or the path of a row (DataError if it is empty), or those of several."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        value = self.column[index].as_py()
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            return bytes(content)
        if path is None:
            raise DataError("there is no image in it")
        if not self.shards:
            return Path(path)
        file, _ = self.shards[int(np.searchsorted(self.ends, index, side="right"))]
        return Path(file).parent / str(path)
