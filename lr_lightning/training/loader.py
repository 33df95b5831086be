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
    """A training batch before augmentation."""

    image: Tensor  # uint8 [B, C, H, W], channels_last
    label: Tensor  # int64 [B]
    draws: Draws | None  # None without augmentation


class EpochSampler:
    """The handle by which Lightning tells a loader which epoch comes next."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch


class BatchLoader:
    """Cut batches from a store of images: ``TrainBatch`` in training, else ``(image, label)``.

    The epoch is the last argument of ``loader.sampler.set_epoch``, read at the first batch: Lightning calls ``iter()``
    before it sets the epoch. A shallow copy (``copy.copy``) iterates independently of the original.

    With several processes, a training batch is ``batch_size * world`` examples. Each rank takes its contiguous part:
    two ranks see what one rank with twice the batch size sees, augmentation included. In evaluation each example comes
    exactly once, and every rank has the same number of batches.

    ``batch_size`` is of one rank, and the maximum in evaluation. ``indices`` are the examples of the store to use, all
    by default. ``shuffle`` and ``drop_last`` are by default as ``train``. ``draw`` draws a batch's augmentation, given
    a generator and the number of images. ``num_workers`` processes decode ahead; 0 decodes here.

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
        examples = len(self.indices)
        require(batch_size >= 1, f"data.batch_size must be >= 1, got {batch_size}")
        require(seed >= 0, f"seed must be >= 0, got {seed}")
        require(num_workers >= 0, f"data.num_workers must be >= 0, got {num_workers}")
        require(0 <= rank < world, f"expected rank in [0, {world}), got {rank}")
        require(
            examples >= world,
            f"data: {examples} examples cannot be shared by {world} processes. Give trainer.devices=1.",
        )
        self.images, self.labels = images, labels
        self.batch_size, self.train, self.seed, self.draw = batch_size, train, seed, draw
        self.shuffle = train if shuffle is None else shuffle
        self.drop_last = train if drop_last is None else drop_last
        self.rank, self.world, self.num_workers = rank, world, num_workers
        self.sampler = EpochSampler()
        self.batch_sampler = None  # Lightning reads it if there is a sampler
        self._epoch = self._position = 0
        self._resuming = False

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, the same on every rank."""
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
        """Return a copy at the same position, counted in batches, with another batch size."""
        require(batch_size >= 1, f"data.batch_size must be >= 1, got {batch_size}")
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, and the number of its batches that were yielded."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume: the next iteration starts at the saved position if the epoch is the same, else at 0."""
        require(
            0 <= state["position"] <= len(self),
            f"data.batch_size: the checkpoint stands at batch {state['position']} of an epoch, but an epoch now "
            f"has {len(self)} batches. Resume with the data and batch size of the checkpoint.",
        )
        self._epoch, self._position, self._resuming = state["epoch"], state["position"], True

    def _plan(self, epoch: int) -> list[Indices]:
        """Return this rank's examples for each batch of an epoch."""
        order = self._rng(_ORDER_STREAM, epoch).permutation(self.indices) if self.shuffle else self.indices
        if not self.train and not self.drop_last:
            return np.array_split(order, len(self) * self.world)[self.rank :: self.world]
        size = self.batch_size * self.world
        together = [order[number * size : (number + 1) * size] for number in range(len(self))]
        # In an incomplete last batch every rank needs an example, or the others would wait for it.
        together[-1:] = [np.concatenate([rows, order[: max(0, self.world - len(rows))]]) for rows in together[-1:]]
        return [self._share(rows) for rows in together]

    def _share(self, rows: Indices) -> Indices:
        """Return this rank's part of a batch: contiguous, and nearly as large as the other parts."""
        return np.array_split(rows, self.world)[self.rank]

    def _draws(self, epoch: int, number: int) -> Draws | None:
        if self.draw is None:
            return None
        together = self.batch_size * self.world
        rows = min(together, max(len(self.indices) - number * together, self.world))
        mine = torch.from_numpy(self._share(np.arange(rows)))
        return Draws(*(numbers[mine] for numbers in self.draw(self._rng(_DRAW_STREAM, epoch, number), rows)))

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
        self.images, self.plan = images, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Tensor | DataError:
        try:
            return self.images.take(self.plan[number])
        except DataError as error:
            # Returned, not raised: the user would see the worker's traceback around its message.
            return error
