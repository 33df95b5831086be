"""The calls that a module's own steps make: recorded, replayed, and repeated on other batches."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from lr_lightning._batches import Place, at, parts, written
from lr_lightning._lightning import LightningModule


class NotRecordedError(Exception):
    """A function asked for a forward pass that the step did not make, or a call takes what is no part of the batch."""


@contextmanager
def silent(module: LightningModule) -> Iterator[None]:
    """Let the module log nothing: a value that ``forward`` logs in an extra pass would enter the means of its steps."""
    own, names = vars(module), ("log", "log_dict")
    before = {name: own[name] for name in names if name in own}
    try:
        own.update(dict.fromkeys(names, lambda *_, **__: None))
        yield
    finally:
        for name in names:
            del own[name]
        own.update(before)


@dataclass(frozen=True)
class Call:
    """One call of a module or of one of its direct children."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class ForwardRecord:
    """Remembers the calls of a module and of its children in one of its steps, and replays them.

    A function that calls ``module(x)`` as the step did gets the same output without a second pass. If the step calls a
    direct child instead (``self.net(x)``), the child's output is replayed, and the module's own ``forward`` runs around
    it.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        # A hook would make torch recompile a compiled or scripted child.
        plain = (child for child in module.children() if not isinstance(child, torch.jit.ScriptModule | Metric))
        children = (child for child in plain if getattr(child, "_compiled_call_impl", None) is None)
        self._watched: list[nn.Module] = [module, *children]
        # Arguments are kept, so that their memory, which is part of the key, is not used again.
        self._calls: dict[Any, Call] = {}
        self._handles: list[RemovableHandle] = [
            m.register_forward_hook(self._keep, with_kwargs=True) for m in self._watched
        ]

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._calls.setdefault(_key((id(module), args, kwargs)), Call(module, args, kwargs, output))

    def called(self) -> set[str]:
        """Return the names of the children that were called; the empty name is the module itself."""
        names = {id(module): name for name, module in self._module.named_children()}
        return {names.get(id(call.module), "") for call in self._calls.values()}

    def observed(self, batch: Any) -> list[tuple["ObservedCall", Any]]:
        """Return the calls whose arguments are parts of the batch or outputs of such calls, with their outputs.

        The module's own calls come first.
        """
        found: list[tuple[ObservedCall, Any]] = []
        known: dict[Any, Any] = {}
        for place, part in parts(batch):
            known.setdefault(_key(part), _At(place))
            if _can_be_reshaped(part):
                known.setdefault(_memory(part), _At(place))  # x.view(len(x), -1)
        names = {id(module): name for name, module in self._module.named_children()} | {id(self._module): ""}
        for call in self._calls.values():
            try:
                arguments = _placed(call.args, known), _placed(call.kwargs, known)
            except (KeyError, NotRecordedError):
                continue
            found.append((ObservedCall(names[id(call.module)], *arguments), call.output))
            known.setdefault(_key(call.output), found[-1][0])
        return sorted(found, key=lambda pair: pair[0].network != "")

    def passes(self, batch: Any) -> list["ObservedCall"] | None:
        """Return the calls that pass a batch through the layers; None if one cannot be repeated on another batch.

        They are the calls of the module itself; if it is never called, the calls of its children. A call that another
        one makes is left out.
        """
        observed = [call for call, _ in self.observed(batch)]
        own = [call for call in self._calls.values() if call.module is self._module]
        made = [call for call in observed if (call.network == "") is bool(own)]
        if len(made) < len(own or self._calls) or not made:
            return None
        inner = [each for call in made for each in call.inner()]
        return [call for call in made if not any(call is each for each in inner)]

    def clear(self) -> None:
        """Forget the batch."""
        self._calls.clear()

    def close(self) -> None:
        """Release the module."""
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Make ``forward`` return what it returned in the step, or raise if the step made no such call."""
        before = [(m, "forward" in m.__dict__, m.forward) for m in self._watched]
        try:
            for module, _, forward in before:
                module.__dict__["forward"] = self._player(module, forward)
            yield
        finally:
            for module, own, forward in before:
                if own:
                    module.__dict__["forward"] = forward
                else:
                    del module.__dict__["forward"]

    def _player(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def play(*args: Any, **kwargs: Any) -> Any:
            if (found := self._calls.get(_key((id(module), args, kwargs)))) is not None:
                return found.output
            if module is self._module and self._calls:
                return forward(*args, **kwargs)  # the step called the children instead
            raise NotRecordedError

        return play


def _key(value: Any) -> Any:
    """Return what identifies a value: a tensor's memory, not the object, since x.flatten(1) makes one at every call."""
    if isinstance(value, Tensor):
        strides = tuple(value.stride()) if value.layout == torch.strided else ()
        memory = value.data_ptr() if strides or not value.ndim else id(value)
        return (memory, tuple(value.shape), strides, value.dtype, value.device)
    if isinstance(value, tuple | list):
        return (type(value), *(_key(each) for each in value))
    if isinstance(value, Mapping):
        return (type(value), *((key, _key(each)) for key, each in value.items()))
    return (type(value), value) if isinstance(value, str | int | float | bool | None) else id(value)


# -- the same call on another batch ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObservedCall:
    """A call whose arguments are places in the batch, outputs of other such calls, and constants."""

    network: str  # the child's name; empty for the module itself
    args: Any
    kwargs: Any

    def __call__(self, module: nn.Module, batch: Any) -> Any:
        """Make this call on another batch."""
        network = module.get_submodule(self.network)
        return network(*_filled(self.args, module, batch), **_filled(self.kwargs, module, batch))

    def inner(self) -> list["ObservedCall"]:
        """Return the calls whose outputs this call takes."""
        found: list[ObservedCall] = []
        stack = [self.args, self.kwargs]
        while stack:
            value = stack.pop()
            found += [value] if isinstance(value, ObservedCall) else []
            stack += (
                list(value.values()) if type(value) is dict else list(value) if type(value) in (tuple, list) else []
            )
        return found

    def written(self) -> str:
        """Return the call as a Python expression of ``module`` and ``batch``."""
        target = "module" + (f".{self.network}" if self.network else "")
        args = [f"*{_written(self.args)}"] if isinstance(self.args, _At) else list(map(_written, self.args))
        if isinstance(self.kwargs, _At):
            arguments = [*args, f"**{_written(self.kwargs)}"]
        else:
            arguments = [*args, *(f"{key}={_written(each)}" for key, each in self.kwargs.items())]
        return f"{target}({', '.join(arguments)})"


@dataclass(frozen=True)
class _At:
    place: Place
    shape: tuple[int, ...] | None = None  # of each example, if the step reshaped them

    def __call__(self, batch: Any) -> Any:
        part = at(self.place, batch)
        return part if self.shape is None else part.reshape(len(part), *self.shape)


def _can_be_reshaped(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.ndim > 0 and value.is_contiguous()


def _memory(x: Tensor) -> Any:
    return ("reshaped", x.data_ptr(), len(x), x.numel(), x.dtype)


def _placed(value: Any, known: Mapping[Any, Any]) -> Any:
    """Return arguments with places instead of the batch's parts; an error if a tensor or an object has no place."""
    if value is None or isinstance(value, bool) or (isinstance(value, tuple | list | dict) and not value):
        return value
    if (key := _key(value)) in known:
        return known[key]
    if isinstance(value, str | int | float):
        return value
    if _can_be_reshaped(value):
        return _At(known[_memory(value)].place, tuple(value.shape[1:]))
    if type(value) in (tuple, list):
        return type(value)(_placed(each, known) for each in value)
    if type(value) is dict:
        return {key: _placed(each, known) for key, each in value.items()}
    raise NotRecordedError


def _filled(value: Any, module: nn.Module, batch: Any) -> Any:
    if isinstance(value, _At):
        return value(batch)
    if isinstance(value, ObservedCall):
        return value(module, batch)
    if type(value) in (tuple, list):
        return type(value)(_filled(each, module, batch) for each in value)
    return {key: _filled(each, module, batch) for key, each in value.items()} if type(value) is dict else value


def _written(value: Any) -> str:
    if isinstance(value, _At):
        shape = "" if value.shape is None else f".reshape(-1, {', '.join(map(str, value.shape))})"
        return written(value.place) + shape
    if isinstance(value, ObservedCall):
        return value.written()
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {_written(each)}" for key, each in value.items()) + "}"
    if type(value) in (tuple, list):
        inner = ", ".join(map(_written, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
    return repr(value)
