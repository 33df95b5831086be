"""The state of a graph of Python objects, kept in host memory, and the way back to it."""

import collections
import functools
import logging
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lr_lightning.range_test.attributes import (
    Restore,
    attributes,
    class_attributes,
    has_state,
    is_numpy,
    keep_attributes,
)
from lr_lightning.range_test.keeping import keep

__all__ = ["Snapshot"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_ATOMS = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, torch.Size)
_HELD = (DataLoader, Dataset, LightningDataModule, Sampler)  # what they hold is data, not state
_LONG = 10_000  # entries of a container that is data: the entries of longer ones are not looked into


class Snapshot:
    """What can be reached from some objects, as it is now.

    Objects keep their identity: their attributes, entries and values are put back in place. Reached are attributes
    (``__dict__``, slots, and what a person's own classes hold), entries of containers and arguments of partials; not
    what a function closes over, so that a person's own hooks may note what happens. Kept are tensors (values,
    ``requires_grad``, hooks and gradients, copied once, to host memory), numpy arrays, containers, and the states of
    random generators (torch, numpy, Python). Large arrays of data sets are only watched. Iterators, generator
    functions under way and open files cannot be put back: :meth:`restore` names those that have moved.

    Args:
        roots: What to keep, by the name it has in messages.
        shallow: Objects whose attributes are kept as references: nothing is reached through them.
        opaque: Types whose instances are left alone.
        before: Snapshots that are restored after this one. What they have reached as data is data here too: written
            back here, it would look changed to them.
    """

    def __init__(
        self,
        roots: Mapping[str, object],
        *,
        shallow: Iterable[object] = (),
        opaque: tuple[type, ...] = (),
        before: Iterable["Snapshot"] = (),
    ) -> None:
        self._opaque = opaque
        self._data: set[int] = set().union(*(snapshot._data for snapshot in before))  # ids; their owners hold them
        self._seen: dict[int, object] = {}  # holds what was seen, so that no id is used again
        self._saved: list[tuple[str, Restore]] = []
        for obj in shallow:
            self._seen[id(obj)] = obj
            self._saved.append((type(obj).__name__, keep_attributes(obj)))
        self._walk([(name, root, False) for name, root in reversed(list(roots.items()))])

    def restore(self) -> list[str]:
        """Put everything back; it may be called again.

        Returns:
            Names of what has changed and could not be put back.
        """
        with torch.no_grad():
            return [name for name, put_back in self._saved if not _tried(name, put_back)]

    def instances(self, kind: type[_T]) -> Iterator[_T]:
        """The objects of a kind among all that were reached."""
        return (obj for obj in self._seen.values() if isinstance(obj, kind))

    def _walk(self, stack: list[tuple[str, object, bool]]) -> None:
        while stack:
            name, obj, data = stack.pop()
            if isinstance(obj, _ATOMS) or id(obj) in self._seen or isinstance(obj, self._opaque):
                continue
            self._seen[id(obj)] = obj
            data = data or isinstance(obj, _HELD) or id(obj) in self._data
            if data:
                self._data.add(id(obj))
            restore = keep(obj, data)
            if restore is not None:
                self._saved.append((name, restore))
            if data and isinstance(obj, list | tuple | dict | set) and len(obj) > _LONG:
                continue
            if data and isinstance(obj, types.MethodType):  # a collate_fn, say
                stack.append((name, obj.__self__, data))
            stack += reversed([(name + step, child, data) for step, child in _children(obj)])


def _tried(name: str, put_back: Restore) -> bool:
    try:
        return put_back()
    except Exception as e:  # one that refuses keeps no other from being put back
        log.info("%s could not be put back: %s: %s", name, type(e).__name__, e)
        return False


def _children(obj: Any) -> Iterator[tuple[str, object]]:
    """What an object refers to, each with the step that leads there."""
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            if not isinstance(value, _ATOMS):
                yield f"[{key!r}]", value
            if not isinstance(key, _ATOMS):
                yield " key", key
    elif isinstance(obj, list | tuple | set | frozenset | collections.deque):
        for index, value in enumerate(list(obj)):
            if not isinstance(value, _ATOMS):
                yield f"[{index}]", value
    elif isinstance(obj, functools.partial):
        yield from (("", obj.func), ("", obj.args), ("", obj.keywords))
    elif isinstance(obj, Tensor):
        if obj.is_leaf and obj.grad is not None:
            yield ".grad", obj.grad
    elif hasattr(obj, "bit_generator") and is_numpy(type(obj)):  # type: ignore[arg-type]
        yield "", obj.bit_generator
    if isinstance(obj, type):
        yield from ((f".{key}", value) for key, value in class_attributes(obj).items())
    elif has_state(obj):
        for key, value in attributes(obj).items():
            if not isinstance(value, _ATOMS):
                yield f".{key}", value
        yield from (("", kind) for kind in type(obj).__mro__ if class_attributes(kind))
