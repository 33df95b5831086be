"""The space: reading it, its grid, its conditions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_lightning._commands import override
from lr_lightning.errors import SpaceError
from lr_lightning.search.space import Choice, Range, Space


def test_dotted_and_nested_keys_are_the_same_and_the_nested_one_wins() -> None:
    written = {"optimizer.lr": {"log": [1e-4, 1]}, "schedule": ["cosine", "wsd"]}
    typed = {"optimizer": {"lr": {"log": [1e-3, 1]}}}
    assert Space.of({**written, **typed}).keys["optimizer.lr"] == Range(1e-3, 1.0, log=True)
    assert Space.of({**written, "optimizer.lr": None}).keys == {"schedule": Choice(("cosine", "wsd"))}


@given(st.floats(1e-8, 1e2), st.floats(1.01, 1e6), st.integers(2, 40))
def test_a_log_grid_is_even_in_its_logarithm_and_stays_inside(low: float, ratio: float, points: int) -> None:
    high = low * ratio
    values = [float(v) for v in Range(low, high, log=True, points=points).grid()]  # type: ignore[arg-type]
    assert low <= min(values)
    assert max(values) <= high
    assert values == sorted(values)
    expected = [low * ratio ** (i / (points - 1)) for i in range(points)]
    assert all(any(math.isclose(v, e, rel_tol=6e-3) for e in expected) for v in values)


def test_a_grid_of_steps_and_of_integers() -> None:
    assert Range(0.0, 1.0, step=0.25).grid() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Range(16.0, 256.0, log=True, integer=True, points=5).grid() == [16, 32, 64, 128, 256]


def test_a_condition_leaves_its_key_out_and_no_point_stands_there_twice() -> None:
    space = Space.of(
        {
            "optimizer.momentum": {"choice": [0.5, 0.9], "when": {"optimizer": ["sgd", "rmsprop"]}},
            "optimizer": ["sgd", "adam"],
            "optimizer.nesterov": {"choice": [True, False], "when": {"optimizer": "sgd", "schedule": "cosine"}},
        }
    )
    assert list(space.keys).index("optimizer") < list(space.keys).index("optimizer.momentum")
    assert space.condition_keys == ["schedule"]
    with_cosine = list(space.grid({"schedule": "cosine"}))
    assert len(with_cosine) == 5
    assert {"optimizer": "adam"} in with_cosine
    assert len(list(space.grid({"schedule": "wsd"}))) == 3


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "search.space: is empty"),
        ({"optimizer.lr": {"log": [0, 1]}}, "a logarithm needs numbers above 0, got [0, 1]"),
        ({"optimizer.lr": {"log": [1, 0.1]}}, "the first must be below the second"),
        ({"optimizer.lr": {"log": [1]}}, "needs two finite numbers"),
        ({"optimizer.lr": {"log": [1, math.inf]}}, "needs two finite numbers"),
        ({"optimizer.lr": {"log": [1, 2], "linear": [1, 2]}}, "needs one of log, linear, int, log_int, choice"),
        ({"optimizer.lr": {"log": [1, 2], "ponits": 3}}, "there is no 'ponits'. Did you mean 'points'?"),
        ({"data.batch_size": {"int": [1.5, 3]}}, "needs integers"),
        ({"schedule": []}, "needs a list of one or more values"),
        ({"schedule": ["cosine", "cosine"]}, "a value is given twice"),
        ({"schedule": ["cosine", {"a": 1}]}, "is no single value"),
        ({"a": {"choice": [1], "when": {"b": 1}}, "b": {"choice": [1], "when": {"a": 1}}}, "in a circle"),
        ({"a": {"choice": [1], "when": 3}}, "needs a key and its value"),
        ({"a": {"log": [1, 2], "step": 0.5}}, "search.space.a.step"),
        ({"a": {"int": [1, 5], "step": 0.5}}, "search.space.a.step: must be an integer of 1 or more"),
        ({"a": {"log": [1, 2], "points": True}}, "search.space.a.points"),
    ],
)
def test_a_bad_space_is_one_clear_error(node: dict[str, object], message: str) -> None:
    with pytest.raises(SpaceError) as error:
        Space.of(node)
    assert message in str(error.value)
    assert str(error.value).startswith("search.space")


def test_overrides_can_be_typed() -> None:
    values = [0.1, 1e-05, 3, True, None, "cosine"]
    assert [override("k", v) for v in ("a b", "it's", "5", "null", "1e-3")] == [
        "k='a b'",
        "k='it\\'s'",
        "k='5'",
        "k='null'",
        "k='1e-3'",
    ]
    assert override("k", 0.012345678) == "k=0.012345678"
    assert [override("k", v) for v in values] == ["k=0.1", "k=1e-05", "k=3", "k=true", "k=null", "k=cosine"]  # type: ignore[arg-type]


def test_a_description_tells_spaces_apart() -> None:
    a = Space.of({"optimizer.lr": {"log": [1e-4, 1]}})
    assert a.as_dict() == Space.of({"optimizer": {"lr": {"log": [1e-4, 1]}}}).as_dict()
    assert a.as_dict() != Space.of({"optimizer.lr": {"linear": [1e-4, 1]}}).as_dict()


def test_a_sampled_value_has_four_digits_and_a_given_one_its_own() -> None:
    domain = Range(1e-4, 0.0679612345, log=True)
    assert domain.short(0.016796580687702834) == 0.0168
    assert domain.short(0.012345678) == 0.012345678
    assert domain.short(0.06796123449) == 0.06796
    assert Range(0.067962345, 1.0).short(0.067962345678) == 0.067962345  # within the range
