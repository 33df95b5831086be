import copy
import functools
from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lr_lightning.errors import DataError
from lr_lightning.training.decode import EncodedImages, Format, MemoryImages
from lr_lightning.training.images import Images
from lr_lightning.training.loader import BatchLoader, TrainBatch
from lr_lightning.training.transforms import draw_augmentation

N = 22


def store(n=N):
    """Images whose pixels all equal their index."""
    return MemoryImages(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 4, 4, 3)).copy())


def loader(n=N, images=None, **settings):
    return BatchLoader(store(n) if images is None else images, np.arange(n) % 3, **{"batch_size": 4, **settings})


def ids(batches):
    return [batch[0][:, 0, 0, 0].tolist() for batch in batches]


def flat(parts):
    return list(chain.from_iterable(parts))


def numbers(batch):
    return [tensor.tolist() for tensor in (batch.image, batch.label, *batch.draws)]


TRAIN = {"train": True, "seed": 7, "draw": functools.partial(draw_augmentation, padding=1, flip=True)}


def test_a_training_epoch_holds_each_example_at_most_once_and_its_own_label():
    batches = list(loader(**TRAIN))
    assert len(batches) == len(loader(**TRAIN)) == 5
    assert all(isinstance(batch, TrainBatch) for batch in batches)
    seen = [index for batch in ids(batches) for index in batch]
    assert len(seen) == len(set(seen)) == 20
    assert [label for batch in batches for label in batch.label.tolist()] == [index % 3 for index in seen]
    assert batches[0].image.shape == (4, 3, 4, 4)
    assert batches[0].image.is_contiguous(memory_format=torch.channels_last)


def test_the_incomplete_batch_is_kept_when_asked_for():
    batches = list(loader(**TRAIN, drop_last=False))
    assert [len(batch.image) for batch in batches] == [4, 4, 4, 4, 4, 2]
    assert len(batches[-1].draws.flips) == 2
    assert sorted(flat(ids(batches))) == list(range(N))


def test_evaluation_keeps_the_order_and_yields_pairs():
    batches = list(loader())
    assert flat(ids(batches)) == list(range(N))
    assert all(type(batch) is tuple for batch in batches)


def test_only_the_chosen_indices_are_used():
    assert flat(ids(loader(indices=np.array([3, 5, 8, 13, 21])))) == [3, 5, 8, 13, 21]


def test_batches_are_a_function_of_seed_and_epoch_whatever_ran_before():
    first = loader(**TRAIN)
    expected = {}
    for epoch in (0, 1, 2):
        first.sampler.set_epoch(epoch)
        expected[epoch] = list(map(numbers, first))
    torch.manual_seed(99)
    np.random.seed(99)
    second = loader(**TRAIN)
    for epoch in (2, 0):
        second.sampler.set_epoch(epoch)
        assert list(map(numbers, second)) == expected[epoch]
    assert expected[0] != expected[1]
    assert list(map(numbers, loader(**{**TRAIN, "seed": 8}))) != expected[0]


def test_augmentation_does_not_change_the_order():
    assert ids(loader(**TRAIN)) == ids(loader(train=True, seed=7))


def test_the_epoch_is_read_when_the_first_batch_is_asked_for():
    late = loader(**TRAIN)
    iterator = iter(late)
    late.sampler.set_epoch(3)
    early = loader(**TRAIN)
    early.sampler.set_epoch(3)
    assert ids(iterator) == ids(early)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_leaves_the_global_random_state_alone(num_workers):
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(loader(**TRAIN, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)


def test_workers_give_the_same_batches_in_the_same_order():
    here, there = loader(**TRAIN), loader(**TRAIN, num_workers=2)
    assert list(map(numbers, there)) == list(map(numbers, here))
    assert next(iter(there)).image.is_contiguous(memory_format=torch.channels_last)


def test_a_broken_image_in_a_worker_is_one_plain_message():
    images = EncodedImages(
        Images(np.zeros(4, np.int64), encoded=[b"no image"] * 4, origin="x.parquet"), Format(3, 4, 4)
    )
    with pytest.raises(
        DataError,
        match=r"^data: row 0 of x\.parquet is not an image\. Repair or remove it, or give data\.on_bad_image=skip\.$",
    ):
        list(loader(4, images, num_workers=1))


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_what_one_process_with_a_larger_batch_sees(world, drop_last):
    size = 4 * world
    alone = [numbers(batch) for batch in loader(**TRAIN, batch_size=size, drop_last=drop_last)]
    ranks = [list(loader(**TRAIN, rank=rank, world=world, drop_last=drop_last)) for rank in range(world)]
    together = [
        [flat(parts) for parts in zip(*map(numbers, batches), strict=True)] for batches in zip(*ranks, strict=True)
    ]
    assert together == alone


def test_no_rank_is_left_without_a_training_example():
    ranks = [list(loader(9, **TRAIN, rank=rank, world=4, batch_size=2, drop_last=False)) for rank in range(4)]
    assert [[len(batch.image) for batch in batches] for batches in ranks] == [[2, 1]] * 4
    assert all(len(batch.draws.flips) == len(batch.image) for batches in ranks for batch in batches)


@pytest.mark.parametrize("n", [4, 5, 16, 17, 22])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_evaluation_sees_each_example_once_in_equally_many_batches_on_each_rank(n, world):
    ranks = [list(loader(n, rank=rank, world=world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(loader(n, world=world))}
    assert all(1 <= len(image) <= 4 for batches in ranks for image, _ in batches)
    assert sorted(index for batches in ranks for batch in ids(batches) for index in batch) == list(range(n))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("position", [0, 1, 4, 5])
def test_a_state_goes_on_where_it_was_taken(position, num_workers):
    first = loader(**TRAIN)
    first.sampler.set_epoch(2)
    batches = iter(first)
    for _ in range(position):
        next(batches)
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())
    rest = list(map(numbers, batches))
    second = loader(**TRAIN, num_workers=num_workers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    iterator = iter(second)
    second.sampler.set_epoch(2 if position else 0)
    if position:
        assert list(map(numbers, iterator)) == rest
        assert len(second) == 5
    again = list(second)
    assert len(again) == 5


def test_a_state_of_another_epoch_starts_at_the_beginning():
    second = loader(**TRAIN)
    second.load_state_dict({"epoch": 0, "position": 3})
    second.sampler.set_epoch(1)
    assert len(list(second)) == 5
    assert second.state_dict() == {"epoch": 1, "position": 5}


def test_a_state_beyond_the_epoch_is_refused():
    with pytest.raises(DataError, match="stands at batch 6 of an epoch, but an epoch now has 5 batches"):
        loader(**TRAIN).load_state_dict({"epoch": 0, "position": 6})


def test_a_shallow_copy_iterates_without_moving_the_original():
    original = loader(**TRAIN)
    batches = iter(original)
    first = ids([next(batches)])
    assert ids(copy.copy(original))[:1] == first
    assert original.state_dict() == {"epoch": 0, "position": 1}
    assert len(list(batches)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"num_workers": -1}, "data.num_workers must be >= 0, got -1"),
        ({"rank": 2, "world": 2}, r"expected rank in \[0, 2\), got 2"),
        ({"world": 23}, "22 examples cannot be shared by 23 processes"),
    ],
)
def test_bad_numbers_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        loader(**settings)


class Tiny(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.layer(batch.image[:, :1, 0, 0].float() / N).square().mean()

    def validation_step(self, batch, _):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Record(Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, numbers(batch)))


def fit(tmp_path, *, num_workers=0, ckpt_path=None, callbacks=(), validate=True, **limits):
    record = Record()
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record, *callbacks],
        **limits,
    )
    trainer.fit(Tiny(), loader(**TRAIN, num_workers=num_workers), loader() if validate else None, ckpt_path=ckpt_path)
    return record.batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), max_epochs=3)


def test_lightning_gives_each_epoch_its_own_order(uninterrupted):
    assert [(epoch, index) for epoch, index, _ in uninterrupted] == [(e, i) for e in range(3) for i in range(5)]
    for epoch in range(3):
        alone = loader(**TRAIN)
        alone.sampler.set_epoch(epoch)
        assert [batch for e, _, batch in uninterrupted if e == epoch] == list(map(numbers, alone))


@pytest.mark.filterwarnings("ignore:.*num_workers.*")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 5, 7, 10])
def test_lightning_resumes_with_the_batches_that_follow(tmp_path, uninterrupted, step, num_workers):
    keep = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=step)
    first = fit(tmp_path, max_steps=step, max_epochs=3, num_workers=num_workers, callbacks=[keep])
    path = tmp_path / "stopped.ckpt"
    rest = fit(tmp_path, max_epochs=3, ckpt_path=path, num_workers=num_workers)
    assert first == uninterrupted[:step]
    assert rest == uninterrupted[step:]


@pytest.mark.parametrize(
    ("when", "limits"),
    [
        ({"every_n_train_steps": 1}, {}),
        ({"every_n_train_steps": 1}, {"val_check_interval": 2}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {}),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {"val_check_interval": 2}),
        ({"every_n_train_steps": 1}, {"max_steps": 13, "max_epochs": -1}),
    ],
)
def test_lightning_resumes_from_every_checkpoint_a_callback_saves(tmp_path, uninterrupted, when, limits):
    keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}-{step}", save_top_k=-1, **when)
    limits = {"max_epochs": 3, **limits}
    whole = fit(tmp_path, callbacks=[keep], **limits)
    assert whole == uninterrupted[: len(whole)]
    paths = list((tmp_path / "kept").iterdir())
    assert len(paths) >= 3
    for path in paths:
        state = torch.load(path, weights_only=True)
        rest = fit(tmp_path, ckpt_path=path, **limits)
        assert rest == whole[state["global_step"] :], path.name


def test_another_batch_size_keeps_order_and_position_and_leaves_the_original_alone():
    original = loader(**TRAIN)
    original.sampler.set_epoch(1)
    larger = original.with_batch_size(10)
    assert len(larger) == 2
    order = flat(ids(original))
    assert flat(ids(larger)) == order[:20]
    original.load_state_dict({"epoch": 1, "position": 1})
    assert flat(ids(original.with_batch_size(5))) == order[5:20]
    assert flat(ids(original)) == order[4:]
    with pytest.raises(DataError, match="batch_size must be >= 1, got 0"):
        original.with_batch_size(0)
