"""Images and labels from Arrow tables: parquet files, and what the Hugging Face hub gives."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lr_lightning.training.images import DataError, Encoded, Images, RawSplits

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True)
class ImageTable:
    """One split as a table, with the names of its two columns.

    Attributes:
        table: The rows.
        image: Name of the image column: binary, or a struct of ``bytes`` and ``path``.
        label: Name of the label column: integers or strings.
        origin: Where the table comes from, for messages.
        key: The config key that names it, for messages.
    """

    table: pa.Table
    image: str
    label: str
    origin: str
    key: str


def parquet(
    train: str | Path,
    test: str | Path | None = None,
    *,
    val: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    name: str | None = None,
) -> RawSplits:
    """Read images from parquet files, one a split. Relative paths start at the working directory.

    Args:
        train: File with the training images.
        test: File with the test images, if any.
        val: File with validation images, if the data has its own.
        image_column: Column with encoded images; by default ``image`` or ``img``.
        label_column: Column with integers or strings; by default ``label``, ``fine_label`` or ``labels``.
        name: Name of the data set; by default that of the training file's folder.

    Returns:
        The splits. Class names come from the file's Hugging Face metadata if there, else they are the sorted labels.

    Raises:
        DataError: If a file is missing or no parquet file, or a column is missing or of the wrong type.
    """
    paths = {"train": train, "val": val, "test": test}
    tables = {
        split: _read(Path(path).expanduser().absolute(), f"data.{split}", image_column, label_column)
        for split, path in paths.items()
        if path is not None
    }
    names = _metadata_names(tables["train"])
    return splits_from_tables(tables, names, name or Path(tables["train"].origin).parent.name)


def splits_from_tables(tables: Mapping[str, ImageTable], class_names: Sequence[str] | None, name: str) -> RawSplits:
    """Make splits of tables.

    Args:
        tables: The tables of ``train`` and, where there are any, ``val`` and ``test``.
        class_names: Names of the classes; by default the sorted labels of all tables.
        name: Name of the data set.

    Returns:
        The splits, their images still encoded.

    Raises:
        DataError: If a label is missing, of the wrong type or of no known class.
    """
    raw = {split: _raw_labels(table) for split, table in tables.items()}
    as_text = {isinstance(labels, list) for labels in raw.values()}
    if len(as_text) > 1:
        raise DataError("data: labels are integers in one split and strings in another. Use the same in all.")
    if class_names is None or as_text == {True}:
        known: list[Any] = list(class_names or sorted({label for labels in raw.values() for label in set(labels)}))
        index = {label: number for number, label in enumerate(known)}
        class_names = [str(label) for label in known]
    else:
        index = None
    images = {
        split: Images(
            labels=_indices(raw[split], index, table),
            encoded=_encoded(table),
            origin=table.origin,
        )
        for split, table in tables.items()
    }
    return RawSplits(images["train"], images.get("val"), images.get("test"), tuple(class_names), name)


def find_column(names: Sequence[str], wanted: str | None, candidates: Sequence[str], kind: str, where: str) -> str:
    """Choose the column of a table.

    Args:
        names: The columns present.
        wanted: The column asked for, if any.
        candidates: Names to look for otherwise, the first present wins.
        kind: ``image`` or ``label``.
        where: Config key and place of the table, for the message.

    Returns:
        The column's name.

    Raises:
        DataError: If it is not there; the message names the columns that are.
    """
    for candidate in (wanted,) if wanted else candidates:
        if candidate in names:
            return candidate
    looked_for = " or ".join(repr(candidate) for candidate in ((wanted,) if wanted else candidates))
    present = ", ".join(repr(column) for column in names) or "none"
    raise DataError(
        f"{where} has no {kind} column {looked_for}; its columns are {present}. Name one with data.{kind}_column."
    )


def _read(path: Path, key: str, image_column: str | None, label_column: str | None) -> ImageTable:
    if not path.is_file():
        raise DataError(f"{key}: no such file: {path}. Give the path of a parquet file.")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = find_column(names, image_column, IMAGE_COLUMNS, "image", f"{key}: {path}")
            label = find_column(names, label_column, LABEL_COLUMNS, "label", f"{key}: {path}")
            # By row groups: read at once, a struct column above 2 GiB would not fit Arrow's 32-bit offsets.
            groups = [file.read_row_group(group, columns=[image, label]) for group in range(file.num_row_groups)]
            table = pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{key}: {path} is not a readable parquet file ({error}). Give another file.") from error
    return ImageTable(table, image, label, str(path), key)


def _metadata_names(table: ImageTable) -> list[str] | None:
    """Class names from the metadata that the `datasets` library writes into a schema."""
    try:
        metadata = json.loads((table.table.schema.metadata or {})[b"huggingface"])
        names = metadata["info"]["features"][table.label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names]


def _raw_labels(table: ImageTable) -> NDArray[np.int64] | list[str]:
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


def _indices(
    labels: NDArray[np.int64] | list[str], index: Mapping[Any, int] | None, table: ImageTable
) -> NDArray[np.int64]:
    if index is None:
        return np.asarray(labels, np.int64)
    unknown = sorted(set(labels) - index.keys())
    if unknown:
        raise DataError(f"{table.key}: {table.origin} has the label {unknown[0]!r}, which is none of the classes.")
    return np.fromiter((index[label] for label in labels), np.int64, count=len(labels))


def _encoded(table: ImageTable) -> "EncodedColumn":
    column = table.table.column(table.image)
    kind = column.type
    is_struct = pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]
    if not (is_struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{table.key}: expected encoded images (bytes) in column {table.image!r} of {table.origin}, got {kind}. "
            "Name another column with data.image_column."
        )
    return EncodedColumn(column)


class EncodedColumn(Sequence[Encoded]):
    """An Arrow column of encoded images, read row by row without a copy of the column.

    Args:
        column: binary, or a struct with the fields ``bytes`` and, for images stored beside the table, ``path``.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> "EncodedColumn": ...
    def __getitem__(self, index: int | slice) -> "Encoded | EncodedColumn":
        """One row's bytes or path; a slice is a view.

        Raises:
            ValueError: If the row is empty.
        """
        if isinstance(index, slice):
            return EncodedColumn(self.column[index])
        value = self.column[index].as_py()
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            return bytes(content)
        if path is None:
            raise ValueError("there is no image in it")
        return Path(path)
