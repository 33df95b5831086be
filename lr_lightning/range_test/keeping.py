"""How one object is kept, without what it refers to, and put back in place."""

import array
import collections
import ctypes
import random
import sys
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lr_lightning.range_test.attributes import Restore, has_state, is_numpy, keep_attributes, keep_class, same_entries
from lr_lightning.range_test.positions import has_position, position

__all__ = ["keep"]

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
