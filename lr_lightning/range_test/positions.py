"""Where an iterator or a file stands, so that one that has moved can be told from one that has not."""

import io
import types
import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data.dataloader import _BaseDataLoaderIter

__all__ = ["has_position", "position"]

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
