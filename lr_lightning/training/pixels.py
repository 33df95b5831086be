"""One stored image as uint8 pixels: upright, in the common format of its data set, scaled from the values it holds.

Pillow's own limit on the size of an image is one for the whole process; here it is replaced by ``max_pixels``.
"""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lr_lightning.errors import DataError
from lr_lightning.training.images import Encoded, Images, UnreadableImage

MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = None

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_HUGE = 16_000_000  # pixels: such images are decoded one at a time, so that their memory does not add up
_one_huge_image = Lock()
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
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
_NO_RANGE = {"16-bit": (0.0, 65535.0)}  # of images whose depth no training image has


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


def choose_range(depth: str, low: float, high: float, central: tuple[float, float], alone: bool) -> tuple[float, float]:
    """Choose the two values that become 0 and 255, from the lowest and the highest value of the training images.

    They are those of a usual range (0..1, -1..1, 0..255, of 10, 12, 14, 16 bits ...) if the values fill at least a
    quarter of it, else the lowest and the highest value, or, if these are outliers, the ``central`` 99.8 %. If there
    are 8-bit images too (not ``alone``), a usual range is kept, which makes the two kinds comparable.
    """
    width = central[1] - central[0] or high - low
    bits = [(0.0, 2.0**n - 1) for n in (8, 10, 12, 14, 16, 20, 24, 32)]
    usual = [(0.0, 1.0), (-1.0, 1.0), *bits] if depth == "float" else bits
    for first, last in usual:
        slack = 0.01 * (last - first) if depth == "float" else 0
        if first - slack <= low and high <= last + slack:
            if 4 * width >= last - first or not alone:
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
        reason = _what_it_is(cast(Encoded, item)) if unknown else f"cannot be read ({error or type(error).__name__})"
        raise UnreadableImage(images.describe(index), reason) from error


def _open(item: Encoded) -> Image.Image:
    try:
        return Image.open(item if isinstance(item, Path) else BytesIO(item))
    except UnidentifiedImageError:
        if not _is_heic(_head(item)) or find_spec("pillow_heif") is None:
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


def _head(item: Encoded) -> bytes:
    if not isinstance(item, Path):
        return item[:132]
    with item.open("rb") as file:
        return file.read(132)


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def _what_it_is(item: Encoded) -> str:
    """Say why Pillow does not know a file, from its first bytes."""
    head = _head(item)
    if _is_heic(head):
        return "is HEIC, which needs `pip install pillow-heif`"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "is a TIFF of a kind that Pillow does not read, such as 64-bit or complex pixels: convert it"
    if head[:2] == b"\xff\x0a" or head[4:8] == b"JXL ":
        return "is JPEG XL, which Pillow does not read: convert it"
    if head[128:] == b"DICM":
        return "is DICOM, which Pillow does not read: convert it to 16-bit PNG"
    return "is not an image" if head else "is not an image, but empty"


def _is_huge(image: Image.Image) -> bool:
    return image.width * image.height > _HUGE


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 for an upright image; Pillow turns a TIFF itself."""
    if _EXIF_KEYS.isdisjoint(image.info):  # asking a PNG would decode it
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the pixels in the file, such as ``RGB;16B``."""
    if not (tiles := getattr(image, "tile", None)):
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _depth(image: Image.Image) -> str:
    if image.mode.startswith("I;16"):
        return "16-bit"
    if image.mode in ("I", "F"):
        return "32-bit" if image.mode == "I" else "float"
    is_deep = (
        image.format in ("PNG", "TIFF")
        and image.mode in ("RGB", "RGBA")
        and _raw_mode(image).startswith((f"{image.mode};16", "RGBX;16"))
    )
    return "16-bit" if is_deep else ""


def _values(item: Encoded | NDArray[np.uint8], image: Image.Image) -> NDArray[Any]:
    """Return the pixels of an image of more than 8 bits as stored, [H, W] or [H, W, C]."""
    raw, values = _raw_mode(image), np.asarray(image)
    if values.ndim == 3:
        # Pillow keeps the high byte of each colour. Read with the other order of bytes, it keeps the low one.
        with _open(cast(Encoded, item)) as twin:
            other = raw[:-3] + _OTHER_BYTE[raw[-3:]]
            tiles = list(twin.tile)  # type: ignore[attr-defined]
            twin.tile = [  # type: ignore[attr-defined]
                tile._replace(args=other if tile.args == raw else (other, *tile.args[1:])) for tile in tiles
            ]
            values = values.astype(np.uint16) << 8 | np.asarray(twin)
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
        raise DataError(f"its pixels are {depth}, and those of no training image are")
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
