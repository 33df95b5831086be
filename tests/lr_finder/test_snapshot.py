"""Snapshot: whatever happens to objects in between, they are afterwards as they were, and still the same objects."""

import array
import collections
import ctypes
import functools
import io
import itertools
import multiprocessing
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAUROC

from lr_lightning.lr_finder.snapshot import Snapshot


class Box:
    """Any object of a person's own."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Slotted:
    __slots__ = ("__private", "items", "late", "value")

    def __init__(self) -> None:
        self.value, self.items = 1, [1]
        self.__private = [1]

    def private(self) -> list[int]:
        return self.__private


class SlottedChild(Slotted):
    __slots__ = ("__dict__", "extra")

    def __init__(self) -> None:
        super().__init__()
        self.extra = {"a": 1}


@dataclass
class Data:
    count: int = 0
    seen: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    seen: list[int]


class Counting(dict):  # type: ignore[type-arg]
    """A dict that does more than store, and has an attribute."""

    def __init__(self) -> None:
        super().__init__(a=1)
        self.writes = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        self.writes += 1
        super().__setitem__(key, value)


class Tagged(set):  # type: ignore[type-arg]
    """A set with an attribute."""

    tag = 1


class Shared:
    """State that belongs to the class."""

    log: ClassVar[list[int]] = []
    count = 0

    def note(self) -> None:
        self.log.append(1)
        type(self).count += 1


class Proxy:
    """Slots that are not set, and a ``__getattr__`` that finds them elsewhere."""

    __slots__ = ("cache", "target")

    def __init__(self) -> None:
        self.target = Box(cache=1, items=[1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def frozen(obj: Any, depth: int = 0) -> Any:
    """Plain values to compare."""
    if isinstance(obj, Tensor):
        grad = obj.grad if obj.is_leaf else None
        dense = obj.detach().to_dense() if obj.is_sparse else obj.detach()
        bits = dense.contiguous().view(-1).to(torch.float64).tolist()
        return ("tensor", obj.dtype, tuple(obj.shape), bits, obj.requires_grad, frozen(grad))
    if isinstance(obj, np.ndarray):
        return ("array", str(obj.dtype), obj.shape, obj.tolist())
    if isinstance(obj, torch.Generator):
        return obj.get_state().tolist()
    if isinstance(obj, random.Random):
        return obj.getstate()
    if isinstance(obj, collections.UserDict | collections.ChainMap):
        return (type(obj), frozen(vars(obj)))
    if isinstance(obj, dict):
        return (type(obj), [(frozen(k), frozen(v)) for k, v in obj.items()], frozen(getattr(obj, "__dict__", None)))
    if isinstance(obj, list | tuple | collections.deque | array.array | bytearray):
        return (type(obj), [frozen(v) for v in obj])
    if isinstance(obj, set | frozenset):
        return (type(obj), sorted(obj), frozen(getattr(obj, "__dict__", None)))
    if isinstance(obj, Box | nn.Module | types.SimpleNamespace | Data):
        return (type(obj), frozen(vars(obj)))
    return obj


def append(value: Any = 9) -> Callable[[Any], None]:
    return lambda obj: obj.append(value)


def both(*changes: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(obj: Any) -> None:
        for each in changes:
            each(obj)

    return change


CONTAINERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1, 2], append()),
    "list, replaced entry": (lambda: [1, 2], lambda x: x.__setitem__(0, 7)),
    "list, emptied": (lambda: [1, [2]], lambda x: x.clear()),
    "dict": (lambda: {"a": 1}, lambda x: x.update(b=2)),
    "dict, order": (lambda: {"a": 1, "b": 2}, lambda x: x.__setitem__("a", x.pop("a"))),
    "dict, keys are tensors": (
        lambda: {torch.zeros(2): 1},
        both(lambda x: x.clear(), lambda x: x.__setitem__(torch.zeros(3), 1)),
    ),
    "OrderedDict": (lambda: collections.OrderedDict(a=1, b=2), lambda x: x.move_to_end("a")),
    "defaultdict": (lambda: collections.defaultdict(list, a=[1]), both(lambda x: x["b"], lambda x: x["a"].append(2))),
    "Counter": (lambda: collections.Counter("aab"), lambda x: x.update("abc")),
    "dict subclass": (Counting, lambda x: x.__setitem__("b", 2)),
    "set": (lambda: {1, 2}, lambda x: x.add(3)),
    "set subclass": (lambda: Tagged({1, 2}), both(lambda x: x.add(3), lambda x: setattr(x, "tag", 2))),
    "deque": (lambda: collections.deque([1, 2], maxlen=2), append()),
    "bytearray": (lambda: bytearray(b"ab"), append()),
    "array": (lambda: array.array("d", [1.0, 2.0]), append()),
    "ctypes": (lambda: (ctypes.c_int * 3)(1, 2, 3), lambda x: x.__setitem__(0, 9)),
    "nested": (lambda: {"a": [{"b": (collections.deque([1]),)}]}, lambda x: x["a"][0]["b"][0].append(2)),
    "namespace": (lambda: types.SimpleNamespace(a=[1]), both(lambda x: x.a.append(2), lambda x: vars(x).update(b=1))),
    "UserDict": (lambda: collections.UserDict(a=1), lambda x: x.update(b=1)),
    "ChainMap": (lambda: collections.ChainMap({"a": 1}), lambda x: x.update(b=1)),
    "array of numpy": (lambda: np.arange(3.0), lambda x: x.__iadd__(1)),
    "array of numpy, a view": (lambda: np.arange(6.0)[::2], lambda x: x.__iadd__(1)),
    "array of objects": (lambda: np.array([None, "a"], dtype=object), lambda x: x.__setitem__(0, 1)),
    "object": (lambda: Box(a=1, b=[1]), both(lambda x: setattr(x, "a", 2), lambda x: x.b.append(2))),
    "new attribute": (lambda: Box(a=1), lambda x: setattr(x, "b", 2)),
    "deleted attribute": (lambda: Box(a=1, b=2), lambda x: delattr(x, "a")),
    "dataclass": (Data, both(lambda x: x.seen.append(1), lambda x: setattr(x, "count", 2))),
    "generator of torch": (lambda: torch.Generator().manual_seed(3), lambda x: torch.rand(3, generator=x)),
    "Random": (lambda: random.Random(3), lambda x: x.random()),
    "metric": (lambda: MeanMetric(), lambda x: x.update(3.0)),
    "metric with lists": (lambda: MulticlassAUROC(2), lambda x: x.update(torch.rand(3, 2), torch.tensor([0, 1, 0]))),
    "cycle": (lambda: {"a": 1, "me": []}, both(lambda x: x["me"].append(x), lambda x: x["me"].clear())),
}


@pytest.mark.parametrize("place", ["root", "attribute", "list", "partial", "module"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_comes_back(name: str, place: str) -> None:
    make, change = CONTAINERS[name]
    obj = make()
    module = nn.Module()
    module.held = obj
    root = {
        "root": obj,
        "attribute": Box(obj=obj),
        "list": [("a", obj)],
        "partial": functools.partial(print, end=obj),
        "module": module,
    }[place]
    before = frozen(obj)
    snapshot = Snapshot({"root": root})
    for _ in range(2):  # as for two runs
        change(obj)
        if name not in ("cycle", "ctypes"):
            assert frozen(obj) != before
        assert snapshot.restore() == []
        if name == "ctypes":
            assert list(obj) == [1, 2, 3]
        else:
            assert frozen(obj) == before


@pytest.mark.parametrize("kind", [Slotted, SlottedChild])
def test_slots(kind: type[Slotted]) -> None:
    obj = kind()
    snapshot = Snapshot({"x": obj})
    obj.value, obj.late = 2, 3
    obj.items.append(2)
    obj.private().append(2)
    del obj.items
    if isinstance(obj, SlottedChild):
        obj.extra["b"], obj.free = 2, 1
    assert snapshot.restore() == []
    assert (obj.value, obj.items, obj.private(), hasattr(obj, "late")) == (1, [1], [1], False)
    if isinstance(obj, SlottedChild):
        assert (obj.extra, vars(obj)) == ({"a": 1}, {})


def test_slots_behind_a_proxy() -> None:
    obj = Proxy()
    snapshot = Snapshot({"x": obj})
    obj.items.append(2)
    assert snapshot.restore() == []
    assert obj.items == [1]
    assert obj.cache == 1


def test_frozen_dataclass_with_slots() -> None:
    obj = Frozen([1])
    snapshot = Snapshot({"x": obj})
    obj.seen.append(2)
    assert snapshot.restore() == []
    assert obj == Frozen([1])


def test_state_of_a_class() -> None:
    obj = Shared()
    snapshot = Snapshot({"x": obj})
    obj.note()
    Shared.fresh = 1
    try:
        assert snapshot.restore() == []
        assert (Shared.log, Shared.count, hasattr(Shared, "fresh")) == ([], 0, False)
    finally:
        Shared.log.clear()
        Shared.count = 0


def test_shared_value_of_processes() -> None:
    value = multiprocessing.Value("i", 3)
    numbers = multiprocessing.Array("d", [1.0, 2.0])
    snapshot = Snapshot({"x": Box(value=value, numbers=numbers)})
    value.value = 7
    numbers[1] = 9.0
    assert snapshot.restore() == []
    assert (value.value, list(numbers)) == (3, [1.0, 2.0])


def test_random_states_of_numpy() -> None:
    modern, legacy = np.random.default_rng(3), np.random.RandomState(3)
    expected = modern.random(), legacy.rand()
    modern, legacy = np.random.default_rng(3), np.random.RandomState(3)
    snapshot = Snapshot({"x": [modern, legacy, modern.bit_generator]})
    modern.random(5), legacy.rand(5), modern.standard_normal()
    assert snapshot.restore() == []
    assert (modern.random(), legacy.rand()) == expected


def test_what_has_no_state_to_keep_is_left_alone() -> None:
    import logging
    import re
    import threading
    from pathlib import Path

    held = [
        random.SystemRandom(),
        threading.Lock(),
        re.compile("a"),
        Path(),
        logging.getLogger("a"),
        sys.stdout,
        lambda: 1,
        torch.nn.functional.relu,
        torch.float32,
        torch.device("cpu"),
        np.float64(1.0),
        np.dtype("int8"),
        object(),
        type,
        range(3),
        memoryview(b"a"),
        NotImplemented,
    ]
    snapshot = Snapshot({"x": held})
    random.SystemRandom().random()
    print("something")
    assert snapshot.restore() == []


# -- tensors -----------------------------------------------------------------------------------------------------------


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.arange(4.0))


def with_grad() -> nn.Parameter:
    made = parameter()
    made.grad = torch.ones(4)
    return made


TENSORS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Any]]] = {
    "value": (parameter, lambda t: t.data.add_(1)),
    "value in place": (lambda: torch.zeros(3), lambda t: t.add_(1)),
    "requires_grad": (parameter, lambda t: t.requires_grad_(False)),
    "gradient made": (parameter, lambda t: t.sum().backward()),
    "gradient added to": (with_grad, lambda t: t.sum().backward()),
    "gradient dropped": (with_grad, lambda t: setattr(t, "grad", None)),
    "gradient exchanged": (with_grad, lambda t: setattr(t, "grad", torch.zeros(4))),
    "attribute": (parameter, lambda t: setattr(t, "note", 1)),
    "shape": (lambda: torch.zeros(3), lambda t: setattr(t, "data", torch.ones(5))),
    "dtype": (lambda: torch.tensor([0.1, 0.2]), lambda t: setattr(t, "data", t.data.half())),
    "expanded": (lambda: torch.ones(1, 3).expand(4, 3), lambda t: t[0].add_(1)),
    "expanded, unchanged": (lambda: torch.ones(1).expand(4), lambda t: None),
    "transposed": (lambda: torch.arange(6.0).view(2, 3).T, lambda t: t.add_(1)),
    "unfolded": (lambda: torch.arange(6.0).unfold(0, 3, 1), lambda t: None),
    "integers": (lambda: torch.arange(3), lambda t: t.add_(1)),
    "no dimension": (lambda: torch.tensor(1.0), lambda t: t.add_(1)),
    "empty": (lambda: torch.empty(0), lambda t: setattr(t, "data", torch.ones(1))),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), lambda t: t.add_(1)),
    "sparse": (
        lambda: torch.eye(3).to_sparse(),
        lambda t: t.copy_(torch.zeros(3, 3).to_sparse()),
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensor_comes_back(name: str) -> None:
    make, change = TENSORS[name]
    tensor = make()
    grad = tensor.grad
    compare = torch.view_as_real if tensor.is_complex() else (lambda t: t)
    before = frozen(compare(tensor)), vars(tensor).copy(), tensor.dtype
    snapshot = Snapshot({"x": Box(t=tensor)})
    for _ in range(2):
        change(tensor)
        assert snapshot.restore() == []
        assert (frozen(compare(tensor)), vars(tensor), tensor.dtype) == before
        assert tensor.grad is grad


def test_inference_tensor() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(3)
    snapshot = Snapshot({"x": tensor})
    with torch.inference_mode():
        tensor.add_(1)
    assert snapshot.restore() == []
    assert tensor.tolist() == [0, 0, 0]


def zero(tensor: Tensor) -> None:
    tensor.data.zero_()


def test_hooks_of_a_tensor() -> None:
    """A module may clip its gradients by hooks that it adds in ``on_train_start``: they must not be there twice."""
    fresh, hooked = parameter(), parameter()
    hooked.register_hook(lambda grad: grad * 2)
    snapshot = Snapshot({"x": [fresh, hooked]})
    for _ in range(2):
        for each in (fresh, hooked):
            each.register_hook(lambda grad: grad * 10)
            each.register_post_accumulate_grad_hook(zero)
        assert snapshot.restore() == []
        (fresh.sum() + hooked.sum()).backward()
        assert fresh.grad.tolist() == [1] * 4
        assert hooked.grad.tolist() == [2] * 4
        assert fresh.tolist() == [0, 1, 2, 3]
        fresh.grad = hooked.grad = None


def test_views_and_ties_stay() -> None:
    base = torch.zeros(4)
    module = nn.Module()
    module.whole, module.part = nn.Parameter(base), nn.Parameter(base[:2])
    module.tied = module.whole
    snapshot = Snapshot({"x": module})
    with torch.no_grad():
        module.whole.add_(1)
    module.tied = nn.Parameter(torch.ones(4))
    snapshot.restore()
    assert module.tied is module.whole
    assert module.part.data_ptr() == module.whole.data_ptr()
    assert base.tolist() == [0] * 4


def test_a_graph_is_not_broken() -> None:
    weight = parameter()
    loss = (weight * 2).pow(2)
    snapshot = Snapshot({"x": [weight, loss]})
    snapshot.restore()
    loss.sum().backward()  # would raise, had loss been written to
    assert weight.grad is not None


def test_a_module_with_everything_moved() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    module.register_buffer("quiet", torch.zeros(2), persistent=False)
    for p in module.parameters():
        p.grad = torch.full_like(p, 0.5)
    module[0].weight.requires_grad_(False)
    before = frozen(module)
    snapshot = Snapshot({"x": module})
    module(torch.randn(8, 4)).sum().backward()
    module.quiet += 1
    module.eval()
    module.register_buffer("new", torch.zeros(1))
    module.register_forward_hook(lambda *a: None)
    module[0] = nn.Linear(4, 4)
    module.append(nn.ReLU())
    snapshot.restore()
    assert frozen(module) == before


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
@pytest.mark.parametrize("warm", [False, True])
def test_an_optimizer(kind: Any, warm: bool) -> None:
    module = nn.Linear(3, 2)
    optimizer = kind(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def step() -> None:
        module(torch.ones(2, 3)).sum().backward()
        optimizer.step()

    if warm:
        step()
    before = frozen(optimizer.state_dict()), frozen(module), len(optimizer.state), scheduler.state_dict()
    snapshot = Snapshot({"m": module, "o": optimizer, "s": scheduler})
    step()
    optimizer.register_step_pre_hook(lambda *a: None)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 3.0})
    scheduler.step()
    snapshot.restore()
    after = frozen(optimizer.state_dict()), frozen(module), len(optimizer.state), scheduler.state_dict()
    assert after == before
    assert not optimizer._optimizer_step_pre_hooks


def test_lazy_layers_are_lazy_again() -> None:
    module = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    snapshot = Snapshot({"x": module})
    module(torch.ones(2, 3))
    snapshot.restore()
    assert type(module[0]) is nn.LazyLinear
    torch.manual_seed(0)
    module(torch.ones(2, 5))
    assert module[0].weight.shape == (2, 5)


# -- what cannot be put back -------------------------------------------------------------------------------------------


def numbers(n: int = 5) -> Iterator[int]:
    yield from range(n)


def counting() -> Iterator[int]:
    total = 0
    while True:
        total += 1
        yield total


ITERATORS: dict[str, Callable[[], Any]] = {
    "generator": numbers,
    "counting": counting,
    "list": lambda: iter([1, 2, 3]),
    "tuple": lambda: iter((1, 2, 3)),
    "range": lambda: iter(range(3)),
    "dict": lambda: iter({"a": 1, "b": 2}),
    "items": lambda: iter({"a": 1, "b": [2]}.items()),
    "set": lambda: iter({1, 2, 3}),
    "enumerate": lambda: enumerate([1, 2, 3]),
    "zip": lambda: zip([1, 2], [3, 4], strict=False),
    "map": lambda: map(str, [1, 2]),
    "filter": lambda: filter(None, [1, 2]),
    "reversed": lambda: reversed([1, 2]),
    "count": itertools.count,
    "cycle": lambda: itertools.cycle([1, 2, 3]),
    "chain": lambda: itertools.chain([1, 2], [3]),
    "islice": lambda: itertools.islice([1, 2, 3], 2),
    "product": lambda: itertools.product([1, 2], [3, 4]),
    "repeat": lambda: itertools.repeat(1, 3),
    "zip of generators": lambda: zip(numbers(), numbers(), strict=False),
    "loader": lambda: iter(DataLoader(TensorDataset(torch.arange(4)))),
    "shuffled loader": lambda: iter(DataLoader(TensorDataset(torch.arange(4)), shuffle=True)),
}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", ITERATORS)
def test_an_iterator_that_moved_is_named_and_no_other(name: str, started: bool) -> None:
    moved, still = ITERATORS[name](), ITERATORS[name]()
    if started:
        next(moved), next(still)
    snapshot = Snapshot({"module": Box(moved=moved, still=still)})
    assert snapshot.restore() == []
    next(moved)
    named = snapshot.restore()
    assert named
    assert all(name.startswith("module.moved") for name in named)


def test_a_loader_with_workers_that_moved_is_named() -> None:
    iterator = iter(DataLoader(TensorDataset(torch.arange(4)), num_workers=1))
    snapshot = Snapshot({"module": Box(it=iterator)})
    assert snapshot.restore() == []
    next(iterator)
    assert snapshot.restore() == ["module.it"]
    assert [int(batch[0]) for batch in iterator] == [1, 2, 3]  # and goes on as it was


def test_files(tmp_path: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    with path.open() as moved, path.open() as still, path.open("rb") as raw:
        text = io.StringIO("one\ntwo\n")
        snapshot = Snapshot({"module": Box(moved=moved, still=still, raw=raw, text=text)})
        assert snapshot.restore() == []
        next(moved), raw.read(1), text.read(1)
        assert snapshot.restore() == ["module.moved", "module.raw", "module.text"]


class Rows(Dataset[Any]):
    def __init__(self, rows: Any) -> None:
        self.rows, self.draws = rows, 0


def test_large_data_is_watched_and_not_copied() -> None:
    tensor, rows = torch.zeros(2**19), np.zeros(2**18)
    small = torch.zeros(3)
    data = Rows([tensor, rows, small])
    snapshot = Snapshot({"data": data})
    data.draws += 1
    small.add_(1)
    assert snapshot.restore() == []
    assert (data.draws, small.tolist()) == (0, [0, 0, 0])
    tensor[0] = 1
    rows[0] = 1
    assert snapshot.restore() == ["data.rows[0]", "data.rows[1]"]


def test_long_lists_of_data_are_not_looked_into() -> None:
    data = Rows([[0] for _ in range(10_001)])
    snapshot = Snapshot({"data": data})
    assert sum(1 for _ in snapshot.instances(list)) == 1
    data.rows.append([1])
    snapshot.restore()
    assert len(data.rows) == 10_001


def test_one_that_refuses_is_named_and_the_rest_comes_back() -> None:
    locked, other = np.zeros(3), Box(a=1)
    snapshot = Snapshot({"m": Box(locked=locked, other=other)})
    locked += 1
    locked.flags.writeable = False
    other.a = 2
    assert snapshot.restore() == ["m.locked"]
    assert other.a == 1


def test_closures_and_opaque_types_are_left_alone() -> None:
    noted: list[int] = []
    box = Box(hook=lambda: noted.append(1), opaque=Data())
    snapshot = Snapshot({"x": box}, opaque=(Data,))
    box.hook()
    box.opaque.count = 5
    snapshot.restore()
    assert (noted, box.opaque.count) == ([1], 5)


def test_shallow_objects_lead_nowhere() -> None:
    inner = Box(a=1)
    outer = Box(inner=inner, n=1)
    snapshot = Snapshot({"x": [outer]}, shallow=[outer])
    inner.a, outer.n = 2, 2
    snapshot.restore()
    assert (inner.a, outer.n, outer.inner) == (2, 1, inner)


@pytest.mark.parametrize("data", [True, False])
def test_slices_of_one_large_tensor_are_no_change(data: bool) -> None:
    whole = torch.randn(600_000)  # more than is copied
    whole[3] = torch.nan
    small = whole[:10] if data else nn.Parameter(whole[:10])
    roots: Any = {"data": TensorDataset(whole), "part": TensorDataset(small) if data else Box(part=small)}
    snapshot = Snapshot(roots)
    assert snapshot.restore() == []
    assert snapshot.restore() == []
    whole[3] = 1.0
    assert snapshot.restore() == ["data.tensors[0]"]


class Raises:
    """Settings whose attributes are the keys of a dict."""

    def __init__(self) -> None:
        self.__dict__["d"] = {"a": [1]}

    def __getattr__(self, key: str) -> Any:
        return self.__dict__["d"][key]


class SlottedRaises:
    __slots__ = ("d",)

    def __init__(self) -> None:
        self.d = [1]

    def __getattr__(self, key: str) -> Any:
        raise KeyError(key)


class Unbound:
    """A proxy that has no object yet, such as werkzeug's."""

    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]


def test_an_object_that_cannot_be_looked_into_is_left_alone() -> None:
    box = Box(proxy=Unbound(), values=[1])
    snapshot = Snapshot({"box": box})
    box.values.append(2)
    assert snapshot.restore() == []
    assert box.values == [1]


@pytest.mark.parametrize("kind", [Raises, SlottedRaises])
def test_objects_that_raise_at_an_unknown_attribute(kind: Any) -> None:
    box = Box(settings=kind())
    snapshot = Snapshot({"box": box})
    values = box.settings.d["a"] if kind is Raises else box.settings.d
    values.append(2)
    assert snapshot.restore() == []
    assert values == [1]


def test_a_weak_proxy_is_left_alone_even_if_its_object_is_gone() -> None:
    alive, gone = Box(a=1), Box(a=2)
    box = Box(one=weakref.proxy(alive), two=weakref.proxy(gone))
    del gone
    snapshot = Snapshot({"box": box})
    assert snapshot.restore() == []
    assert alive.a == 1
