"""From encoded images to pixels, and how images that cannot be decoded are reported."""

import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from lr_lightning.errors import DataError
from lr_lightning.training import decode, sources
from lr_lightning.training.decode import Format, MemoryImages, choose_format, decode_all
from lr_lightning.training.images import Images

from .made_up import PICTURES, decoded, encoded, labelled, picture, save_tree


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_pixels_are_those_of_the_file(kind):
    image = picture()
    got = decoded(labelled(encoded(image, kind)))
    assert np.array_equal(got[0], np.asarray(image).transpose(2, 0, 1))


def test_all_greyscale_gives_one_channel():
    grey = picture("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    got = decoded(labelled(encoded(grey), encoded(deep), encoded(grey.convert("1"))))
    assert got.shape == (3, 1, 5, 6)
    assert np.array_equal(got[0, 0], np.asarray(grey))
    assert np.array_equal(got[1, 0], np.asarray(grey))
    assert set(np.unique(got[2])) == {0, 255}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_one_colour_image_makes_all_rgb(mode):
    grey = picture("L")
    got = decoded(labelled(encoded(grey), encoded(picture(mode), "TIFF")))
    assert got.shape == (2, 3, 5, 6)
    assert all(np.array_equal(got[0, channel], np.asarray(grey)) for channel in range(3))


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("LA", 1)])
def test_transparent_pixels_become_white(mode, channels):
    image = Image.new(mode, (2, 1), (0,) * len(mode))
    image.putpixel((1, 0), (*(40,) * (len(mode) - 1), 255))
    got = decoded(labelled(encoded(image)))
    assert got.shape == (1, channels, 1, 2)
    assert (got[0, :, 0] == [255, 40]).all()


def test_different_sizes_are_brought_to_64_with_one_log_line(caplog):
    with caplog.at_level(logging.INFO, "lr_lightning"):
        got = decoded(labelled(encoded(picture(size=(100, 50))), encoded(picture(size=(30, 90)))))
    assert got.shape == (2, 3, 64, 64)
    assert [record.getMessage() for record in caplog.records] == [
        "Images have 2 different sizes: each is resized (shorter side) and centre-cropped to 64 x 64. "
        "Give data.image_size for another size."
    ]


def test_a_size_asked_for_is_given_and_the_centre_is_kept():
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (10, 0, 20, 10))
    assert (decoded(labelled(encoded(image)), 10) == 255).all()
    assert decoded(Images(np.zeros(2, np.int64), array=np.zeros((2, 1, 8, 8), np.uint8)), 16).shape == (2, 1, 16, 16)


def test_threads_and_order(monkeypatch):
    monkeypatch.setattr(decode, "useful_threads", lambda images: 3)
    items = [encoded(Image.new("L", (2, 2), number % 256)) for number in range(600)]
    assert decoded(labelled(*items))[:, 0, 0, 0].tolist() == [number % 256 for number in range(600)]


@pytest.mark.parametrize("broken", [b"", b"text", PICTURES[0][:60], encoded(picture(size=(64, 64)), "JPEG")[:900]])
def test_a_broken_image_is_named_by_its_row(broken):
    with pytest.raises(
        DataError, match=r"^data: row 2 of some\.parquet (is not an image(, but empty)?|cannot be read \(.*\))\. Repa"
    ):
        decoded(labelled(PICTURES[0], PICTURES[1], broken), 4)


CUT = encoded(picture(size=(64, 64)), "JPEG")[:900]  # a good header


@pytest.mark.parametrize("threads", [1, 3])
def test_all_broken_images_are_named_at_once(monkeypatch, threads):
    monkeypatch.setattr(decode, "useful_threads", lambda images: threads)
    train = labelled(*[CUT if number % 50 == 7 else PICTURES[0] for number in range(600)], origin="train.parquet")
    splits = {"train": train, "test": labelled(PICTURES[0], CUT, origin="test.parquet")}
    fmt = choose_format(list(splits.values()), 4)
    tried = []
    plain = decode.decode
    monkeypatch.setattr(decode, "decode", lambda images, index, fmt: tried.append(index) or plain(images, index, fmt))
    with pytest.raises(DataError) as caught:
        decode_all(splits, fmt)
    first, *named, last = str(caught.value).splitlines()
    assert first == "data: 13 images cannot be read. Repair or remove them, or give data.on_bad_image=skip:"
    assert [line.split(" cannot be read (")[0] for line in named] == [
        f"  row {number} of train.parquet" for number in range(7, 500, 50)
    ]
    assert last == "  and others"
    assert sorted(tried) == sorted([*range(600), 0, 1])  # each once
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_all_files_that_are_no_images_are_named_at_once(tmp_path):
    save_tree(tmp_path / "train", {"dog": 2, "cat": 2})
    save_tree(tmp_path / "test", {"dog": 1})
    texts = [tmp_path / "train" / "cat" / "a.txt", tmp_path / "train" / "dog" / "b.txt", tmp_path / "test/dog/c.txt"]
    for path in texts:
        path.write_text("hello")
    raw = sources.image_folder(tmp_path)
    with pytest.raises(DataError) as caught:
        choose_format([raw.train, raw.test], None)
    assert str(caught.value) == "\n".join(
        [
            "data: 3 images cannot be read. Repair or remove them, or give data.on_bad_image=skip:",
            *(f"  {path} is not an image" for path in texts),
        ]
    )


def test_a_folder_of_no_images_is_not_read_to_its_end(monkeypatch):
    tried = []
    plain = decode.read_header
    monkeypatch.setattr(
        decode, "read_header", lambda images, index, most: tried.append(index) or plain(images, index, most)
    )
    with pytest.raises(DataError, match=r"^data: 1,000 images or more cannot be read\. Repair or remove"):
        choose_format([labelled(*[b"text"] * 5000)], None)
    assert len(tried) == 1024  # whole chunks


def test_a_caught_image_is_not_kept():
    kept = decode._each(lambda index: decode.decode(labelled(*[CUT] * 3), index, Format(3, 4, 4)), range(3))
    assert [(error.__traceback__, error.__cause__, error.__context__) for error in kept] == [(None,) * 3] * 3


def test_images_are_checked():
    with pytest.raises(DataError, match="one label for each image, got 1 images and 2 labels"):
        Images(np.zeros(2, np.int64), encoded=[b""])
    with pytest.raises(DataError, match="exactly one of"):
        Images(np.zeros(2, np.int64))
    with pytest.raises(DataError, match=r"uint8 \[N, C, H, W\], got float64"):
        Images(np.zeros(2, np.int64), array=np.zeros((2, 1, 2, 2)))


def test_memory_images_are_cut_in_channels_last():
    store = MemoryImages(np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3))
    assert store.take(np.array([1]))[0, :, 0, 0].tolist() == [12, 13, 14]
    assert Format(3, 2, 2).bytes_per_image == 12


def test_a_file_that_is_no_image_is_named(tmp_path):
    save_tree(tmp_path, {"dog": 1, "cat": 1})
    (tmp_path / "dog" / "notes.txt").write_text("hello")
    with pytest.raises(
        DataError,
        match=rf"^data: {tmp_path}/dog/notes\.txt is not an image\. Repair or remove it, or give ",
    ):
        choose_format([sources.image_folder(tmp_path).train], None)
