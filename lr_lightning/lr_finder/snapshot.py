"""A snapshot of a graph of Python objects in host memory, and its restoration in place.

In reading order: the snapshot walks the graph (``Snapshot``, ``_children``), saves each object without what it refers
to (``_save``), which for most objects means their attributes, and remembers the position of what it can only watch.
"""

import argparse
import array
import collections
import contextlib
import ctypes
import enum
import functools
import io
import logging
import pickle
import random
import sys
import types
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedBase
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter
from torch.utils.hooks import RemovableHandle

from lr_lightning._batches import parts
from lr_lightning._lightning import LightningDataModule, of_both_packages

__all__ = ["Snapshot", "batch_checksum", "digest", "has_state"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_Restore = Callable[[], object]  # returns False if the object has changed and cannot be restored

_ATOMS = (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, torch.Size)
_DATA_HOLDERS: tuple[type, ...] = (
    DataLoader,
    Dataset,
    LightningDataModule,
    Sampler,
)  # what they hold is data, not state
_LONG = 10_000  # entries of a container that is data; the entries of a longer one are not visited
_LARGE = 2**20  # bytes of an array that is data; a larger one is watched and not copied
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_STDLIB_STATE = (
    *(types.SimpleNamespace, argparse.Namespace, collections.ChainMap, collections.UserDict, collections.UserList),
    SynchronizedBase,  # multiprocessing.Value and Array
)
_LIBRARIES = sys.stdlib_module_names | {
    "lightning",
    "lightning_fabric",
    "numpy",
    "pytorch_lightning",
    "torch",
    "torchmetrics",
}
_COMPARABLE = (type(None), bool, int, float, complex, str, bytes, range)
_ARGUMENT_DEPTH = 4  # how deep to look into containers among an iterator's arguments


class Snapshot:
    """The present state of everything that some objects lead to.

    Objects keep their identity: attributes, entries and values are restored in place. The snapshot follows attributes
    (``__dict__``, slots, and class attributes of the user's own classes), entries of containers, and arguments of
    partials. It does not follow closures of functions, so that a user's hooks can record what happens. It saves tensors
    (values, ``requires_grad``, hooks and gradients, copied once to host memory), numpy arrays, containers, and the
    states of random generators (torch, numpy, Python). It only watches large arrays of data sets. Iterators, running
    generator functions and open files cannot be restored: :meth:`restore` names those that have moved.

    It starts from ``roots``, by their names in messages. It saves the attributes of ``shallow`` objects as references,
    without following them, and ignores instances of ``opaque`` types. The snapshots in ``before`` will be restored
    after this one. An object that one of them only watches, as data, is only watched here too: had this snapshot
    restored it, the earlier one would report a change.

    With ``carried`` the state is carried into a run that has gone on differently: hooks, what belongs to the Trainer,
    and attributes that are new by then stay.
    """

    def __init__(
        self,
        roots: Mapping[str, object],
        *,
        shallow: Iterable[object] = (),
        opaque: tuple[type, ...] = (),
        before: Iterable["Snapshot"] = (),
        carried: bool = False,
    ) -> None:
        self._opaque, self._carried = opaque, carried
        self._data_holders: tuple[type, ...] = of_both_packages(*_DATA_HOLDERS)
        # ids of objects that are data; the snapshots in `before` keep theirs alive
        self._data: set[int] = set().union(*(snapshot._data for snapshot in before))
        self._seen: dict[int, object] = {}  # keeps objects alive, so that no id is used again
        self._saved: list[tuple[str, _Restore]] = []
        for obj in shallow:
            self._seen[id(obj)] = obj
            self._saved.append((type(obj).__name__, _save_attributes(obj)))
        self._walk([(name, root, False) for name, root in reversed(list(roots.items()))])

    def restore(self) -> list[str]:
        """Restore everything; return names of objects that could not be restored. It may be called again."""
        with torch.no_grad():
            return [name for name, restore in self._saved if not _succeeds(name, restore)]

    def instances(self, kind: type[_T]) -> Iterator[_T]:
        """Iterate over the visited objects of one class."""
        return (obj for obj in self._seen.values() if isinstance(obj, kind))

    def _walk(self, stack: list[tuple[str, object, bool]]) -> None:
        while stack:
            name, obj, data = stack.pop()
            if type(obj) in weakref.ProxyTypes or id(obj) in self._seen:
                continue  # the object of a proxy is reached, if at all, in another way
            try:
                if isinstance(obj, (*_ATOMS, *self._opaque)):
                    continue
            except Exception as e:  # another library's proxy that has no object yet
                log.info("%s is not saved: %s: %s", name, type(e).__name__, e)
                continue
            try:
                stack += self._visit(name, obj, data)
            except Exception as e:  # it may change, and restore() says so
                log.info("%s cannot be saved: %s: %s", name, type(e).__name__, e)
                self._saved.append((name, lambda: False))

    def _visit(self, name: str, obj: object, data: bool) -> list[tuple[str, object, bool]]:
        """Save one object, and return those that it refers to, the first one last."""
        self._seen[id(obj)] = obj
        data = data or isinstance(obj, self._data_holders) or id(obj) in self._data
        if data:
            self._data.add(id(obj))
        restore = _save(obj, data, self._carried)
        if restore is not None:
            self._saved.append((name, restore))
        if data and isinstance(obj, list | tuple | dict | set) and len(obj) > _LONG:
            return []
        found = [(name + step, child, data) for step, child in _children(obj, self._carried)]
        if data and isinstance(obj, types.MethodType):  # a collate_fn, say
            found.append((name, obj.__self__, data))
        return found[::-1]


def _succeeds(name: str, restore: _Restore) -> bool:
    try:
        return restore() is not False
    except Exception as e:  # one failure must not keep other objects from being restored
        log.info("%s could not be restored: %s: %s", name, type(e).__name__, e)
        return False


def _children(obj: Any, carried: bool) -> Iterator[tuple[str, object]]:
    """Yield the objects that an object refers to, each with the step that leads to it."""
    # issubclass(type()), as isinstance() asks an object for its __class__, and a proxy may raise
    if isinstance(obj, dict):
        for key, value in list(obj.items()):
            if not issubclass(type(value), _ATOMS):
                yield f"[{key!r}]", value
            if not issubclass(type(key), _ATOMS):
                yield " key", key
    elif isinstance(obj, list | tuple | set | frozenset | collections.deque):
        for index, value in enumerate(list(obj)):
            if not issubclass(type(value), _ATOMS):
                yield f"[{index}]", value
    elif isinstance(obj, functools.partial):
        yield from (("", obj.func), ("", obj.args), ("", obj.keywords))
    elif isinstance(obj, Tensor):
        if obj.is_leaf and obj.grad is not None:
            yield ".grad", obj.grad
    elif _is_numpy(type(obj)) and hasattr(obj, "bit_generator"):  # type: ignore[arg-type]
        yield "", obj.bit_generator
    if isinstance(obj, type):
        yield from ((f".{key}", value) for key, value in _class_attributes(obj).items())
    elif has_state(obj):
        for key, value in {**(_instance_dict(obj) or {}), **_slot_values(obj)}.items():
            if not issubclass(type(value), _ATOMS) and not (carried and _is_of_trainer(key)):
                yield f".{key}", value
        yield from (("", kind) for kind in type(obj).__mro__ if _class_attributes(kind))


def _is_of_trainer(attribute: str) -> bool:
    """Return whether an attribute of a module or an optimizer is a hook, or is set by the Trainer or a dry run."""
    is_hook = attribute.startswith("_") and "_hooks" in attribute
    own = ("_trainer", "_fabric", "_current_fx_name", "_metric_attributes", "log", "log_dict")
    return is_hook or attribute in own


def _save(obj: Any, data: bool, carried: bool) -> _Restore | None:
    """Save one object without what it refers to; None if it has no state. Large arrays of ``data`` are not copied."""
    if isinstance(obj, Tensor):
        return None if obj.is_meta else _save_lazy(obj) if is_lazy(obj) else _save_tensor(obj, data, carried)
    if isinstance(obj, torch.Generator):
        state = obj.get_state()
        return lambda: obj.set_state(state)
    if isinstance(obj, random.Random):
        try:
            words = obj.getstate()
        except NotImplementedError:  # SystemRandom
            return None
        return lambda: obj.setstate(words)
    if _is_numpy(type(obj)):  # type: ignore[arg-type]  # mypy takes a type for its instance
        return _save_numpy(obj, data)
    if isinstance(obj, dict | list | collections.deque | set):
        return _save_container(obj)
    if isinstance(obj, array.array | bytearray):
        copied: Any = obj[:]
        return lambda: obj.__setitem__(slice(None), copied)
    if isinstance(obj, ctypes._SimpleCData | ctypes.Array) and not isinstance(obj, ctypes.py_object):
        raw = bytes(obj)
        return lambda: ctypes.memmove(ctypes.addressof(obj), raw, len(raw))
    if isinstance(obj, type):
        return _save_values(obj, _class_attributes, type)
    if has_state(obj):
        return _save_attributes(obj, carried)
    if _has_position(obj) and obj not in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        before = _position(obj)
        return lambda: bool(_position(obj) == before)
    return None


def _save_container(obj: Any) -> _Restore:
    """Save the entries of a dict, list, deque or set, and the attributes of a subclass."""
    saved: Any = (dict if isinstance(obj, dict) else frozenset if isinstance(obj, set) else list)(obj)
    restore_attributes = _save_attributes(obj) if has_state(obj) else None
    # The base class's methods, as a subclass of dict may do more than store.
    kind: Any = collections.OrderedDict if isinstance(obj, collections.OrderedDict) else dict

    def restore() -> None:
        """Put the entries back in place."""
        if isinstance(obj, dict):
            if not _same_entries(obj, saved):
                kind.clear(obj)
                kind.update(obj, saved)
        elif isinstance(obj, set):
            if obj != saved:
                obj.clear()
                obj.update(saved)
        elif len(obj) != len(saved) or any(a is not b for a, b in zip(obj, saved, strict=True)):
            obj.clear()
            obj.extend(saved)
        if restore_attributes is not None:
            restore_attributes()

    return restore


def _same_entries(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Compare two dicts by the identity of their keys and values, and by order."""
    pairs = zip(one.items(), other.items(), strict=False)
    return len(one) == len(other) and all(a is b and x is y for (a, x), (b, y) in pairs)


def _save_tensor(tensor: Tensor, data: bool, carried: bool) -> _Restore:
    if data and tensor.numel() * tensor.element_size() > _LARGE:
        watched = None if tensor.is_inference() else tensor._version
        return lambda: watched is None or tensor._version == watched
    saved, device = tensor.detach().to("cpu", copy=True), tensor.device
    requires_grad, inference = tensor.requires_grad, tensor.is_inference()
    grad = tensor.grad if tensor.is_leaf else None
    restore_attributes, restore_hooks = _save_attributes(tensor), _save_hooks(tensor)
    version = None if inference else tensor._version
    shares = _is_slice(tensor)

    def restore() -> None:
        """Put the values, the shape and the device back."""
        restore_attributes()
        if not carried:
            restore_hooks()
        if not tensor.is_leaf and tensor._version == version:
            return  # part of a graph that may still be needed
        with torch.inference_mode(inference):
            if (data or shares) and _is_same(tensor, saved):
                pass  # writing would look like a change of the large tensor that it is a slice of
            elif (tensor.shape, tensor.dtype, tensor.device) == (saved.shape, saved.dtype, device):
                _write(tensor, saved)
            else:
                tensor.data = saved.to(device, copy=True)
        if tensor.is_leaf:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad

    return restore


def _is_slice(tensor: Tensor) -> bool:
    try:
        return tensor.untyped_storage().nbytes() > tensor.nbytes
    except (NotImplementedError, RuntimeError):  # a sparse or distributed tensor
        return False


def _is_same(tensor: Tensor, saved: Tensor) -> bool:
    if tensor.layout != torch.strided or (tensor.shape, tensor.dtype) != (saved.shape, saved.dtype):
        return False
    now = tensor.detach().to("cpu")
    return bool(((now == saved) | ((now != now) & (saved != saved))).all())  # NaN counts as equal to NaN


def _write(tensor: Tensor, values: Tensor) -> None:
    if tensor.layout == torch.strided:  # a detached tensor of another layout does not share its indices
        tensor = tensor.detach()
        for dim, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[dim] > 1:  # expanded: all entries along it are one
                tensor, values = tensor.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    tensor.copy_(values)


def _save_hooks(tensor: Tensor) -> _Restore:
    """Save the hooks of a tensor, which are not in its ``__dict__``."""
    saved = [(name, hooks, dict(hooks or {})) for name in _TENSOR_HOOKS for hooks in (getattr(tensor, name),)]

    def restore() -> None:
        """Put the hooks back in place."""
        for name, hooks, entries in saved:
            now = getattr(tensor, name)
            if hooks is not None and now is not hooks:
                setattr(tensor, name, hooks)
                now = hooks
            if now is not None and not _same_entries(now, entries):
                now.clear()  # in place, as setting None would leave the old hooks active
                now.update(entries)

    return restore


def _save_lazy(tensor: Any) -> _Restore:
    """Save a parameter of a lazy layer, so that it becomes lazy again."""
    restore_attributes, kind = _save_attributes(tensor), type(tensor)

    def restore() -> None:
        """Make the parameter lazy again."""
        if type(tensor) is not kind:
            tensor.grad = None
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        restore_attributes()

    return restore


@functools.cache
def _is_numpy(kind: Any) -> bool:
    """Check whether a class is one of numpy's without importing numpy, which need not be installed."""
    return any(_top_module(base) == "numpy" for base in kind.__mro__)


def _save_numpy(obj: Any, data: bool) -> _Restore | None:
    """Save an array or a generator of numpy."""
    if hasattr(obj, "bit_generator"):
        return None  # its bit generator is one of its children
    if hasattr(obj, "get_state") and hasattr(obj, "set_state"):  # RandomState
        legacy = obj.get_state()
        return lambda: obj.set_state(legacy)
    if hasattr(obj, "random_raw"):  # BitGenerator
        state = obj.state
        return lambda: setattr(obj, "state", state)
    if not hasattr(obj, "__array_interface__") or not getattr(getattr(obj, "flags", None), "writeable", False):
        return None  # read-only, or a scalar
    if (data or hasattr(obj, "filename")) and obj.nbytes > _LARGE:  # `filename`: a memory map
        if obj.dtype.hasobject or not obj.flags.c_contiguous:
            return None
        before = zlib.adler32(obj)
        return lambda: zlib.adler32(obj) == before
    saved = obj.copy()
    return lambda: obj.__setitem__(..., saved)


def has_state(obj: object) -> bool:
    """Check whether an object's attributes are state that may be restored."""
    if isinstance(obj, type | types.ModuleType | enum.Enum) or (_has_position(obj) and "_num_yielded" in dir(obj)):
        return False
    return _may_have_state(type(obj))  # type: ignore[arg-type]


@functools.cache
def _may_have_state(kind: Any) -> bool:
    known = issubclass(kind, _STDLIB_STATE)
    if not known and all(_top_module(base) in sys.stdlib_module_names for base in kind.__mro__):
        return False  # a function, a lock, a thread, a path, a regular expression, ...
    return any("__dict__" in base.__dict__ for base in kind.__mro__) or any(_slots(kind))


def _top_module(kind: type) -> str:
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
        with contextlib.suppress(AttributeError):  # not set
            found[slot] = object.__getattribute__(obj, slot)
    return found


def _instance_dict(obj: object) -> dict[str, Any] | None:
    try:
        own = object.__getattribute__(obj, "__dict__")  # a user's own __getattr__ may raise anything
    except AttributeError:
        return None
    return own if isinstance(own, dict) else None


def _save_attributes(obj: object, carried: bool = False) -> _Restore:
    """Save an object's attributes and class."""
    kind, own, restore_slots = type(obj), _instance_dict(obj), _save_values(obj, _slot_values, object)
    saved = {name: value for name, value in (own or {}).items() if not (carried and _is_of_trainer(name))}

    def restore() -> None:
        """Put the class and the attributes back."""
        if type(obj) is not kind:  # a lazy layer becomes a plain one
            object.__setattr__(obj, "__class__", kind)
        if own is not None and not _same_entries(own, saved):
            if not carried:
                own.clear()
            own.update(saved)
        restore_slots()

    return restore


def _save_values(obj: Any, read: Callable[[Any], dict[str, Any]], owner: Any) -> _Restore:
    """Save the values that ``read`` finds; ``owner``, object or type, has the methods that set and delete them."""
    saved = read(obj)

    def restore() -> None:
        """Put the values back, and remove those that are new."""
        now = read(obj)
        for name in now.keys() - saved.keys():
            owner.__delattr__(obj, name)
        for name, value in saved.items():
            if name not in now or now[name] is not value:
                owner.__setattr__(obj, name, value)

    return restore


def _class_attributes(kind: type) -> dict[str, Any]:
    """Return the values that a user's class holds for all its instances: no methods, properties or slots."""
    if _top_module(kind) in _LIBRARIES:
        return {}
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("__") or callable(value) or hasattr(type(value), "__get__"))
    }


@dataclass(eq=False)
class _Identity:
    """Equal only to an _Identity of the same object, which it keeps alive, so that its id is not used again."""

    obj: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.obj is other.obj


def _has_position(obj: object) -> bool:
    """Check whether an object moves when it is used and cannot be moved back."""
    return isinstance(obj, Iterator | io.IOBase | _BaseDataLoaderIter)


def _position(obj: Any) -> Any:
    """Return the position of an iterator or a file as a comparable value; None if it cannot be known."""
    try:
        if isinstance(obj, _BaseDataLoaderIter):
            return obj._num_yielded
        if isinstance(obj, io.IOBase):
            return None if obj.closed or not obj.seekable() else obj.tell()
        if isinstance(obj, types.GeneratorType):
            frame = obj.gi_frame
            if frame is None:
                return None
            names = {name: _comparable(value) for name, value in frame.f_locals.items()}
            return frame.f_lasti, _comparable(obj.gi_yieldfrom), names
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            reduced = obj.__reduce__()
        return None if isinstance(reduced, str) else _comparable(reduced[1:])
    except (TypeError, OSError, ValueError, NotImplementedError):
        return None


def _comparable(value: Any, depth: int = _ARGUMENT_DEPTH) -> Any:
    if isinstance(value, _COMPARABLE):
        return value
    if isinstance(value, Iterator) and not hasattr(value, "__dict__"):
        return _position(value)
    if isinstance(value, tuple | list) and depth > 0:  # __reduce__ makes them anew each time
        return [_comparable(entry, depth - 1) for entry in value]
    return _Identity(value)


# -- comparison by value -----------------------------------------------------------------------------------------------


def digest(roots: Mapping[str, object], opaque: tuple[type, ...]) -> int:
    """Return a checksum of the values that a carried snapshot of ``roots`` would put back or watch."""
    found, seen = 0, {}
    stack = list(roots.items())
    while stack:
        name, obj = stack.pop()
        if type(obj) in weakref.ProxyTypes or id(obj) in seen:
            continue
        try:
            if isinstance(obj, (*_ATOMS, RemovableHandle, *opaque)):  # a handle's number is of the process
                continue
        except Exception as e:  # another library's proxy that has no object yet
            log.info("%s is not compared: %s: %s", name, type(e).__name__, e)
            continue
        seen[id(obj)] = obj
        start = zlib.crc32(f"{name} {type(obj).__qualname__} {_plain_values(obj)!r}".encode())
        found += _add_value(obj, start)  # a sum, as the order does not matter
        stack += [(name + step, child) for step, child in _children(obj, carried=True)]
    return found


def batch_checksum(arguments: Mapping[str, Any]) -> int:
    """Return a checksum of the tensors, arrays and plain values in the arguments of a training step."""
    found = 0
    for _, part in parts(list(arguments.values())):
        if isinstance(part, _COMPARABLE):
            found = zlib.crc32(repr(part).encode(), found)
        elif isinstance(part, Tensor) or _is_numpy(type(part)):  # type: ignore[arg-type]
            found = _add_value(part, found)
    return found


def _plain_values(obj: Any) -> list[Any]:
    """Return the numbers, strings and the like that an object refers to, each with its place."""
    found: list[Any] = []
    if isinstance(obj, dict):
        found = [(key, value) for key, value in obj.items() if issubclass(type(key), _ATOMS)]
    elif isinstance(obj, set | frozenset):
        found = [len(obj), *sorted(repr(value) for value in obj if issubclass(type(value), _ATOMS))]
    elif isinstance(obj, list | tuple | collections.deque):
        found = [len(obj), *enumerate(obj)]
    if isinstance(obj, type):
        found += sorted(_class_attributes(obj).items())
    elif has_state(obj):
        own = {**(_instance_dict(obj) or {}), **_slot_values(obj)}
        found += [(key, own[key]) for key in sorted(own, key=str) if not _is_of_trainer(str(key))]
    return [
        (entry[0], entry[1] if issubclass(type(entry[1]), _ATOMS) else type(entry[1]).__qualname__)
        if isinstance(entry, tuple)
        else entry
        for entry in found
    ]


def _add_value(obj: Any, found: int) -> int:
    """Add what an object holds itself to a checksum."""
    if isinstance(obj, Tensor):
        return found if obj.is_meta or is_lazy(obj) else _add_tensor(obj, found)
    held: Any = None
    if isinstance(obj, torch.Generator):
        held = obj.get_state().numpy().tobytes()
    elif isinstance(obj, random.Random) and not isinstance(obj, random.SystemRandom):
        held = repr(obj.getstate()).encode()
    elif _is_numpy(type(obj)):  # type: ignore[arg-type]
        state = obj.get_state() if hasattr(obj, "get_state") else getattr(obj, "state", None)
        held = obj.tobytes() if hasattr(obj, "tobytes") else pickle.dumps(state)
    elif isinstance(obj, array.array | bytearray) or (
        isinstance(obj, ctypes._SimpleCData | ctypes.Array) and not isinstance(obj, ctypes.py_object)
    ):
        held = bytes(obj)
    elif not has_state(obj) and _has_position(obj):
        held = repr(_position(obj)).encode()
    return found if held is None else zlib.crc32(held, found)


def _add_tensor(tensor: Tensor, found: int) -> int:
    found = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}".encode(), found)
    tensor = tensor.detach()
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        held = [tensor.indices(), tensor.values()]
    else:
        held = [tensor if tensor.layout == torch.strided else tensor.to_dense()]
    for part in held:
        plain = part.to("cpu").resolve_conj().resolve_neg().contiguous().reshape(-1)
        found = zlib.crc32(plain.view(torch.uint8).numpy().tobytes(), found)
    return found
