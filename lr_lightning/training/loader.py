"""Batches cut by index, in an order that depends on (seed, epoch, index) alone.

``BatchLoader`` takes the place of a torch DataLoader: a step of a small CNN takes a millisecond, less time than it
takes to collate its batch image by image.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lr_lightning.errors import DataError
from lr_lightning.training.decode import ImageStore
from lr_lightning.training.images import require
from lr_lightning.training.transforms import Draws

Indices = NDArray[np.int64]
# Separate random streams: augmentation does not change the order of the data.
_ORDER_STREAM, _DRAW_STREAM = 0, 1


class TrainBatch(NamedTuple):
    """A training batch before augmentation.

    Attributes:
        image: uint8 [B, C, H, W], channels_last.
        label: int64 [B].
        draws: Random numbers of the augmentation, or None without augmentation.
    """

    image: Tensor
    label: Tensor
    draws: Draws | None


class EpochSampler:
    """The handle by which Lightning tells a loader which epoch comes next."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch


class BatchLoader:
    """Cut batches from a store of images.

    The epoch is the last argument of ``loader.sampler.set_epoch``, read at the first batch: Lightning calls ``iter()``
    before it sets the epoch. A shallow copy (``copy.copy``) iterates independently of the original.

    With several processes, a training batch is ``batch_size * world`` examples. Each rank takes its contiguous part:
    two ranks see what one rank with twice the batch size sees, augmentation included. In evaluation each example comes
    exactly once, and every rank has the same number of batches.

    Args:
        images: The store to cut from.
        labels: Label of every image in the store, int64.
        batch_size: Examples in a batch of one rank; the maximum in evaluation.
        indices: The examples of the store to use; all by default.
        train: Whether to yield ``TrainBatch`` (else ``(image, label)``).
        shuffle: Whether the order changes with the epoch; by default as ``train``.
        drop_last: Whether to leave out an incomplete last batch; by default as ``train``.
        seed: Seed of order and augmentation, at least 0.
        draw: Draws a batch's augmentation, given a generator and the number of images.
        rank: Index of this process.
        world: Number of processes.
        num_workers: Processes that decode ahead; 0 decodes here.

    Raises:
        DataError: A number is out of range, or there are fewer examples than processes.
    """

    def __init__(
        self,
        images: ImageStore,
        labels: Indices,
        *,
        batch_size: int,
        indices: Indices | None = None,
        train: bool = False,
        shuffle: bool | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        draw: Callable[[np.random.Generator, int], Draws] | None = None,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.indices = np.arange(len(labels)) if indices is None else indices
        _check(len(self.indices), batch_size=batch_size, seed=seed, rank=rank, world=world, num_workers=num_workers)
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.train = train
        self.shuffle = train if shuffle is None else shuffle
        self.drop_last = train if drop_last is None else drop_last
        self.seed = seed
        self.draw = draw
        self.rank = rank
        self.world = world
        self.num_workers = num_workers
        self.sampler = EpochSampler()
        self.batch_sampler = None  # Lightning reads it if there is a sampler
        self._epoch = 0
        self._position = 0
        self._resuming = False

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        total, together = len(self.indices), self.batch_size * self.world
        return total // together if self.drop_last else -(-total // together)

    def __iter__(self) -> Iterator[TrainBatch | tuple[Tensor, Tensor]]:
        """Iterate over the epoch that is set at the first batch."""
        # As this is a generator, nothing below runs before the first `next`.
        epoch = self.sampler.epoch
        start = self._position if self._resuming and self._epoch == epoch else 0
        self._resuming = False
        self._epoch, self._position = epoch, start
        plan = self._plan(epoch)
        for number, image in enumerate(self._cut(plan[start:]), start):
            self._position = number + 1
            label = torch.from_numpy(self.labels[plan[number]])
            yield TrainBatch(image, label, self._draws(epoch, number)) if self.train else (image, label)

    def with_batch_size(self, batch_size: int) -> "BatchLoader":
        """Return a copy at the same position, counted in batches, with another batch size.

        Raises:
            DataError: ``batch_size`` is < 1.
        """
        require(batch_size >= 1, f"data.batch_size must be >= 1, got {batch_size}")
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, and the number of its batches that were yielded."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume: the next iteration starts at the saved position if the epoch is the same, else at 0.

        Raises:
            DataError: The position lies beyond an epoch of this loader.
        """
        require(
            0 <= state["position"] <= len(self),
            f"data.batch_size: the checkpoint stands at batch {state['position']} of an epoch, but an epoch now "
            f"has {len(self)} batches. Resume with the data and batch size of the checkpoint.",
        )
        self._epoch, self._position = state["epoch"], state["position"]
        self._resuming = True

    def _plan(self, epoch: int) -> list[Indices]:
        """Return this rank's examples for each batch of an epoch."""
        order = self.indices
        if self.shuffle:
            order = self._rng(_ORDER_STREAM, epoch).permutation(order)
        if not self.train and not self.drop_last:
            return np.array_split(order, len(self) * self.world)[self.rank :: self.world]
        return [self._share(batch)[self.rank] for batch in self._together(order)]

    def _together(self, order: Indices) -> Iterator[Indices]:
        """Yield each batch of all ranks together."""
        size = self.batch_size * self.world
        for number in range(len(self)):
            batch = order[number * size : (number + 1) * size]
            # In an incomplete last batch every rank needs an example, or the others would wait for it.
            yield np.concatenate([batch, order[: max(0, self.world - len(batch))]])

    def _share(self, rows: Indices) -> list[Indices]:
        """Split a batch into contiguous, nearly equal parts, one for each rank."""
        return np.array_split(rows, self.world)

    def _draws(self, epoch: int, number: int) -> Draws | None:
        if self.draw is None:
            return None
        together = self.batch_size * self.world
        rows = min(together, max(len(self.indices) - number * together, self.world))
        mine = self._share(np.arange(rows))[self.rank]
        draws = self.draw(self._rng(_DRAW_STREAM, epoch, number), rows)
        return Draws(*(numbers[torch.from_numpy(mine)] for numbers in draws))

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=stream)))

    def _cut(self, plan: Sequence[Indices]) -> Iterator[Tensor]:
        if self.num_workers == 0:
            yield from map(self.images.take, plan)
            return
        loader: DataLoader[Tensor | DataError] = DataLoader(
            _Batches(self.images, plan),
            batch_size=None,
            num_workers=self.num_workers,
            # By default it draws its workers' seed from the global generator, which would change the training.
            generator=torch.Generator(),
        )
        for image in loader:
            if isinstance(image, DataError):
                raise image
            yield image


class _Batches(Dataset[Tensor | DataError]):
    """A data set whose items are batches, decoded in a worker process."""

    def __init__(self, images: ImageStore, plan: Sequence[Indices]) -> None:
        self.images = images
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Tensor | DataError:
        try:
            return self.images.take(self.plan[number])
        except DataError as error:
            # Returned, not raised: the user would see the worker's traceback around its message.
            return error


def _check(examples: int, *, batch_size: int, seed: int, rank: int, world: int, num_workers: int) -> None:
    require(batch_size >= 1, f"data.batch_size must be >= 1, got {batch_size}")
    require(seed >= 0, f"seed must be >= 0, got {seed}")
    require(num_workers >= 0, f"data.num_workers must be >= 0, got {num_workers}")
    require(0 <= rank < world, f"expected rank in [0, {world}), got {rank}")
    require(
        examples >= world, f"data: {examples} examples cannot be shared by {world} processes. Give trainer.devices=1."
    )
