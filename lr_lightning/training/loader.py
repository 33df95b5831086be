"""Batches cut by index, in an order that is a function of (seed, epoch, index) alone.

``BatchLoader`` is handed to Lightning as it is. It is no torch DataLoader: a small CNN takes a millisecond a step,
which is less than collating its batch image by image would take.
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
from lr_lightning.training.transforms import Draws

Indices = NDArray[np.int64]
# Each use of the seed has a stream of its own, so that switching augmentation on leaves the data's order as it was.
_ORDER_STREAM, _DRAW_STREAM = 0, 1


class TrainBatch(NamedTuple):
    """A training batch before augmentation.

    Attributes:
        image: uint8 [B, C, H, W], channels_last.
        label: int64 [B].
        draws: The augmentation's random numbers, or None without augmentation.
    """

    image: Tensor
    label: Tensor
    draws: Draws | None


class EpochSampler:
    """The handle by which Lightning tells a loader which epoch comes next."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration follows."""
        self.epoch = epoch


class BatchLoader:
    """Cuts batches from a store of images.

    The epoch is the one last given to ``loader.sampler.set_epoch``, read when the first batch is asked for: Lightning
    calls ``iter()`` before it sets the epoch. A shallow copy (``copy.copy``) iterates by itself and leaves the
    original's position as it was.

    With several processes, training batches are ``batch_size * world`` examples, of which each rank takes its
    contiguous part (so two ranks see what one rank with twice the batch size sees, augmentation included). In
    evaluation each example comes exactly once and every rank has the same number of batches.

    Args:
        images: The store to cut from.
        labels: Label of every image in the store, int64.
        batch_size: Examples in a batch of one rank; in evaluation at most so many.
        indices: The examples of the store that are used; all by default.
        train: Whether to yield ``TrainBatch`` (else ``(image, label)``).
        shuffle: Whether each epoch has an order of its own; by default as ``train``.
        drop_last: Whether to leave out an incomplete last batch; by default as ``train``.
        seed: Seed of order and augmentation, at least 0.
        draw: Draws a batch's augmentation from a generator and the number of images.
        rank: Index of this process.
        world: Number of processes.
        num_workers: Processes that decode ahead; 0 decodes here.

    Raises:
        DataError: If a number is out of range, or there are fewer examples than processes.
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
        # Lightning asks for it wherever it finds a sampler.
        self.batch_sampler = None
        self._epoch = 0
        self._position = 0
        self._resuming = False

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank and wherever an iteration started."""
        total, together = len(self.indices), self.batch_size * self.world
        return total // together if self.drop_last else -(-total // together)

    def __iter__(self) -> Iterator[TrainBatch | tuple[Tensor, Tensor]]:
        """Iterate over the epoch that is set when the first batch is asked for."""
        # A generator on purpose: nothing below runs before the first `next`.
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
        """The same loader at the same position, counted in batches, with another batch size.

        Args:
            batch_size: Examples in a batch of one rank.

        Raises:
            DataError: If it is < 1.
        """
        if batch_size < 1:
            raise DataError(f"data.batch_size must be >= 1, got {batch_size}")
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def state_dict(self) -> dict[str, int]:
        """Where the iteration stands: the epoch, and the number of its batches that were handed out."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state: the next iteration starts at its position if the epoch is still the same, else at 0.

        Raises:
            DataError: If the position lies beyond an epoch of this loader.
        """
        if not 0 <= state["position"] <= len(self):
            raise DataError(
                f"data.batch_size: the checkpoint stands at batch {state['position']} of an epoch, but an epoch now "
                f"has {len(self)} batches. Resume with the data and batch size of the checkpoint."
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._resuming = True

    def _plan(self, epoch: int) -> list[Indices]:
        """This rank's examples of each batch of an epoch."""
        order = self.indices
        if self.shuffle:
            order = self._rng(_ORDER_STREAM, epoch).permutation(order)
        if not self.train and not self.drop_last:
            return np.array_split(order, len(self) * self.world)[self.rank :: self.world]
        return [self._share(batch)[self.rank] for batch in self._together(order)]

    def _together(self, order: Indices) -> Iterator[Indices]:
        """The batches of all ranks together."""
        size = self.batch_size * self.world
        for number in range(len(self)):
            batch = order[number * size : (number + 1) * size]
            # An incomplete last batch: no rank may be left without an example, or the others would wait for it.
            yield np.concatenate([batch, order[: max(0, self.world - len(batch))]])

    def _share(self, rows: Indices) -> list[Indices]:
        """Contiguous, nearly equal parts of one batch, one for each rank."""
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
            # Left to itself it would take its workers' seed from the global generator, and so disturb the training.
            generator=torch.Generator(),
        )
        for image in loader:
            if isinstance(image, DataError):
                raise image
            yield image


class _Batches(Dataset[Tensor | DataError]):
    """One item a batch, decoded in the worker that asks for it."""

    def __init__(self, images: ImageStore, plan: Sequence[Indices]) -> None:
        self.images = images
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Tensor | DataError:
        try:
            return self.images.take(self.plan[number])
        except DataError as error:
            # As a value: raised here, its message would reach the user wrapped in the worker's traceback.
            return error


def _check(examples: int, *, batch_size: int, seed: int, rank: int, world: int, num_workers: int) -> None:
    if batch_size < 1:
        raise DataError(f"data.batch_size must be >= 1, got {batch_size}")
    if seed < 0:
        raise DataError(f"seed must be >= 0, got {seed}")
    if num_workers < 0:
        raise DataError(f"data.num_workers must be >= 0, got {num_workers}")
    if not 0 <= rank < world:
        raise DataError(f"expected rank in [0, {world}), got {rank}")
    if examples < world:
        raise DataError(f"data: {examples} examples cannot be shared by {world} processes. Give trainer.devices=1.")
