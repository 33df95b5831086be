"""How one object is kept, without what it refers to, and put back in place."""

import argparse
import array
import collections
import ctypes
import enum
import functools
import io
import logging
import random
import sys
import types
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.sharedctypes import SynchronizedBase
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

__all__ = [
    "Restore",
    "Snapshot",
    "attributes",
    "class_attributes",
    "has_position",
    "has_state",
    "is_numpy",
    "keep",
    "keep_attributes",
    "keep_class",
    "position",
    "same_entries",
]

# --- Where an iterator or a file stands, so that one that has moved can be told from one that has not.

_VALUES = (type(None), bool, int, float, complex, str, bytes, range)
_DEPTH = 4  # how far containers among an iterator's arguments are looked into


class _Identity:
    """Equal to another of the very same object, which it keeps alive: its id is not used again."""

    def __init__(self, obj: object) -> None:
        self.obj = obj

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.obj is other.obj

    __hash__ = None  # type: ignore[assignment]


def has_position(obj: object) -> bool:
    """Whether an object moves as it is used, and cannot be put back."""
    return isinstance(obj, Iterator | io.IOBase | _BaseDataLoaderIter)


def position(obj: Any) -> Any:
    """Where an iterator or a file stands, as something that can be compared; None where there is no telling."""
    try:
        if isinstance(obj, _BaseDataLoaderIter):
            return obj._num_yielded
        if isinstance(obj, io.IOBase):
            return None if obj.closed or not obj.seekable() else obj.tell()
        if isinstance(obj, types.GeneratorType):
            frame = obj.gi_frame
            if frame is None:
                return None
            return frame.f_lasti, _mark(obj.gi_yieldfrom), {name: _mark(v) for name, v in frame.f_locals.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            reduced = obj.__reduce__()
        return None if isinstance(reduced, str) else _mark(reduced[1:])
    except (TypeError, OSError, ValueError, NotImplementedError):
        return None


def _mark(value: Any, depth: int = _DEPTH) -> Any:
    if isinstance(value, _VALUES):
        return value
    if isinstance(value, Iterator) and not hasattr(value, "__dict__"):
        return position(value)
    if isinstance(value, tuple | list) and depth > 0:  # which __reduce__ makes anew each time
        return [_mark(entry, depth - 1) for entry in value]
    return _Identity(value)


# --- What an object's attributes hold, whether that is state, and how they are put back.

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


_LARGE = 2**20  # bytes of an array that is data: larger ones are watched, not copied
_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # of a tensor


def keep(obj: Any, data: bool) -> Restore | None:
    """How to put one object back, without what it refers to; None if it has no state.

    Args:
        obj: The object.
        data: Whether it is part of a data set, whose large arrays are not copied.
    """
    if isinstance(obj, Tensor):
        return None if obj.is_meta else _keep_lazy(obj) if is_lazy(obj) else _keep_tensor(obj, data)
    if isinstance(obj, torch.Generator):
        state = obj.get_state()
        return _always(lambda: obj.set_state(state))
    if isinstance(obj, random.Random):
        return _keep_random(obj)
    if is_numpy(type(obj)):  # type: ignore[arg-type]  # mypy takes a type for its instance
        return _keep_numpy(obj, data)
    if isinstance(obj, dict):
        return _keep_dict(obj)
    if isinstance(obj, list | collections.deque):
        return _keep_sequence(obj)
    if isinstance(obj, set):
        return _keep_set(obj)
    if isinstance(obj, array.array | bytearray):
        copied: Any = obj[:]
        return _always(lambda: obj.__setitem__(slice(None), copied))
    if isinstance(obj, ctypes._SimpleCData | ctypes.Array) and not isinstance(obj, ctypes.py_object):
        raw = bytes(obj)
        return _always(lambda: ctypes.memmove(ctypes.addressof(obj), raw, len(raw)))
    if isinstance(obj, type):
        return keep_class(obj)
    if has_state(obj):
        return keep_attributes(obj)
    if has_position(obj) and obj not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        before = position(obj)
        return lambda: bool(position(obj) == before)
    return None


# -- containers --------------------------------------------------------------------------------------------------------


def _keep_dict(obj: dict[Any, Any]) -> Restore:
    kept = dict(obj)
    own = keep_attributes(obj) if has_state(obj) else None
    # a subclass may do more than store
    kind: Any = collections.OrderedDict if isinstance(obj, collections.OrderedDict) else dict

    def put_back() -> bool:
        if not same_entries(obj, kept):
            kind.clear(obj)
            kind.update(obj, kept)
        return own() if own is not None else True

    return put_back


def _keep_sequence(obj: Any) -> Restore:
    kept = list(obj)
    own = keep_attributes(obj) if has_state(obj) else None

    def put_back() -> bool:
        if len(obj) != len(kept) or any(a is not b for a, b in zip(obj, kept, strict=True)):
            obj.clear()
            obj.extend(kept)
        return own() if own is not None else True

    return put_back


def _keep_set(obj: set[Any]) -> Restore:
    kept = frozenset(obj)

    def put_back() -> bool:
        if obj != kept:
            obj.clear()
            obj.update(kept)
        return True

    return put_back


# -- tensors and arrays ------------------------------------------------------------------------------------------------


def _keep_tensor(tensor: Tensor, data: bool) -> Restore:
    if data and tensor.numel() * tensor.element_size() > _LARGE:
        watched = None if tensor.is_inference() else tensor._version
        return lambda: watched is None or tensor._version == watched
    kept, device = tensor.detach().to("cpu", copy=True), tensor.device
    requires_grad, inference = tensor.requires_grad, tensor.is_inference()
    grad = tensor.grad if tensor.is_leaf else None
    own, hooks = keep_attributes(tensor), _keep_hooks(tensor)
    version = None if inference else tensor._version

    def put_back() -> bool:
        own()
        hooks()
        if not tensor.is_leaf and tensor._version == version:
            return True  # part of a graph that may still be needed
        with torch.inference_mode(inference):
            if (tensor.shape, tensor.dtype, tensor.device) == (kept.shape, kept.dtype, device):
                _write(tensor, kept)
            else:
                tensor.data = kept.to(device, copy=True)
        if tensor.is_leaf:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad
        return True

    return put_back


def _write(tensor: Tensor, values: Tensor) -> None:
    if tensor.layout == torch.strided:  # of another layout, a detached one has indices of its own
        tensor = tensor.detach()
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:  # expanded: all entries are one
                tensor, values = tensor.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    tensor.copy_(values)


def _keep_hooks(tensor: Tensor) -> Restore:
    """How to put the hooks of a tensor back, which are not in its ``__dict__``."""
    kept = [(name, hooks, dict(hooks or {})) for name in _HOOKS for hooks in (getattr(tensor, name),)]

    def put_back() -> bool:
        for name, hooks, entries in kept:
            now = getattr(tensor, name)
            if hooks is not None and now is not hooks:
                setattr(tensor, name, hooks)
                now = hooks
            if now is not None and not same_entries(now, entries):
                now.clear()  # in place: setting None leaves the old ones at work
                now.update(entries)
        return True

    return put_back


def _keep_lazy(tensor: Any) -> Restore:
    """How to make a parameter of a lazy layer lazy again."""
    own, kind = keep_attributes(tensor), type(tensor)

    def put_back() -> bool:
        if type(tensor) is not kind:
            tensor.grad = None
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return own()

    return put_back


def _keep_random(generator: random.Random) -> Restore | None:
    try:
        internal = generator.getstate()
    except NotImplementedError:  # SystemRandom
        return None
    return _always(lambda: generator.setstate(internal))


def _keep_numpy(obj: Any, data: bool) -> Restore | None:
    """Arrays and generators. numpy is not imported: what is not there need not be kept."""
    if hasattr(obj, "bit_generator"):
        return None  # its bit generator is reached
    if hasattr(obj, "get_state") and hasattr(obj, "set_state"):  # RandomState
        legacy = obj.get_state()
        return _always(lambda: obj.set_state(legacy))
    if hasattr(obj, "random_raw"):  # BitGenerator
        state = obj.state
        return _always(lambda: setattr(obj, "state", state))
    if not hasattr(obj, "__array_interface__") or not getattr(getattr(obj, "flags", None), "writeable", False):
        return None  # read-only, or a scalar
    if (data or hasattr(obj, "filename")) and obj.nbytes > _LARGE:  # of a memory map too
        if obj.dtype.hasobject or not obj.flags.c_contiguous:
            return None
        before = zlib.adler32(obj)
        return lambda: zlib.adler32(obj) == before
    kept = obj.copy()
    return _always(lambda: obj.__setitem__(..., kept))


def _always(put_back: Callable[[], object]) -> Restore:
    def restore() -> bool:
        put_back()
        return True

    return restore


# --- The state of a graph of Python objects, kept in host memory, and the way back to it.

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
