"""Which images each split uses, and data that cannot be trained on."""

import re

import pytest
import torch

from lr_lightning.errors import DataError

from .made_up import images, module, splits, training_pixels


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
    assert all(flipped["train"][key] == label for key, label in flipped["probe"].items())  # memorized noise shows there
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
