"""The data module: preparation, the work on the device, its state, and bad settings."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from lr_lightning.errors import DataError, UsageError
from lr_lightning.training import sources
from lr_lightning.training.datamodule import ImageDataModule, parse_size
from lr_lightning.training.decode import stored_keys
from lr_lightning.training.images import Images
from lr_lightning.training.loader import TrainBatch
from lr_lightning.training.transforms import crop_and_flip, inside, mix

from .made_up import as_files, images, module, splits, training_pixels


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


def test_without_a_test_set():
    data = module(splits(test=None))
    assert not data.has_test
    assert data.test_dataloader() == []


def plain(data, image):
    batch = (image, torch.zeros(len(image), dtype=torch.int64))
    return data.on_after_batch_transfer(batch, 0)[0]


@pytest.mark.parametrize("in_memory_limit", ["1 GB", "0 B"])
def test_standard_normalization_is_of_the_training_split_alone(in_memory_limit):
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


def test_a_training_batch_is_erased_and_mixed_after_its_normalization_and_others_are_not():
    data = module(flip=True, random_erasing=0.5, mixup=0.4, cutmix=1.0)
    batch = next(iter(data.train_dataloader()))
    x, y = data.on_after_batch_transfer(batch, 0)
    image = plain(data, crop_and_flip(batch.image, batch.draws, padding=0))
    image = image.masked_fill(inside(batch.draws.erased, *data.image_size), 0.0)
    expected, shares = mix(image, batch.label, batch.draws, data.num_classes)
    assert torch.equal(x, expected)
    assert torch.equal(y, shares)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    for loader in (data.val_dataloader(), data.probe_dataloader(), data.test_dataloader()):
        held_out, labels = next(iter(loader))
        seen = data.on_after_batch_transfer((held_out, labels), 0)
        assert torch.equal(seen[0], plain(data, held_out))
        assert torch.equal(seen[1], labels)


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


def test_the_state_is_plain_and_recognizes_other_data(tmp_path):
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


@pytest.mark.parametrize(
    ("size", "expected"), [("2 GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5 kb", 1500), (7, 7), ("1e3", 1000)]
)
def test_sizes(size, expected):
    assert parse_size(size) == expected


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


@pytest.mark.parametrize("as_stored", [False, True])
def test_images_that_are_trained_on_and_tested_are_counted(caplog, tmp_path, as_stored):
    train, test = images(), images(20, seed=1)
    test.array[:3] = train.array[[5, 6, 7]]
    val = images(6, seed=2)
    val.array[0] = train.array[9]
    parts = (train, test, val) if not as_stored else tuple(map(as_files, (train, test, val)))
    settings = {"in_memory_limit": "0 B", "num_workers": 0} if as_stored else {}
    module(splits(train=parts[0], test=parts[1], val=parts[2]), **settings)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("1 of the 6 validation images are training images too")
    assert second.startswith("3 of the 20 test images are training images too, which makes the test accuracy too good.")
    if as_stored:
        for number, content in enumerate(parts[0].encoded):
            (tmp_path / f"{number}").write_bytes(content)
        paths = replace(parts[0], encoded=[tmp_path / f"{number}" for number in range(60)])
        assert len(set(stored_keys(paths, np.arange(60)))) == 60


@pytest.mark.parametrize("limit", ["1 GB", "0 B"])
@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((60, 1, 6, 6), np.uint8), "the training images are all the same picture"),
        (np.full((60, 3, 6, 6), 255, np.uint8), "the training images are all the same picture"),
        (images(20).array.repeat(3, 0), "the training classes all have the same pictures"),
    ],
)
def test_pictures_that_do_not_tell_the_classes_apart_are_refused(pixels, message, limit):
    raw = splits(train=Images(np.arange(60) % 3, array=pixels), val=images(9, seed=3))
    with pytest.raises(DataError, match=f"^data: {message}, so there is nothing to learn"):
        module(raw, in_memory_limit=limit, num_workers=0)


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


@pytest.mark.parametrize("name", ["num_classes", "in_channels", "image_size"])
def test_what_is_not_loaded_is_not_known(name):
    data = ImageDataModule(splits)
    with pytest.raises(UsageError, match=rf"^{name} is not known .* call prepare\(\) first$"):
        getattr(data, name)


def test_more_processes_than_images_are_not_advised_a_batch_of_none():
    data = module(batch_size=8)
    data.trainer = SimpleNamespace(global_rank=0, world_size=49)
    with pytest.raises(DataError, match=r"49 processes of 8 are more than .*\. Start fewer, or give more images\.$"):
        data.train_dataloader()


def test_a_bad_size_is_named():
    with pytest.raises(DataError, match=r"^size must be a size"):
        parse_size("much")
    with pytest.raises(DataError, match=r"^data\.in_memory_limit must be a size"):
        module(in_memory_limit="much")
