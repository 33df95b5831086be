"""What an object's attributes hold, whether that is state, and how they are put back."""

import argparse
import collections
import enum
import functools
import sys
import types
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import SynchronizedBase
from typing import Any

from lr_lightning.range_test.positions import has_position

__all__ = [
    "Restore",
    "attributes",
    "class_attributes",
    "has_state",
    "is_numpy",
    "keep_attributes",
    "keep_class",
    "same_entries",
]

_STDLIB_STATE = (
    types.SimpleNamespace,
    argparse.Namespace,
    collections.ChainMap,
    collections.UserDict,
    collections.UserList,
    SynchronizedBase,  # multiprocessing.Value and Array
)
_LIBRARIES = sys.stdlib_module_names | {"lightning", "lightning_fabric", "numpy", "torch", "torchmetrics"}

Restore = Callable[[], bool]
"""Puts one object back; False where it has changed and cannot be put back."""


def has_state(obj: object) -> bool:
    """Whether an object's attributes are state that may be put back."""
    if isinstance(obj, type | types.ModuleType | enum.Enum) or (has_position(obj) and "_num_yielded" in dir(obj)):
        return False
    return _may_have_state(type(obj))  # type: ignore[arg-type]


@functools.cache
def _may_have_state(kind: Any) -> bool:
    known = issubclass(kind, _STDLIB_STATE)
    if not known and all(_top(base) in sys.stdlib_module_names for base in kind.__mro__):
        return False  # a function, a lock, a thread, a path, a regular expression, ...
    return any("__dict__" in base.__dict__ for base in kind.__mro__) or any(_slots(kind))


@functools.cache
def is_numpy(kind: Any) -> bool:
    """Whether a class is one of numpy's, which need not be installed."""
    return any(_top(base) == "numpy" for base in kind.__mro__)


def _top(kind: type) -> str:
    return kind.__module__.split(".")[0]


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{slot}" if slot.startswith("__") and slot[-2:] != "__" else slot


def _slot_values(obj: object) -> dict[str, Any]:
    found = {}
    for slot in _slots(type(obj)):
        try:
            found[slot] = object.__getattribute__(obj, slot)
        except AttributeError:
            continue  # it is not set
    return found


def attributes(obj: object) -> dict[str, Any]:
    """What is in ``__dict__`` and slots."""
    own = getattr(obj, "__dict__", {})
    return {**(own if isinstance(own, dict) else {}), **_slot_values(obj)}


def keep_attributes(obj: object) -> Restore:
    """How to put an object's attributes back, and its class."""
    kind, slots = type(obj), _slot_values(obj)
    own = getattr(obj, "__dict__", None)
    kept = dict(own) if isinstance(own, dict) else {}

    def put_back() -> bool:
        if type(obj) is not kind:  # a lazy layer becomes a plain one
            object.__setattr__(obj, "__class__", kind)
        if isinstance(own, dict) and not same_entries(own, kept):
            own.clear()
            own.update(kept)
        now = _slot_values(obj)
        for slot in now.keys() - slots.keys():
            object.__delattr__(obj, slot)
        for slot, value in slots.items():
            if slot not in now or now[slot] is not value:
                object.__setattr__(obj, slot, value)
        return True

    return put_back


def class_attributes(kind: type) -> dict[str, Any]:
    """What a person's own class holds for all its instances: no methods, properties or slots."""
    if _top(kind) in _LIBRARIES:
        return {}
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("__") or callable(value) or hasattr(type(value), "__get__"))
    }


def keep_class(kind: type) -> Restore:
    """How to put back what a person's own class holds for all its instances."""
    kept = class_attributes(kind)

    def put_back() -> bool:
        now = class_attributes(kind)
        for name in now.keys() - kept.keys():
            type.__delattr__(kind, name)
        for name, value in kept.items():
            if name not in now or now[name] is not value:
                type.__setattr__(kind, name, value)
        return True

    return put_back


def same_entries(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether two dicts have the very same keys in the same order, and the very same values."""
    pairs = zip(one.items(), other.items(), strict=False)
    return len(one) == len(other) and all(a is b and x is y for (a, x), (b, y) in pairs)
