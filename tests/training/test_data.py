import io
import os
import re
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from lr_lightning.errors import DataError
from lr_lightning.training import sources
from lr_lightning.training.datamodule import ImageDataModule, parse_size
from lr_lightning.training.images import Images, RawSplits
from lr_lightning.training.loader import TrainBatch
from lr_lightning.training.transforms import crop_and_flip


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


# ---------------------------------------------------------------------------------------------------- preparation


def test_prepare_fills_what_the_model_needs_and_is_done_once():
    calls = []

    def source():
        calls.append(1)
        return splits()

    data = ImageDataModule(source, batch_size=8, val_fraction=0.2)
    data.prepare()
    data.setup("fit")
    assert len(calls) == 1
    assert (data.num_classes, data.in_channels, data.image_size) == (3, 3, (6, 6))
    assert data.class_names == ("a", "b", "c")
    assert data.sizes == {"train": 48, "val": 12, "probe": 12, "test": 20}
    assert data.has_test
    description = data.describe()
    assert description["name"] == "made up"
    assert description["train_size"] == 48
    assert all(isinstance(value, str | int | float) for value in description.values())


def test_a_validation_split_of_the_data_is_used_whole():
    data = module(splits(val=images(15, seed=2)), val_fraction=0)
    assert data.sizes == {"train": 60, "val": 15, "probe": 15, "test": 20}


def test_the_probe_is_a_stratified_part_of_the_training_split():
    data = module(drop_last=False)
    train = {image.numpy().tobytes() for image in training_pixels(data)}
    batches = list(data.probe_dataloader())
    probe = torch.cat([image for image, _ in batches])
    assert {image.numpy().tobytes() for image in probe} < train
    assert torch.bincount(torch.cat([label for _, label in batches])).tolist() == [4, 4, 4]
    val = {image.numpy().tobytes() for batch, _ in data.val_dataloader() for image in batch}
    assert not val & train


def test_the_split_follows_its_own_seed_and_not_the_training_seed():
    prints = {key: module(**dict([key])).fingerprint for key in (("seed", 0), ("seed", 1), ("split_seed", 1))}
    assert prints[("seed", 0)] == prints[("seed", 1)] != prints[("split_seed", 1)]


@pytest.mark.parametrize(
    "raw",
    [
        splits(names=("a", "b", "d")),
        splits(train=images(seed=9)),
        splits(train=images(labels=[1, 0, 2] * 20)),
        splits(test=None),
        splits(val=images(12)),
    ],
)
def test_the_fingerprint_changes_with_the_data(raw):
    assert module(splits()).fingerprint == module(splits()).fingerprint != module(raw).fingerprint


def test_without_a_test_set():
    data = module(splits(test=None))
    assert not data.has_test
    assert data.test_dataloader() == []


# ---------------------------------------------------------------------------------------------------- on the device


def plain(data, image):
    batch = (image, torch.zeros(len(image), dtype=torch.int64))
    return data.on_after_batch_transfer(batch, 0)[0]


@pytest.mark.parametrize("in_memory_limit", ["1 GB", "0 B"])
def test_standard_normalisation_is_of_the_training_split_alone(in_memory_limit):
    data = module(in_memory_limit=in_memory_limit, num_workers=0)
    pixels = training_pixels(data)
    values = pixels.double() / 255
    mean, std = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(plain(data, pixels).double(), (values - mean) / std, atol=1e-5)


def test_mean_image_and_unit():
    data = module(normalize="mean_image")
    pixels = training_pixels(data)
    assert torch.allclose(plain(data, pixels), pixels.float() - pixels.float().mean(0), atol=1e-3)
    assert torch.allclose(plain(module(normalize="unit"), pixels), pixels / 255)


def test_a_constant_channel_does_not_become_nan():
    part = images()
    part.array[:, 1] = 7
    data = module(splits(train=part))
    assert (plain(data, training_pixels(data))[:, 1] == 0).all()


def test_training_batches_are_augmented_and_others_are_not():
    data = module(crop_padding=2, crop_fill="reflect", flip=True, normalize="unit")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, TrainBatch)
    x, y = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(x, crop_and_flip(batch.image, batch.draws, padding=2, fill="reflect") * torch.tensor(1 / 255))
    assert not torch.equal(x, plain(data, batch.image))
    assert torch.equal(y, batch.label)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    image, _ = next(iter(data.val_dataloader()))
    assert torch.equal(plain(data, image), image * torch.tensor(1 / 255))


def test_the_layout_can_be_plain():
    data = module(channels_last=False)
    assert plain(data, next(iter(data.val_dataloader()))[0]).is_contiguous()


@pytest.mark.parametrize("batch", [(torch.zeros(2, 3, 6, 6), torch.zeros(2)), torch.zeros(3), {"x": 1}, (1, 2), []])
def test_what_is_no_uint8_image_batch_passes(batch):
    assert module().on_after_batch_transfer(batch, 0) is batch


def test_images_beyond_the_memory_limit_give_the_same_batches():
    raw = splits(train=as_files(images()), test=as_files(images(20, seed=1)))
    here, there = module(raw, flip=True), module(raw, flip=True, in_memory_limit=100, num_workers=1)
    assert here.in_memory
    assert not there.in_memory
    assert here.fingerprint == there.fingerprint
    for name in ("train_dataloader", "val_dataloader", "test_dataloader", "probe_dataloader"):
        pairs = list(zip(getattr(here, name)(), getattr(there, name)(), strict=True))
        assert pairs
        for one, other in pairs:
            expected, got = here.on_after_batch_transfer(one, 0), there.on_after_batch_transfer(other, 0)
            assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


# ---------------------------------------------------------------------------------------------------- state


def test_the_state_is_plain_and_recognises_other_data(tmp_path):
    torch.save(module().state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    module().load_state_dict(state)
    with pytest.raises(DataError, match=r"^data: the images, labels or splits have changed since the checkpoint"):
        module(split_seed=1).load_state_dict(state)
    early = ImageDataModule(splits, batch_size=8, val_fraction=0.3)
    early.load_state_dict(state)
    for _ in range(2):
        with pytest.raises(DataError, match=r"data\.val_fraction"):
            early.prepare()


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"^data\.batch_size must be >= 1, got 0$"),
        ({"eval_batch_size": 0}, r"^data\.eval_batch_size must be >= 1, got 0$"),
        ({"crop_padding": -1}, r"^data\.crop_padding must be >= 0, got -1$"),
        ({"crop_padding": 6, "crop_fill": "reflect"}, r"^data\.crop_padding must be < 6 \(the image size\)"),
        ({"crop_fill": "wrap"}, r"^data\.crop_fill must be one of zero, reflect, got 'wrap'$"),
        ({"normalize": "none"}, r"^data\.normalize must be one of standard, mean_image, unit, got 'none'$"),
        ({"image_size": 0}, r"^data\.image_size must be >= 1, got 0$"),
        ({"num_workers": -1}, r"^data\.num_workers must be >= 0 or auto, got -1$"),
        ({"seed": -1}, r"^seed must be >= 0, got -1$"),
        ({"in_memory_limit": "lots"}, r"^data\.in_memory_limit must be a size such as '2 GB' or '500 MB', got 'lots'$"),
        ({"val_fraction": 0}, r"^data\.val_fraction must be in \(0, 1\) when the data has no validation split, got 0$"),
        ({"val_fraction": 1.0}, r"^data\.val_fraction must be in \(0, 1\)"),
        (
            {"batch_size": 49},
            r"^data\.batch_size: 49 is larger than the training set of 48 images\. Give data\.batch_size=48 or less\.$",
        ),
    ],
)
def test_a_bad_setting_is_named(settings, message):
    with pytest.raises(DataError, match=message):
        module(**settings)


LONE = [0, 1] * 20 + [2]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            splits(train=images(41, labels=LONE)),
            r"no image of class 'c' \(a class of one image keeps it for training\)\. It is trained on, but nothing ",
        ),
        (splits(val=images(4, labels=[0, 1, 0, 1])), r"no image of class 'c'\. It is trained on"),
        (splits(train=images(42, labels=[*LONE, 2])), None),
    ],
)
def test_a_class_that_nothing_validates_is_named_once(raw, message, recwarn):
    data = module(raw)
    data.prepare()
    said = [str(w.message) for w in recwarn if "class" in str(w.message)]
    assert len(said) == (message is not None)
    assert message is None or re.search(message, said[0])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (splits(names=("a", "b", "c", "dog")), r"^data: the training split has no image of class 'dog'\. Add"),
        (
            splits(names=("a", "b")),
            r"^data: labels of the train split must be in 0\.\.1 \(there are 2 classes\), got 2$",
        ),
        (splits(test=images(4, labels=[0, 1, -1, 2])), r"^data: labels of the test split must be in 0\.\.2 .* got -1$"),
        (splits(n=0), r"^data: the train split has no images"),
        (splits(test=images(0)), r"^data: the test split has no images"),
        (splits(n=1, names=("a",)), r"^data\.val_fraction: 0\.2 of 1 training images leaves none for validation"),
    ],
)
def test_bad_data_is_named(raw, message):
    with pytest.raises(DataError, match=message):
        module(raw)


@pytest.mark.parametrize(
    ("size", "expected"), [("2 GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5 kb", 1500), (7, 7), ("1e3", 1000)]
)
def test_sizes(size, expected):
    assert parse_size(size) == expected


# ---------------------------------------------------------------------------------------------------- a real Trainer


class Probe(L.LightningModule):
    """Notes the types of what it is given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 36, 3)
        self.seen = {}

    def step(self, batch, name):
        x, y = batch
        self.seen[name] = (x.dtype, len(x))
        return torch.nn.functional.cross_entropy(self.layer(x.flatten(1)), y)

    def training_step(self, batch, _):
        return self.step(batch, "train")

    def validation_step(self, batch, _):
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_a_lightning_module_sees_plain_pairs_in_its_precision(tmp_path, precision, dtype):
    data, model = module(crop_padding=1, flip=True), Probe()
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert model.seen == {"train": (dtype, 8), "val": (dtype, 12), "test": (dtype, 20)}
    path = tmp_path / "end.ckpt"
    trainer.save_checkpoint(path)
    state = torch.load(path, weights_only=True)
    assert state["ImageDataModule"]["fingerprint"] == data.fingerprint


def test_digits_train_from_the_default_settings():
    data = ImageDataModule(sources.digits)
    data.prepare()
    assert data.sizes == {"train": 1294, "val": 144, "probe": 144, "test": 359}
    assert (data.in_channels, data.image_size, data.num_classes) == (1, (8, 8), 10)
    x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert x.shape == (64, 1, 8, 8)
    assert y.dtype == torch.int64


@pytest.mark.slow
def test_cifar10_of_the_hub():
    checkout = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("LR_LIGHTNING_CIFAR10", checkout.parent / "shared" / "data" / "cifar10"))
    if not (folder / "test.parquet").is_file():
        pytest.skip(f"no CIFAR-10 parquet files in {folder}; set LR_LIGHTNING_CIFAR10")
    data = ImageDataModule(partial(sources.parquet, folder / "test.parquet"), batch_size=100, crop_padding=4, flip=True)
    data.prepare()
    assert data.sizes == {"train": 9000, "val": 1000, "probe": 1000}
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    mean = data.state_dict()["offset"].flatten() / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01)


# ---------------------------------------------------------------------------------------- fewer, and flipped labels


def labels_of(data):
    """The label of each training, probe and validation image, by its pixels."""
    loaders = {"train": data.train_dataloader(), "probe": data.probe_dataloader(), "val": data.val_dataloader()}
    return {
        name: {image.numpy().tobytes(): int(y) for x, labels, *_ in loader for image, y in zip(x, labels, strict=True)}
        for name, loader in loaders.items()
    }


def test_flipped_labels_are_those_of_another_class_in_the_training_split_alone():
    plain, flipped = labels_of(module(drop_last=False)), labels_of(module(drop_last=False, flip_labels=0.25))
    assert flipped["val"] == plain["val"]
    changed = {key for key, label in plain["train"].items() if flipped["train"][key] != label}
    assert len(changed) == 12
    assert all(0 <= label < 3 for label in flipped["train"].values())
    assert all(flipped["train"][key] == label for key, label in flipped["probe"].items())  # memorised noise shows there
    again = labels_of(module(drop_last=False, flip_labels=0.25, seed=5))
    assert again == flipped
    assert labels_of(module(drop_last=False, flip_labels=0.25, split_seed=5)) != flipped
    assert module(flip_labels=0.25).fingerprint != module().fingerprint


def test_a_smaller_training_split_is_stratified_and_the_validation_stays():
    small, whole = module(train_size=12, drop_last=False), module(drop_last=False)
    assert small.sizes == {"train": 12, "val": 12, "probe": 12, "test": 20}
    labels = labels_of(small)
    assert labels["val"] == labels_of(whole)["val"]
    assert sorted(labels["train"].values()) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels["probe"] == labels["train"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 0}, "data.train_size must be >= 1, got 0"),
        ({"train_size": 49}, "data.train_size: 49 is more than the 48 training images"),
        ({"flip_labels": 1.5}, r"data.flip_labels must be in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_kept_or_flipped(settings, message):
    with pytest.raises(DataError, match=message):
        module(**settings)
