"""From encoded images to uint8 pixels: one common format for a data set, decoded at once or on demand."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lr_lightning._threads import usable_cores
from lr_lightning.errors import DataError
from lr_lightning.training.images import (
    SPLIT_WORDS,
    TOO_MANY,
    Encoded,
    Images,
    UnreadableImage,
    list_images,
    refuse_unreadable,
)
from lr_lightning.training.pixels import MAX_PIXELS, Format, Header, choose_range, decode, read_header, read_values

log = logging.getLogger(__name__)
T = TypeVar("T")

_CHUNK = 256
_TINY_FILE = 3_000  # mean bytes of an encoded image; about 100 x 100 pixels as a JPEG
_SIZE_SAMPLE = 64
_DEFAULT_SIDE = 64
_PROGRESS_FROM = 5_000
_DEEP_SAMPLE = 20_000  # images of more than 8 bits that stand for all
_DEEP_VALUES = 4_000_000  # values, of all of them, whose distribution tells outliers
_END = 4_096  # bytes


class ImageStore(Protocol):
    """N images that can be cut into batches by index."""

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the images at ``indices``: uint8 [B, C, H, W] in channels_last layout."""


class MemoryImages:
    """An `ImageStore` of decoded images."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = torch.from_numpy(pixels)  # [N, H, W, C], which makes every batch channels_last without a copy

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the images at ``indices``; see `ImageStore`."""
        return self.pixels.index_select(0, torch.from_numpy(indices)).permute(0, 3, 1, 2)


class EncodedImages:
    """An `ImageStore` of images that stay encoded and are decoded to a format on every access."""

    def __init__(self, images: Images, fmt: Format) -> None:
        self.images, self.format = images, fmt

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the images at ``indices``; UnreadableImage if one cannot be decoded."""
        fmt = self.format
        pixels = np.empty((len(indices), fmt.height, fmt.width, fmt.channels), np.uint8)
        for out, index in zip(pixels, indices.tolist(), strict=True):
            out[...] = decode(self.images, index, fmt)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def choose_format(splits: Sequence[Images], image_size: int | None, max_pixels: int = MAX_PIXELS) -> Format:
    """Read the headers of all images and choose their common format.

    The height and width are ``image_size``; without it they are the images' own, or 64 x 64 (with one log line) if they
    differ in size. The first split is the training set: its pixels choose what images of more than 8 bits are scaled
    from. A DataError names the files that are missing, too large or no images, or have unsupported pixels.
    """
    unreadable: list[UnreadableImage] = []
    found = [set(_headers(images, unreadable, max_pixels)) for images in splits]
    refuse_unreadable(unreadable)
    headers = set[Header]().union(*found)
    sizes = {header.size for header in headers}
    width, height = (image_size or _DEFAULT_SIDE,) * 2
    if image_size is None and len(sizes) == 1:
        ((width, height),) = sizes
    elif image_size is None:
        log.info(
            f"Images have {len(sizes)} different sizes: each is resized (shorter side) and centre-cropped to "
            f"{height} x {width}. Give data.image_size for another size."
        )
    if any(header.has_frames for header in headers):
        log.info("Some images have several frames or pages: the first one is used.")
    depths = {header.depth for header in found[0]}
    ranges = _measure_ranges(splits[0], depths, max_pixels) if depths != {""} else {}
    return Format(1 if all(header.is_grey for header in headers) else 3, height, width, ranges, max_pixels)


def _measure_ranges(images: Images, depths: set[str], max_pixels: int) -> dict[str, tuple[float, float]]:
    """Choose what the pixels of more than 8 bits are scaled from, and say it, for each of their depths."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), _DEEP_SAMPLE)).astype(int).tolist()
    share = max(16, _DEEP_VALUES // len(chosen))  # values of an image
    seen: dict[str, list[NDArray[np.float64]]] = {depth: [] for depth in sorted(depths - {""})}
    unreadable: list[UnreadableImage] = []

    def measure(index: int) -> None:
        if (found := read_values(images, index, max_pixels)) is not None:
            depth, values = found
            some = values[:: max(1, values.size // share)].astype(np.float64)
            seen[depth].append(np.append(some, [values.min(), values.max()]))

    pieces = in_threads(
        lambda chunk: _each(measure, chosen[chunk.start : chunk.stop]), len(chosen), threads=usable_cores()
    )
    for found in pieces:
        unreadable += found
        refuse_unreadable(unreadable, least=TOO_MANY)
    refuse_unreadable(unreadable)
    ranges = {}
    for depth, parts in seen.items():
        values = np.concatenate(parts)
        central = np.quantile(values, (0.001, 0.999)).tolist()
        low, high = choose_range(depth, float(values.min()), float(values.max()), central, alone=len(depths) == 1)
        ranges[depth] = (low, high)
        log.info(
            f"Pixels are {depth}, in training from {values.min():g} to {values.max():g}: {low:g} to {high:g} becomes "
            "0 to 255, and so it will be for predictions."
        )
    return ranges


def without_unreadable(images: Images, name: str, max_pixels: int = MAX_PIXELS) -> Images:
    """Decode every image once and leave out, with a warning that names the first ones, those that cannot be read."""
    fmt = Format(3, _DEFAULT_SIDE, _DEFAULT_SIDE, max_pixels=max_pixels)
    unreadable: dict[int, UnreadableImage] = {}

    def check(index: int) -> None:
        try:
            if read_values(images, index, max_pixels) is None:
                decode(images, index, fmt)
        except UnreadableImage as error:
            unreadable[index] = UnreadableImage(error.what, error.reason)

    if images.array is None:
        chunks = in_threads(partial(_each, check), len(images), threads=useful_threads(images))
        for _ in _with_progress_bar(chunks, len(images), f"Checking {name} images"):
            pass
    if not unreadable:
        return images
    found = [unreadable[index] for index in sorted(unreadable)]
    log.warning(
        f"{len(found):,} of {len(images):,} {SPLIT_WORDS[name]} images cannot be read and are left out:\n"
        f"{list_images(found)}"
    )
    return images.keep(np.setdiff1d(np.arange(len(images)), list(unreadable)))


def decode_all(splits: Mapping[str, Images], fmt: Format) -> dict[str, MemoryImages]:
    """Decode every image of every split once, on all cores if that helps, with a progress bar for many images."""
    unreadable: list[UnreadableImage] = []
    decoded = {name: _decode_split(name, images, fmt, unreadable) for name, images in splits.items()}
    refuse_unreadable(unreadable)
    return decoded


def _decode_split(name: str, images: Images, fmt: Format, unreadable: list[UnreadableImage]) -> MemoryImages:
    array = images.array
    if array is not None and array.shape[1:] == (fmt.channels, fmt.height, fmt.width):
        return MemoryImages(np.ascontiguousarray(array.transpose(0, 2, 3, 1)))
    pixels = np.empty((len(images), fmt.height, fmt.width, fmt.channels), np.uint8)

    def decode_one(index: int) -> None:
        pixels[index] = decode(images, index, fmt)

    chunks = in_threads(partial(_each, decode_one), len(images), threads=useful_threads(images))
    for found in _with_progress_bar(chunks, len(images), f"Decoding {name} images"):
        unreadable += found
        refuse_unreadable(unreadable, least=TOO_MANY)
    return MemoryImages(pixels)


def _headers(images: Images, unreadable: list[UnreadableImage], max_pixels: int) -> Iterator[Header]:
    """Yield the different headers of the images; an array of pixels has one, since its images are alike."""
    if images.array is not None:
        _, channels, height, width = images.array.shape
        yield Header(channels == 1, (width, height))
        return

    def read_chunk(chunk: range) -> tuple[set[Header], list[UnreadableImage]]:
        headers = set[Header]()
        return headers, _each(lambda index: headers.add(read_header(images, index, max_pixels)), chunk)

    try:
        are_files = isinstance(images.item(0), Path)
    except DataError:  # a table's row without an image, which is reported with all others
        are_files = False
    # Reading a header from memory is Python's work, which threads would not share; a file is waited for.
    for headers, found in in_threads(read_chunk, len(images), threads=usable_cores() if are_files else 1):
        unreadable += found
        refuse_unreadable(unreadable, least=TOO_MANY)
        yield from headers


def _each(work: Callable[[int], None], chunk: Iterable[int]) -> list[UnreadableImage]:
    """Do the work for each image of a chunk, and return the images that cannot be read."""
    found: list[UnreadableImage] = []
    for index in chunk:
        try:
            work(index)
        except UnreadableImage as error:
            # A copy: the traceback of the error would keep the image in memory, and there may be many.
            found.append(UnreadableImage(error.what, error.reason))
    return found


def decoded_keys(store: ImageStore, indices: NDArray[np.int64]) -> list[int]:
    """Return a number for each decoded image, equal for equal pixels."""
    keys: list[int] = []
    for start in range(0, len(indices), _CHUNK):
        keys += [hash(pixels.tobytes()) for pixels in store.take(indices[start : start + _CHUNK]).numpy()]
    return keys


def stored_keys(images: Images, indices: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return two numbers for each encoded image, equal for equal files; of a file on disk, its two ends are read."""

    def keys_of(chunk: range) -> list[tuple[int, int]]:
        return [_stored_key(images.item(index)) for index in indices[chunk.start : chunk.stop].tolist()]

    return [key for keys in in_threads(keys_of, len(indices), threads=usable_cores()) for key in keys]


def _stored_key(item: Encoded | NDArray[np.uint8]) -> tuple[int, int]:
    if not isinstance(item, Path):
        return len(item), hash(bytes(item))
    size = item.stat().st_size
    with item.open("rb") as file:
        head = file.read(_END)
        file.seek(max(0, size - _END))
        return size, hash(head + file.read())


def in_threads(work: Callable[[range], T], total: int, *, threads: int, chunk: int = _CHUNK) -> Iterator[T]:
    """Yield the results of ``work`` on successive chunks of ``range(total)``, in order."""
    chunks = [range(start, min(start + chunk, total)) for start in range(0, total, chunk)]
    if threads == 1:
        yield from map(work, chunks)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, chunks)


def useful_threads(images: Images) -> int:
    """Return the number of threads that decode the images fastest.

    Pillow decodes without the interpreter's lock, but for a tiny image Python's work around it takes most of the time:
    two threads then wait for each other and take longer than one (measured: 1.5 times, for JPEG images of 32 x 32).
    """
    sample = [images.item(index) for index in range(min(len(images), _SIZE_SAMPLE))]
    sizes = [item.stat().st_size if isinstance(item, Path) else len(item) for item in sample]
    return usable_cores() if images.array is None and sum(sizes) > _TINY_FILE * len(sizes) else 1


def _with_progress_bar(chunks: Iterable[T], total: int, text: str) -> Iterator[T]:
    """Pass the results of chunks through, with a bar if a person is watching and the wait is long."""
    if total <= _PROGRESS_FROM or not sys.stderr.isatty():
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        for result in chunks:
            bar.advance(task, _CHUNK)
            yield result
