"""From encoded images to uint8 pixels: one common format for a data set, decoded at once or on demand."""

import logging
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lr_lightning._threads import usable_cores
from lr_lightning.errors import DataError
from lr_lightning.training.images import TOO_MANY, Images, UnreadableImage, refuse_unreadable

log = logging.getLogger(__name__)
T = TypeVar("T")
Header = tuple[bool, tuple[int, int]]
"""Whether an image is greyscale, and its (width, height)."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_CHUNK = 256
_TINY_FILE = 3_000  # mean bytes of an encoded image; about 100 x 100 pixels as a JPEG
_SIZE_SAMPLE = 64
_DEFAULT_SIDE = 64
_PROGRESS_FROM = 5_000
# What Pillow raises for bytes that are not an image, or only the first part of one.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Format:
    """The common shape of all images of a data set, in pixels; one channel if all are greyscale, else three."""

    channels: int
    height: int
    width: int

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one decoded image."""
        return self.channels * self.height * self.width


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
            out[...] = _decode(self.images, index, fmt)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def choose_format(splits: Sequence[Images], image_size: int | None) -> Format:
    """Read the headers of all images and choose their common shape.

    The height and width are ``image_size``; without it they are the images' own, or 64 x 64 (with one log line) if they
    differ in size. A DataError names the files that are missing, are not images, or have unsupported pixels.
    """
    grey, sizes = True, set[tuple[int, int]]()
    unreadable: list[UnreadableImage] = []
    for images in splits:
        for is_grey, size in _headers(images, unreadable):
            grey &= is_grey
            sizes.add(size)
    refuse_unreadable(unreadable)
    width, height = (image_size or _DEFAULT_SIDE,) * 2
    if image_size is None and len(sizes) == 1:
        ((width, height),) = sizes
    elif image_size is None:
        log.info(
            f"Images have {len(sizes)} different sizes: each is resized (shorter side) and centre-cropped to "
            f"{height} x {width}. Give data.image_size for another size."
        )
    return Format(1 if grey else 3, height, width)


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
        pixels[index] = _decode(images, index, fmt)

    chunks = in_threads(partial(_each, decode_one), len(images), threads=useful_threads(images))
    for found in _with_progress_bar(chunks, len(images), f"Decoding {name} images"):
        unreadable += found
        refuse_unreadable(unreadable, least=TOO_MANY)
    return MemoryImages(pixels)


def _headers(images: Images, unreadable: list[UnreadableImage]) -> Iterator[Header]:
    """Yield the different headers of the images; an array of pixels has one, since its images are alike."""
    if images.array is not None:
        _, channels, height, width = images.array.shape
        yield channels == 1, (width, height)
        return

    def read_chunk(chunk: range) -> tuple[set[Header], list[UnreadableImage]]:
        headers = set[Header]()
        return headers, _each(lambda index: headers.add(_header(images, index)), chunk)

    try:
        are_files = isinstance(images.item(0), Path)
    except DataError:  # a table's row without an image, which is reported with all others
        are_files = False
    # Reading a header from memory is Python's work, which threads would not share; a file is waited for.
    for headers, found in in_threads(read_chunk, len(images), threads=usable_cores() if are_files else 1):
        unreadable += found
        refuse_unreadable(unreadable, least=TOO_MANY)
        yield from headers


def _each(work: Callable[[int], None], chunk: range) -> list[UnreadableImage]:
    """Do the work for each image of a chunk, and return the images that cannot be read."""
    found: list[UnreadableImage] = []
    for index in chunk:
        try:
            work(index)
        except UnreadableImage as error:
            # A copy: the traceback of the error would keep the image in memory, and there may be many.
            found.append(UnreadableImage(error.what, error.reason))
    return found


def _header(images: Images, index: int) -> Header:
    with _opened(images, index) as image:
        return image.mode in _GREY_MODES, image.size


def _decode(images: Images, index: int, fmt: Format) -> NDArray[np.uint8]:
    """Return one image as uint8 [H, W, C] in the given format."""
    with _opened(images, index) as image:
        pixels = np.asarray(_fit(_to_grey(image) if fmt.channels == 1 else _to_rgb(image), fmt))
    return pixels.reshape(fmt.height, fmt.width, fmt.channels)


@contextmanager
def _opened(images: Images, index: int) -> Iterator[Image.Image]:
    """Open an image, and raise what Pillow says about it in the block as `UnreadableImage`."""
    try:
        item = images.item(index)
        if isinstance(item, np.ndarray):
            yield Image.fromarray(item[0] if item.shape[0] == 1 else item.transpose(1, 2, 0))
        else:
            with Image.open(item if isinstance(item, Path) else BytesIO(item)) as image:
                yield image
    except _BROKEN as error:
        # Pillow's text for an unidentified image is the memory address of a buffer, which helps nobody.
        reason = "is not an image" if isinstance(error, UnidentifiedImageError) else f"cannot be read ({error})"
        raise UnreadableImage(images.describe(index), reason) from error


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits: Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La"):
        return _over_white(image).convert("L")
    return image if image.mode == "L" else image.convert("L")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        return _to_grey(image).convert("RGB")
    return _over_white(image) if image.has_transparency_data else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _fit(image: Image.Image, fmt: Format) -> Image.Image:
    """Scale the image until it just covers the format, then crop the centre."""
    width, height = image.size
    if (width, height) == (fmt.width, fmt.height):
        return image
    scale = max(fmt.width / width, fmt.height / height)
    width, height = max(fmt.width, round(width * scale)), max(fmt.height, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - fmt.width) // 2, (height - fmt.height) // 2
    return image.crop((left, top, left + fmt.width, top + fmt.height))


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
