"""From encoded images to uint8 pixels: upright, in one common format for a data set, decoded at once or on demand.

Pillow's own limit on the size of an image is one for the whole process; here it is replaced by ``max_pixels``.
"""

import logging
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lr_lightning._threads import usable_cores
from lr_lightning.errors import DataError
from lr_lightning.training.images import (
    SPLIT_WORDS,
    TOO_MANY,
    Encoded,
    Images,
    UnreadableImage,
    first_bytes,
    is_heic,
    list_images,
    refuse_unreadable,
    why_unknown,
)

MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_HUGE = 16_000_000  # pixels: such images are decoded one at a time, so that their memory does not add up
_one_huge_image = Lock()
# What Pillow raises for bytes that are not an image, or only the first part of one.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of a TIFF
_EXIF_KEYS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B"}
_NO_RANGE = {"16-bit": (0.0, 65535.0)}  # range of a depth that no training image has


@dataclass(frozen=True)
class Format:
    """The common format of all images of a data set.

    Attributes:
        channels: One if all are greyscale, else three.
        height: In pixels.
        width: In pixels.
        ranges: For each depth of more than 8 bits, the two values that become 0 and 255.
        max_pixels: The size of an image, before it is resized, that is still read.
    """

    channels: int
    height: int
    width: int
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one decoded image."""
        return self.channels * self.height * self.width


class Header(NamedTuple):
    """What the header of an image tells."""

    is_grey: bool
    size: tuple[int, int]  # width and height of the upright image
    depth: str = ""  # 16-bit, 32-bit or float; empty for 8 bits
    has_frames: bool = False


def read_header(images: Images, index: int, max_pixels: int) -> Header:
    """Read the header of an encoded image; UnreadableImage if there is none, or the image is too large."""
    with _opened(images, index, max_pixels) as image:
        width, height = image.size
        size = (height, width) if _orientation(image) >= 5 else (width, height)
        frames = image.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(image, "is_animated", False)
        return Header(image.mode in _GREY_MODES, size, _depth(image), frames)


def decode(images: Images, index: int, fmt: Format) -> NDArray[np.uint8]:
    """Return one image as uint8 [H, W, C] in the given format; UnreadableImage if it cannot be decoded."""
    with _opened(images, index, fmt.max_pixels) as image:
        if not _is_huge(image):
            return _decode(images, index, image, fmt)
        with _one_huge_image:
            image.draft(image.mode, _covering(image.size, fmt))  # a JPEG is then decoded at a smaller scale
            return _decode(images, index, image, fmt)


def _decode(images: Images, index: int, image: Image.Image, fmt: Format) -> NDArray[np.uint8]:
    if depth := _depth(image):
        shown = _to_8_bits(images.item(index), image, depth, fmt)
    else:
        image.load()  # a PNG's EXIF may stand behind its pixels
        shown = image
    if (turn := _TURNS.get(_orientation(image))) is not None:
        shown = shown.transpose(turn)
    pixels = np.asarray(_to_grey(shown, fmt) if fmt.channels == 1 else _to_rgb(shown, fmt))
    return pixels.reshape(fmt.height, fmt.width, fmt.channels)


def read_values(images: Images, index: int, max_pixels: int) -> tuple[str, NDArray[Any]] | None:
    """Return the depth of an image of more than 8 bits and its colours' values as stored, [N]; None for 8 bits."""
    with _opened(images, index, max_pixels) as image:
        if not (depth := _depth(image)):
            return None
        with _one_huge_image if _is_huge(image) else nullcontext():
            values = _values(images.item(index), image)
            return depth, (values[..., :3] if values.ndim == 3 else values).ravel()


def choose_range(
    depth: str, low: float, high: float, central: tuple[float, float], only_depth: bool
) -> tuple[float, float]:
    """Choose the two values that become 0 and 255, from the lowest and the highest value of the training images.

    If the values fill at least a quarter of a usual range (0..1, -1..1, 0..255, of 10, 12, 14, 16 bits, and so on), the
    range's ends are chosen, else the lowest and the highest value, or, if these are outliers, the ends of the
    ``central`` 99.8 %. If images have other depths too (not ``only_depth``), a usual range is kept, so that all of them
    are comparable.
    """
    width = central[1] - central[0] or high - low
    bits = [(0.0, 2.0**n - 1) for n in (8, 10, 12, 14, 16, 20, 24, 32)]
    usual = [(0.0, 1.0), (-1.0, 1.0), *bits] if depth == "float" else bits
    for first, last in usual:
        slack = 0.01 * (last - first) if depth == "float" else 0
        if first - slack <= low and high <= last + slack:
            if 4 * width >= last - first or not only_depth:
                return first, last
            break
    low, high = (low, high) if high - low <= 4 * width else central
    return (low, high) if high > low else (low, low + 1)


@contextmanager
def _opened(images: Images, index: int, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image, and raise what Pillow says about it in the block as `UnreadableImage`."""
    try:
        item = images.item(index)
        if isinstance(item, np.ndarray):
            yield Image.fromarray(item[0] if item.shape[0] == 1 else item.transpose(1, 2, 0))
            return
        with _open(item) as image:
            width, height = image.size
            if width * height > max_pixels:
                limit = f"more than data.max_megapixels={max_pixels / 1e6:g} allows"
                raise UnreadableImage(images.describe(index), f"has {width} × {height} pixels, {limit}")
            _refuse_misread(image)
            yield image
    except UnreadableImage:
        raise
    except _BROKEN as error:
        # Pillow's text for an unidentified image is the memory address of a buffer, which helps nobody.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = why_unknown(cast(Encoded, item)) if unknown else f"cannot be read ({error or type(error).__name__})"
        raise UnreadableImage(images.describe(index), reason) from error


def _open(item: Encoded) -> Image.Image:
    try:
        return Image.open(item if isinstance(item, Path) else BytesIO(item))
    except UnidentifiedImageError:
        if not is_heic(first_bytes(item)) or find_spec("pillow_heif") is None:
            raise
        import pillow_heif

        pillow_heif.register_heif_opener()
        return Image.open(item if isinstance(item, Path) else BytesIO(item))


def _refuse_misread(image: Image.Image) -> None:
    """Refuse the TIFFs that Pillow reads as other values than they hold, without a word."""
    tags = getattr(image, "tag_v2", {})
    bits, planes = max(tags.get(_BITS, (1,))), tags.get(_PLANAR) == 2 and len(image.getbands()) > 1
    if bits > 8 and planes:
        raise DataError(f"it has a plane of {bits} bits for each colour, which Pillow misreads: convert it")
    if bits == 8 and 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise DataError("its pixels are signed 8 bits, which Pillow misreads: convert it")
    if image.format == "FITS" and image.mode.startswith("I"):
        raise DataError("its pixels are FITS integers of more than 8 bits, which Pillow misreads: convert it")
    codec, arguments = _codec(image)
    is_plain = codec == "ppm_plain" and image.mode == "RGB" and arguments[1] > 255
    if codec == "SGI16" or (codec == "sgi_rle" and arguments[2] == 2) or is_plain or "CMYK;16" in arguments[0]:
        raise DataError("its colours have 16 bits, of which Pillow keeps 8: convert it")


def _is_huge(image: Image.Image) -> bool:
    return image.width * image.height > _HUGE


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 for an upright image; Pillow turns a TIFF itself."""
    if _EXIF_KEYS.isdisjoint(image.info):  # asking a PNG would decode it
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def _codec(image: Image.Image) -> tuple[str, tuple[Any, ...]]:
    """Return Pillow's decoder of the file and its arguments: first the name of the stored pixels, as ``RGB;16B``."""
    if not (tiles := getattr(image, "tile", None)):
        return "", ("",)
    codec, *_, arguments = tiles[0]
    arguments = arguments if isinstance(arguments, tuple) and arguments else (arguments,)
    return codec, (str(arguments[0]), *arguments[1:])


def _depth(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "16-bit"
    if image.mode in ("I", "F"):
        return "32-bit" if image.mode == "I" else "float"
    codec, (raw, *arguments) = _codec(image)
    is_deep = (
        image.format in ("PNG", "TIFF")
        and image.mode in ("RGB", "RGBA")
        and raw.startswith((f"{image.mode};16", "RGBX;16", "LA;16"))
    ) or (codec == "ppm" and image.mode == "RGB" and arguments[0] > 255)
    return "16-bit" if is_deep else ""


def _values(item: Encoded | NDArray[np.uint8], image: Image.Image) -> NDArray[Any]:
    """Return the pixels of an image of more than 8 bits as stored, [H, W] or [H, W, C]."""
    codec, (raw, *_) = _codec(image)
    if codec == "ppm" and image.mode == "RGB":
        start, data = image.tile[0].offset, item.read_bytes() if isinstance(item, Path) else cast(bytes, item)  # type: ignore[attr-defined]
        return np.frombuffer(data, ">u2", image.height * image.width * 3, start).reshape(image.height, image.width, 3)
    values = np.asarray(image)
    if raw == "LA;16B":  # read as RGBA: the two bytes of the grey value, and of alpha
        with _open(cast(Encoded, item)) as plain:
            plain.tile = [tile._replace(args="RGBA") for tile in plain.tile]  # type: ignore[attr-defined]
            both = np.asarray(plain).astype(np.uint16)
        values = (both[..., ::2] << 8 | both[..., 1::2])[..., [0, 0, 0, 1]]
    elif values.ndim == 3:
        # Pillow keeps the high byte of each colour. Read with the other order of bytes, it keeps the low one.
        with _open(cast(Encoded, item)) as swapped:
            other = raw[:-3] + _OTHER_BYTE[raw[-3:]]
            tiles = list(swapped.tile)  # type: ignore[attr-defined]
            swapped.tile = [  # type: ignore[attr-defined]
                tile._replace(args=other if tile.args == raw else (other, *tile.args[1:])) for tile in tiles
            ]
            values = values.astype(np.uint16) << 8 | np.asarray(swapped)
    tags = getattr(image, "tag_v2", {})
    if values.dtype == np.int32 and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow has no unsigned numbers of 32 bits
    if values.dtype.kind == "u" and tags.get(_PHOTOMETRIC) == 0 and not raw.endswith("I"):  # 0 is white; I: inverted
        values = 2 ** tags[_BITS][0] - 1 - values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("it holds NaN or infinite values")
    return values


def _to_8_bits(item: Encoded | NDArray[np.uint8], image: Image.Image, depth: str, fmt: Format) -> Image.Image:
    if (found := fmt.ranges.get(depth, _NO_RANGE.get(depth))) is None:
        raise DataError(f"its pixels are {depth}, and no training image has such pixels")
    (low, high), values = found, _values(item, image)
    numbers: NDArray[np.floating] = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    scaled = (numbers - low) * (255 / (high - low))
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels[..., 3] = values[..., 3] >> 8
    return Image.fromarray(pixels)


def _to_grey(image: Image.Image, fmt: Format) -> Image.Image:
    if image.mode in ("LA", "La"):
        return _over_white(image, fmt).convert("L")
    return _fit(image if image.mode == "L" else image.convert("L"), fmt)


def _to_rgb(image: Image.Image, fmt: Format) -> Image.Image:
    if image.mode == "RGB":
        return _fit(image, fmt)
    return _over_white(image, fmt) if image.has_transparency_data else _fit(image.convert("RGB"), fmt)


def _over_white(image: Image.Image, fmt: Format) -> Image.Image:
    rgba = _fit(image.convert("RGBA"), fmt)  # resized first: the whole of a huge image would be copied three times
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _covering(size: tuple[int, int], fmt: Format) -> tuple[int, int]:
    """Return the smallest width and height, in the proportions of ``size``, that cover the format."""
    width, height = size
    scale = max(fmt.width / width, fmt.height / height)
    return max(fmt.width, round(width * scale)), max(fmt.height, round(height * scale))


def _fit(image: Image.Image, fmt: Format) -> Image.Image:
    """Scale the image until it just covers the format, and keep the centre."""
    if image.size == (fmt.width, fmt.height):
        return image
    width, height = _covering(image.size, fmt)
    left, top = (width - fmt.width) // 2, (height - fmt.height) // 2
    x, y = image.width / width, image.height / height
    # Only the centre is computed: a picture of 30,000 × 1 pixels, scaled whole to cover 64 × 64, would take 370 MB.
    box = (left * x, top * y, min((left + fmt.width) * x, image.width), min((top + fmt.height) * y, image.height))
    return image.resize((fmt.width, fmt.height), Image.Resampling.BILINEAR, box)


# -- the images of a data set ------------------------------------------------------------------------------------------

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
        low, high = choose_range(depth, float(values.min()), float(values.max()), central, only_depth=len(depths) == 1)
        ranges[depth] = (low, high)
        log.info(
            f"Pixels are {depth}, in training from {values.min():g} to {values.max():g}: {low:g} to {high:g} becomes "
            "0 to 255, also in predictions."
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
