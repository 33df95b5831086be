"""Pixels of every kind: of more than 8 bits, turned by EXIF, huge, and files that Pillow does not know."""

import io
import logging
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from lr_lightning.errors import DataError
from lr_lightning.training.decode import Format, choose_format, choose_range, decode, decode_all
from lr_lightning.training.images import Images

from .made_up import decoded, encoded, labelled, module, picture, splits

RNG = np.random.default_rng


def png16(values):
    """A PNG of 16 bits a colour, which Pillow cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values, sample_format, compressed=False, black=None, planes=False):
    """A little-endian TIFF of one strip, or one a plane; sample formats: 1 unsigned, 2 signed, 3 float, 6 complex."""
    height, width, channels = values.shape
    stored = np.moveaxis(values, -1, 0).tobytes() if planes else values.tobytes()
    data, bits = zlib.compress(stored) if compressed else stored, values.dtype.itemsize * 8
    black = (1 if channels == 1 else 2) if black is None else black
    entries = [(256, width), (257, height), (258, bits), (259, 8 if compressed else 1), (262, black)]
    entries += [(273, 8), (277, channels), (278, height), (279, len(data)), (284, 2 if planes else 1)]
    entries += [(339, sample_format)]
    start = 8 + len(data) + len(data) % 2
    after = start + 2 + 12 * len(entries) + 4
    strip = len(data) // channels
    lists = {258: [bits] * channels, 339: [sample_format] * channels}
    if planes:
        lists |= {273: [8 + strip * plane for plane in range(channels)], 279: [strip] * channels}
    directory, extra = b"", b""
    for tag, value in entries:
        if tag in lists and channels > 1:
            directory += struct.pack("<HHII", tag, 4, channels, after + len(extra))
            extra += struct.pack(f"<{channels}I", *lists[tag])
        else:
            directory += struct.pack("<HHII", tag, 4, 1, value)
    header = b"II*\0" + struct.pack("<I", start) + data + b"\0" * (len(data) % 2)
    return header + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0) + extra


def fits(bits):
    """A FITS file of 2 x 2 pixels."""
    cards = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 2}
    header = "".join(f"{f'{key:8}= {value:>20}':80}" for key, value in cards.items()) + "END"
    return header.ljust(2880).encode() + bytes(range(bits))


GREY = RNG(0).integers(0, 256, (9, 5, 6, 1), dtype=np.uint8)  # with 0 and 255
GREY[0, 0, 0], GREY[0, 0, 1] = 0, 255
COLOUR = RNG(1).integers(0, 256, (9, 5, 6, 3), dtype=np.uint8)
COLOUR[0, 0, 0] = (0, 255, 0)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda a: encoded(Image.fromarray((a[..., 0] / 255).astype(np.float32)), "TIFF"), "float.*: 0 to 1 becomes"),
        (lambda a: encoded(Image.fromarray(a[..., 0].astype(np.float32)), "TIFF"), "float.*: 0 to 255 becomes"),
        (lambda a: encoded(Image.fromarray((a[..., 0] / 127.5 - 1).astype(np.float32)), "TIFF"), "-1 to 1 becomes"),
        (lambda a: tiff((a / 255).astype(np.float32), 3), "float.*: 0 to 1 becomes"),
        (lambda a: encoded(Image.fromarray(a[..., 0].astype(np.uint16) * 257)), "16-bit.*: 0 to 65535 becomes"),
        (lambda a: encoded(Image.fromarray(a[..., 0].astype(np.uint16))), "16-bit.*: 0 to 255 becomes"),
        (lambda a: encoded(Image.fromarray(a[..., 0].astype(np.uint16) + 40_000)), ": 40000 to 40255 becomes"),
        (lambda a: encoded(Image.fromarray(a[..., 0].astype(np.int32) * 1000), "TIFF"), ": 0 to 255000 becomes"),
        (lambda a: tiff(a.astype(np.int16) - 1000, 2), "32-bit.*: -1000 to -745 becomes"),
        (lambda a: tiff(a.astype(np.uint32) * 16_843_009, 1), r": 0 to 4\.29497e\+09 becomes"),
    ],
)
def test_the_whole_training_set_chooses_the_scaling(write, said, caplog):
    with caplog.at_level(logging.INFO, "lr_lightning"):
        got = decoded(labelled(*map(write, GREY)))
    assert np.array_equal(got, GREY.transpose(0, 3, 1, 2))
    (line,) = (record.getMessage() for record in caplog.records)
    assert re.search(said, line)


@pytest.mark.parametrize(
    "write",
    [
        lambda a: png16(a.astype(np.uint16) * 257),
        lambda a: png16(a.astype(np.uint16)),  # of which Pillow keeps the high bytes: black
        lambda a: tiff(a.astype("<u2"), 1),
        lambda a: tiff(a.astype("<u2"), 1, compressed=True),
        lambda a: b"P6 6 5 65535 " + a.astype(">u2").tobytes(),
    ],
)
def test_colours_of_16_bits_keep_their_low_byte(write):
    assert np.array_equal(decoded(labelled(*map(write, COLOUR))), COLOUR.transpose(0, 3, 1, 2))


def test_greys_of_16_bits_with_transparency_keep_their_low_byte():
    opaque = np.full_like(GREY, 65535, np.uint16)
    got = decoded(labelled(*(png16(np.concatenate([grey, full], 2)) for grey, full in zip(GREY, opaque, strict=True))))
    assert np.array_equal(got, GREY.repeat(3, 3).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_whose_0_is_white_is_no_negative(kind):
    most = np.iinfo(kind).max
    values = np.array([[[most], [0]], [[0], [most]]], kind)
    assert decoded(labelled(tiff(values, 1, black=0))).ravel().tolist() == [0, 255, 255, 0]


def test_transparent_colours_of_16_bits_become_white():
    values = np.zeros((1, 2, 4), np.uint16)
    values[0, 1] = (4000, 2000, 0, 65535)
    assert decoded(labelled(png16(values)))[0, :, 0].tolist() == [[255, 249], [255, 125], [255, 0]]


@pytest.mark.parametrize(
    ("low", "high", "central", "only_depth", "expected"),
    [
        (0, 3900, (10, 3500), True, (0, 4095)),
        (0, 65535, (10, 900), True, (10, 900)),  # one hot pixel
        (0, 300, (0, 0), True, (0, 1023)),  # nearly all black
        (1000, 1100, (1000, 1100), True, (1000, 1100)),
        (1000, 1100, (1000, 1100), False, (0, 4095)),  # beside 8-bit images
        (7, 7, (7, 7), True, (7, 8)),
    ],
)
def test_a_range(low, high, central, only_depth, expected):
    assert choose_range("16-bit", low, high, central, only_depth) == expected


def test_test_images_are_scaled_as_training_images_are():
    test = labelled(encoded(Image.fromarray(np.full((2, 2), 400, np.uint16))))
    train = labelled(encoded(Image.fromarray(np.array([[0, 250]], np.uint16))), origin="x")
    fmt = choose_format([train, test], 2)
    assert fmt.ranges == {"16-bit": (0, 255)}
    assert (decode_all({"test": test}, fmt)["test"].pixels == 255).all()
    plain = choose_format([labelled(encoded(picture("L"))), test], 2)
    assert (decode_all({"test": test}, plain)["test"].pixels == 2).all()  # 400 of 65,535
    floats = labelled(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    with pytest.raises(DataError, match="its pixels are float, and no training image has such pixels"):
        decode_all({"test": floats}, plain)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(Image.fromarray(np.array([[0.0, np.nan]], np.float32)), "TIFF"), "it holds NaN or infinite values"),
        (encoded(Image.fromarray(np.array([[0.0, np.inf]], np.float32)), "TIFF"), "it holds NaN or infinite values"),
        (
            tiff(np.ones((2, 2, 1), np.complex64), 6),
            "is a TIFF of a kind that Pillow does not read, such as 64-bit or complex",
        ),
        (tiff(np.ones((2, 2, 1)), 3), "is a TIFF of a kind that Pillow does not read, such as 64-bit or complex"),
        (tiff(np.ones((2, 2, 3), np.uint16), 1, planes=True), "it has a plane of 16 bits for each colour"),
        (tiff(np.ones((2, 2, 1), np.int8), 2), "its pixels are signed 8 bits"),
        (tiff(np.ones((2, 2, 4), "<u2"), 1, black=5), "its colours have 16 bits, of which Pillow keeps 8: convert it"),
        (struct.pack(">hBBHHHH500x", 474, 0, 2, 2, 2, 2, 1) + b"\0\1" * 4, "its colours have 16 bits, of which"),
        (b"P3 1 1 65535 1 2 3\n", "its colours have 16 bits, of which Pillow keeps 8"),
        (fits(16), "its pixels are FITS integers of more than 8 bits, which Pillow misreads: convert it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is a pointer of Git LFS, not the image: run `git",
        ),
        (b"\n<!DOCTYPE html><title>404</title>", "is a web page: download the image again"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "is DICOM, which Pillow does not read: convert it to 16-bit PNG"),
        (b"\xff\x0a" + b"\0" * 50, "is JPEG XL, which Pillow does not read"),
        (b"", "is not an image, but empty"),
    ],
)
def test_what_cannot_be_scaled_or_read_is_said(content, reason):
    with pytest.raises(DataError, match=f"^data: row 0 of some.parquet .*{reason}"):
        decoded(labelled(content))


CORNER = np.zeros((4, 6, 3), np.uint8)
CORNER[0, 0] = 255


def turned(orientation, kind):
    """An upright image stored turned, with the EXIF orientation that turns it back."""
    turn = Image.Transpose
    undone = (turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE)
    undone += (turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270)
    image = Image.fromarray(CORNER).transpose(undone[orientation - 2])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_pictures_are_upright(kind, orientation):
    got = decoded(labelled(turned(orientation, kind)))
    assert np.array_equal(got[0], CORNER.transpose(2, 0, 1))


def test_a_turned_jpeg_is_as_large_as_it_is_shown():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("L", (8, 16)).save(buffer, "JPEG", exif=exif)
    fmt = choose_format([labelled(buffer.getvalue(), encoded(Image.new("L", (16, 8))))], None)
    assert (fmt.height, fmt.width) == (8, 16)


def test_heic_is_read_with_its_package_and_named_without(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name not in ("HEIF", "AVIF")])
    monkeypatch.setattr(Image, "OPEN", {name: found for name, found in Image.OPEN.items() if name != "HEIF"})
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 30, 40))).save(buffer, quality=90)
    content = buffer.getvalue()
    with monkeypatch.context() as without:
        without.setattr("lr_lightning.training.decode.find_spec", lambda name: None)
        with pytest.raises(DataError, match="is HEIC, which needs `pip install pillow-heif`"):
            decoded(labelled(content))
    assert np.abs(decoded(labelled(content)).mean((0, 2, 3)) - [200, 30, 40]).max() < 8


def test_an_image_beyond_the_limit_is_named_and_the_limit_can_be_set():
    large = labelled(encoded(Image.new("1", (20_000, 10_000))))  # beyond Pillow's own limit
    with pytest.raises(DataError, match=r"has 20000 × 10000 pixels, more than data\.max_megapixels=100 allows"):
        choose_format([large], None)
    fmt = choose_format([large], 8, max_pixels=300_000_000)
    assert decode(large, 0, fmt).shape == (8, 8, 1)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_a_thin_image_takes_no_more_memory_than_it_has(size, monkeypatch):
    taken = []
    plain = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest: taken.append(size) or plain(self, size, *rest))
    tracemalloc.start()
    got = decode(labelled(encoded(Image.new("RGB", size, (1, 2, 3)))), 0, Format(3, 64, 64))
    tracemalloc.stop()
    assert taken == [(64, 64)]
    assert (got == (1, 2, 3)).all()


@pytest.mark.parametrize("mode", ["1", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa", "RGBX"])
def test_every_mode_of_pillow_gives_pixels_or_one_sentence(mode):
    try:
        image = Image.new("RGB", (4, 4), (200, 100, 50)).convert("RGBA" if mode == "RGBa" else "RGB").convert(mode)
        content = encoded(image, "TIFF")
    except (ValueError, OSError, KeyError):
        pytest.skip(f"Pillow writes no {mode}")
    try:
        got = decoded(labelled(content))
    except DataError as error:
        assert "cannot be read" in str(error)  # noqa: PT017
    else:
        assert 60 < got.mean() < 200


def test_the_first_frame_is_used_and_said(caplog):
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        with caplog.at_level(logging.INFO, "lr_lightning"):
            got = decoded(labelled(buffer.getvalue()))
        assert abs(int(got.max()) - 10) < 4
        assert caplog.records.pop().getMessage().startswith("Some images have several frames")


BAD = [b"", b"text", encoded(picture(size=(64, 64)), "JPEG")[:900]]


def test_bad_images_are_left_out_if_asked(caplog):
    good = [encoded(picture(size=(6, 6), seed=seed)) for seed in range(60)]
    mixed = [*good[:30], *BAD, *good[30:]]
    train = Images(np.arange(63) % 2, encoded=mixed, origin="x.parquet")
    expected = Images(np.delete(np.arange(63) % 2, [30, 31, 32]), encoded=good, origin="x.parquet")
    for limit in ("1 GB", "0 B"):
        settings = {"in_memory_limit": limit, "num_workers": 0, "drop_last": False}
        caplog.clear()
        data = module(splits(train=train, test=None, names=("a", "b")), on_bad_image="skip", **settings)
        same = module(splits(train=expected, test=None, names=("a", "b")), **settings)
        assert data.sizes == same.sizes == {"train": 48, "val": 12, "probe": 12}
        assert data.fingerprint == same.fingerprint
        for one, other in zip(data.val_dataloader(), same.val_dataloader(), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert warning.splitlines()[0] == "3 of 63 training images cannot be read and are left out:"
        assert warning.splitlines()[1] == "  row 30 of x.parquet is not an image, but empty"
    with pytest.raises(DataError, match=r"data\.on_bad_image=skip"):
        module(splits(train=train, test=None, names=("a", "b")))


def test_a_test_split_that_cannot_be_read_is_left_out_where_no_test_is_wanted():
    raw = splits(test=labelled(encoded(picture()), b"", origin="test.parquet"))
    with pytest.raises(DataError, match=r"row 1 of test\.parquet is not an image"):
        module(raw)
    with pytest.warns(UserWarning, match=r"test split is left out, since test=false: .*row 1 of test\.parquet"):
        data = module(raw, needs_test=False)
    assert not data.has_test
    assert data.sizes == module(splits(test=None)).sizes
    with pytest.raises(DataError, match=r"row 0 of some\.parquet"):
        module(splits(test=raw.test, val=labelled(b"")), needs_test=False)
