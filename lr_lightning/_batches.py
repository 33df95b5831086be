"""What a batch holds: its parts by their place in it, and the number of its examples; and the losses of its steps."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, IterableDataset

from lr_lightning._lightning import STEP_OUTPUT, LightningModule, Trainer

Place = tuple[tuple[Callable[[Any, Any], Any], Any], ...]
"""The keys, indices and attributes that lead from a batch to a part of it."""

_DEEPEST = 5  # levels of containers that are looked through
_LATEST, _BLOCK = 64, 1024  # scalars that have a view each, and those in one tensor
_MOST = 10_000  # parts: a longer list holds single values


def parts(batch: Any) -> Iterator[tuple[Place, Any]]:
    """Return every part of a batch with its place, the batch itself first."""
    stack: list[tuple[Place, Any]] = [((), batch)]
    for _ in range(_MOST):
        if not stack:
            return
        place, part = stack.pop()
        yield place, part
        if len(place) < _DEEPEST:
            stack += [((*place, step), inner) for step, inner in reversed(list(_inner(part)))]


def at(place: Place, batch: Any) -> Any:
    """Return the part of a batch at a place."""
    for get, key in place:
        batch = get(batch, key)
    return batch


def written(place: Place, name: str = "batch") -> str:
    """Return the Python expression for a place."""
    return name + "".join(f".{key}" if get is getattr else f"[{key!r}]" for get, key in place)


def _inner(part: Any) -> Iterator[tuple[tuple[Callable[[Any, Any], Any], Any], Any]]:
    if part is None or isinstance(part, Tensor | str | bytes | int | float | PackedSequence | type):
        return
    if is_dataclass(part):
        yield from (((getattr, field.name), getattr(part, field.name)) for field in fields(part))
    elif isinstance(part, tuple | list):
        yield from (((operator.getitem, index), inner) for index, inner in enumerate(part))
    elif isinstance(part, Mapping):
        yield from (((operator.getitem, key), inner) for key, inner in part.items())
    elif callable(getattr(part, "keys", None)) and hasattr(part, "__getitem__"):  # a library's own, such as graphs
        yield from (((operator.getitem, key), part[key]) for key in part.keys())  # noqa: SIM118
    else:
        own = getattr(part, "__dict__", {})
        yield from (((getattr, name), inner) for name, inner in own.items() if not name.startswith("_"))


def batch_size_of(loader: object) -> int | None:
    """Return the examples in a full batch of one process; None if the loader does not tell."""
    for place in (loader, getattr(loader, "batch_sampler", None)):
        size = getattr(place, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return None


# -- the number of examples -------------------------------------------------------------------------------------------


def count_examples(batch: Any, size: int | None = None) -> int | None:
    """Return the number of examples in a batch; None if the batch does not tell.

    An object's own ``num_graphs`` or ``batch_size`` counts first. Then all tensors must have the same length. If they
    do not, as in a batch of molecules with their atoms, the length that fits to ``size`` counts.

    Args:
        batch: The batch.
        size: Number of examples in a full batch, if known.

    Example:
        >>> import torch
        >>> count_examples({"atoms": torch.zeros(70, 3), "energy": torch.zeros(4)}, size=8)
        4
    """
    if isinstance(batch, tuple | list) and 0 < (length := _common_length(batch)) <= (size or math.inf):
        return length  # of the most usual batch, quickly
    declared, lengths, lists = set(), set(), set()
    for place, part in parts(batch):
        if isinstance(part, PackedSequence):
            declared.add(int(part.batch_sizes[0]))
        elif isinstance(part, Tensor):
            lengths |= {len(part)} if part.ndim else set()
        elif isinstance(part, list | tuple):
            lists |= {len(part)} if place else set()
        else:
            declared |= _declared(part)
    for known in (declared, lengths):
        if len(known) == 1 and max(known) <= (size or math.inf):
            return int(known.pop())
    every = declared | lengths | lists
    if size is None:
        return lists.pop() if not lengths and len(lists) == 1 else None
    if size in every:
        return size
    smaller = [length for length in every if length < size]
    return smaller[0] if len(smaller) == 1 else None


def _common_length(batch: Sequence[Any]) -> int:
    """Return the length that all tensors in a batch have; -1 if they have several, or there is anything else in it."""
    length = -1
    for part in batch:
        if part is None:
            continue
        if type(part) is not Tensor or not part.ndim or length not in (-1, part.shape[0]):
            return -1
        length = part.shape[0]
    return length


def _declared(part: Any) -> set[int]:
    if part is None or isinstance(part, Mapping | str | bytes | int | float):
        return set()
    for name in ("num_graphs", "batch_size"):
        value = getattr(part, name, None)
        value = value[0] if isinstance(value, tuple) and value else value  # a torch.Size
        if isinstance(value, int) and value > 0:
            return {value}
    return set()


def loaded_examples(loaders: Any, batch: Any, index: int) -> int | None:
    """Return the number of examples in a batch of this index from a loader, or from a collection of loaders.

    Each loader of a collection gave one part of the batch, and the examples of all parts count. None if unknown.
    """
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping) and loaders.keys() == batch.keys():
        pairs = [(loader, batch[key]) for key, loader in loaders.items()]
    elif isinstance(loaders, list | tuple) and isinstance(batch, list | tuple) and len(loaders) == len(batch):
        pairs = list(zip(loaders, batch, strict=True))
    else:
        return _of_one(loaders, batch, index)
    counts = [0 if part is None else loaded_examples(loader, part, index) for loader, part in pairs]
    return None if None in counts else sum(count for count in counts if count is not None)


def _of_one(loader: Any, batch: Any, index: int) -> int | None:
    regular = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if regular and loader.batch_size is not None and isinstance(loader.sampler, Sized):
        every = len(loader.sampler)  # what the batch looks like does not matter, whatever collate_fn made of it
        left = every - index % max(1, len(loader)) * loader.batch_size
        return int(min(loader.batch_size, left)) if left > 0 else None
    try:
        return count_examples(batch, batch_size_of(loader))
    except Exception:  # looking through an object of a library may raise anything
        return None


def batch_loss(outputs: STEP_OUTPUT, trainer: Trainer, module: LightningModule) -> Tensor | None:
    """Return the loss that ``training_step`` returned, from the ``outputs`` that ``on_train_batch_end`` receives.

    It is a detached float32 (or float64) scalar on the loss's device, before Lightning divides it by the number of
    accumulated batches; None if the step returned no loss. Few operations are used, and nothing is transferred.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    # under manual optimization the module may return a buffer that it overwrites in its next step
    loss = loss.detach() if module.automatic_optimization else loss.detach().clone()
    loss = loss if loss.dtype in (torch.float32, torch.float64) else loss.float()
    loss = loss.mean() if loss.ndim else loss
    if trainer.accumulate_grad_batches > 1 and module.automatic_optimization:
        loss = loss * trainer.accumulate_grad_batches
    return loss


def mean_loss(losses: Sequence[Tensor]) -> Tensor | None:
    """Return the mean over a step's micro-batches, on the device of the last one; a checkpoint's are on the CPU."""
    if len(losses) > 1:
        return torch.stack([loss.to(losses[-1].device) for loss in losses]).mean()
    return losses[0] if losses else None


class Scalars:
    """Scalars of many steps, side by side on their device.

    The C allocator cannot use the memory of a step's activations as a whole again if a tensor of one element stays in
    its midst: with a tensor kept from each step, the process would grow. A scalar is copied into one of a few views,
    which are made once: to index a tensor takes longer than the copy.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []  # all but the latest
        self._filled = _BLOCK  # of the last block
        self._latest = torch.empty(0)
        self._views: Sequence[Tensor] = ()  # of each of the latest
        self._count, self._length = 0, 0  # of the latest, of all

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        """Leave the views out: those of a copy would be no views of its tensor."""
        return {**self.__dict__, "_views": ()}

    def append(self, value: Tensor) -> None:
        """Copy a scalar; nothing is transferred, and nothing waits for the device."""
        latest = self._latest
        if self._count >= len(self._views) or value.dtype != latest.dtype or value.device != latest.device:
            self._begin(value)
        self._views[self._count].copy_(value)
        self._count += 1
        self._length += 1

    def _begin(self, value: Tensor) -> None:
        """Put the latest into a block, and make room for further ones of this value's dtype and device."""
        latest, alike = self._latest[: self._count], _alike(self._latest, value)
        if self._count and not alike:
            self._blocks, self._filled = [*self._whole_blocks(), latest.clone()], _BLOCK
        elif self._count:
            if self._filled + self._count > _BLOCK:
                self._blocks, self._filled = [*self._whole_blocks(), self._latest.new_empty(_BLOCK)], 0
            self._blocks[-1][self._filled : self._filled + self._count] = latest
            self._filled += self._count
        if not self._views or not alike:
            self._latest = torch.empty(_LATEST, dtype=value.dtype, device=value.device)
            self._views = self._latest.unbind()
        self._count = 0

    def _whole_blocks(self) -> list[Tensor]:
        return [*self._blocks[:-1], self._blocks[-1][: self._filled]] if self._blocks else []

    def stacked(self, device: torch.device | None = None) -> Tensor | None:
        """Return them in one tensor, on the device of the last one by default; None if there are none."""
        parts = [*self._whole_blocks(), *([self._latest[: self._count]] if self._count else [])]
        return torch.cat([part.to(device or parts[-1].device) for part in parts]) if parts else None

    def clear(self) -> None:
        """Forget them."""
        self._blocks, self._filled, self._count, self._length = [], _BLOCK, 0, 0


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device
