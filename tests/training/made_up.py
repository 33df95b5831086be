"""Pictures and data sets that are made up for the tests."""

import io

import numpy as np
import torch
from PIL import Image

from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.decode import choose_format, decode_all
from lr_lightning.training.images import Images, RawSplits

RNG = np.random.default_rng


def picture(mode="RGB", size=(6, 5), seed=0):
    """A random picture of the given mode."""
    return Image.fromarray(RNG(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def labelled(*items, origin="some.parquet"):
    return Images(np.zeros(len(items), np.int64), encoded=list(items), origin=origin)


def decoded(images, image_size=None):
    fmt = choose_format([images], image_size)
    return decode_all({"train": images}, fmt)["train"].take(np.arange(len(images))).numpy()


PICTURES = [encoded(picture(seed=seed)) for seed in range(8)]


def save_tree(root, classes, size=(6, 5), mode="RGB"):
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(mode, size, number).save(root / name / f"{number}.png")
    return root


def images(n=60, classes=3, seed=0, shape=(3, 6, 6), labels=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    return Images(np.arange(n) % classes if labels is None else np.array(labels, np.int64), array=pixels)


def as_files(part):
    """The same images, encoded."""
    files = []
    for pixels in part.array:
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return Images(part.labels, encoded=files, origin="files")


def splits(val=None, test=True, n=60, names=("a", "b", "c"), train=None):
    return RawSplits(
        train=images(n) if train is None else train,
        val=val,
        test=images(20, seed=1) if test is True else test,
        class_names=names,
        name="made up",
    )


def module(raw=None, **settings):
    data = ImageDataModule(
        lambda: splits() if raw is None else raw, **{"batch_size": 8, "val_fraction": 0.2, **settings}
    )
    data.prepare()
    return data


def training_pixels(data):
    """All uint8 images of the training split."""
    return torch.cat([batch.image for batch in data.train_dataloader()])
