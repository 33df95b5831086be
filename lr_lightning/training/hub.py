"""Data sets of the Hugging Face hub, and local folders in its layout; the only importer of `datasets`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from lr_lightning.training.images import DataError, RawSplits
from lr_lightning.training.tables import IMAGE_COLUMNS, LABEL_COLUMNS, ImageTable, find_column, splits_from_tables

_SPLITS = {"train": ("train",), "val": ("validation", "valid", "val"), "test": ("test",)}
_PROBE_SECONDS = 5.0


def hub(
    path: str,
    subset: str | None = None,
    *,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | Path | None = None,
) -> RawSplits:
    """Load an image data set from the hub, from its local cache, or from a local folder.

    Without a network the cache is used; if the data is not there either, the error comes within seconds.

    Args:
        path: Hub id, such as ``uoft-cs/cifar10``, or an existing local folder.
        subset: Configuration of the data set, where it has several.
        revision: Branch, tag or commit; by default the newest.
        image_column: Column with the images; by default ``image`` or ``img``.
        label_column: Column with the labels; by default ``label``, ``fine_label`` or ``labels``.
        cache_dir: Where `datasets` keeps its files; by default its own choice.

    Returns:
        The splits: ``train``, ``validation`` and ``test`` as far as they exist, the images still encoded.

    Raises:
        DataError: If the data cannot be reached or found, or has no such columns or no training split.
    """
    _silence_telemetry()
    import datasets

    folder = Path(path).expanduser()
    is_local = folder.is_dir()
    offline = not is_local and not _reachable(datasets.config.HF_ENDPOINT)
    try:
        with _offline() if offline else nullcontext():
            loaded = datasets.load_dataset(
                str(folder.absolute()) if is_local else path,
                subset,
                revision=revision,
                cache_dir=None if cache_dir is None else str(cache_dir),
            )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if offline:
            raise DataError(
                f"data.path: {path} is not in the local cache and {datasets.config.HF_ENDPOINT} cannot be reached. "
                "Connect to the network once, or use local files: data=parquet data.train=FILE data.test=FILE, or "
                "data=image_folder data.root=FOLDER."
            ) from error
        raise DataError(f"data.path: cannot load {path}: {error}") from error
    tables: dict[str, ImageTable] = {}
    for split, aliases in _SPLITS.items():
        found = next((alias for alias in aliases if alias in loaded), None)
        if found is not None:
            tables[split] = _table(loaded[found], f"the {found} split of {path}", image_column, label_column)
    if "train" not in tables:
        raise DataError(f"data.path: {path} has no train split, only {', '.join(map(repr, loaded))}.")
    feature = loaded["train"].features[tables["train"].label]
    return splits_from_tables(tables, getattr(feature, "names", None), folder.name)


def _table(dataset: Any, origin: str, image_column: str | None, label_column: str | None) -> ImageTable:
    import datasets

    where = f"data.path: {origin}"
    image = find_column(dataset.column_names, image_column, IMAGE_COLUMNS, "image", where)
    label = find_column(dataset.column_names, label_column, LABEL_COLUMNS, "label", where)
    dataset = dataset.select_columns([image, label])
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    # In Arrow form the rows stay memory-mapped from the cache.
    return ImageTable(dataset.with_format("arrow")[:], image, label, origin, "data.path")


def _silence_telemetry() -> None:
    """Ask the hub's libraries to report nothing; they read this when they are imported. The user's choice stands."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")


def _reachable(endpoint: str, timeout: float = _PROBE_SECONDS) -> bool:
    """Whether the hub answers at all. The libraries themselves retry for half a minute before they give up."""
    from huggingface_hub import get_session

    answers: list[int] = []

    def ask() -> None:
        # Which HTTP client is behind the session, and so what it raises, differs between versions of the library.
        with suppress(Exception):
            answers.append(get_session().head(endpoint, timeout=timeout).status_code)

    # In a thread, since no timeout covers the look-up of a host name.
    probe = Thread(target=ask, daemon=True)
    probe.start()
    probe.join(timeout)
    return bool(answers)


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look into its cache only. It reads the environment just once, at import."""
    import datasets
    import huggingface_hub.constants as hub_constants

    before = datasets.config.HF_HUB_OFFLINE, hub_constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub_constants.HF_HUB_OFFLINE = before
