"""What a batch holds: its parts, and its examples."""

import copy
import pickle
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lr_lightning._batches import Scalars, at, count_examples, loaded_examples, parts, written


@dataclass
class Pair:
    x: Any
    y: Any


def test_every_part_has_a_place_that_leads_to_it_and_can_be_written() -> None:
    leaf = torch.ones(3)
    batch = {"a": [Pair(UserDict(k=(leaf,)), None)], "b": SimpleNamespace(inner=leaf, _own=leaf)}
    found = [place for place, part in parts(batch) if part is leaf]
    assert [written(place) for place in found] == ["batch['a'][0].x['k'][0]", "batch['b'].inner"]
    assert all(at(place, batch) is leaf for place in found)


def test_a_batch_that_holds_itself_has_an_end() -> None:
    batch: list[Any] = [torch.ones(2)]
    batch.append(batch)
    assert count_examples(batch) == 2


@pytest.mark.parametrize(
    ("batch", "size", "count"),
    [
        (torch.ones(5, 2), None, 5),
        ((torch.ones(5, 2), torch.tensor(1.0)), None, 5),
        ({"atoms": torch.ones(70, 3), "energy": torch.ones(4)}, None, None),
        ({"atoms": torch.ones(70, 3), "energy": torch.ones(4)}, 4, 4),
        ({"atoms": torch.ones(70, 3), "energy": torch.ones(4)}, 16, 4),  # the last, smaller batch
        ({"atoms": torch.ones(7, 3), "energy": torch.ones(4)}, 16, None),  # either may be
        (torch.ones(70, 3), 16, None),
        (SimpleNamespace(num_graphs=4, x=torch.ones(70, 3)), None, 4),
        (([torch.ones(3, 8), torch.ones(3, 9)], [{"boxes": torch.ones(7, 4)}, {"boxes": torch.ones(1, 4)}]), 2, 2),
        ((["a", "b", "c"], ["d", "e", "f"]), None, 3),
        ((torch.ones(0, 8), torch.ones(3)), None, None),  # either may be
        ((torch.ones(3, 8), None, torch.ones(3)), 8, 3),
        ((torch.ones(0, 8), torch.ones(0)), 8, 0),
        (["a", "b", "c"], None, None),
        (None, None, None),
    ],
)
def test_examples_are_counted(batch: Any, size: int | None, count: int | None) -> None:
    assert count_examples(batch, size) == count


def test_a_class_that_raises_when_it_is_looked_through_counts_nothing() -> None:
    class Broken:
        @property
        def num_graphs(self) -> int:
            raise RuntimeError("not collated")

    assert loaded_examples(None, Broken(), 0) is None
    assert loaded_examples(DataLoader(range(10), 4), Broken(), 2) == 2  # type: ignore[arg-type]  # the loader tells


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1024, 1025, 2500])
def test_scalars_keep_every_value_in_its_order(count: int) -> None:
    kept = Scalars()
    for _ in range(2):  # they can be used again
        value = torch.zeros(())
        for number in range(count):
            value.fill_(number)  # what the caller does with its tensor does not matter
            kept.append(value)
        assert len(kept) == count
        stacked = kept.stacked()
        assert stacked is None if count == 0 else stacked is not None and stacked.tolist() == list(range(count))
        kept.clear()
        assert len(kept) == 0
        assert kept.stacked() is None


_ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 200), st.sampled_from([torch.float32, torch.float64])),
    st.sampled_from([("clear",), ("read",), ("copy",), ("pickle",)]),
)


@given(st.lists(_ACTIONS, max_size=12))
def test_scalars_are_a_list_whatever_is_done_with_them(actions: list[Any]) -> None:
    """A loss may change its precision in a run: as after a resume, or where autocast begins."""
    kept, expected = Scalars(), []
    for action, *how in actions:
        if action == "append":
            for _ in range(how[0]):
                kept.append(torch.tensor(0.1 * len(expected), dtype=how[1]))
                expected.append(float(torch.tensor(0.1 * len(expected), dtype=how[1])))
        elif action == "clear":
            kept.clear()
            expected.clear()
        elif action == "copy":
            kept = copy.deepcopy(kept)
        elif action == "pickle":
            kept = pickle.loads(pickle.dumps(kept))
        stacked = kept.stacked(torch.device("cpu"))
        assert len(kept) == len(expected)
        assert ([] if stacked is None else stacked.tolist()) == expected
