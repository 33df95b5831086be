import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr_lightning.tracking.keys import MAX_KEY, clean_key, clip, flatten, hide_password


@pytest.mark.parametrize("key", ["train/loss", "lr/group0", "a.b-c_d e", "größe"])
def test_a_valid_key_stays_as_it_is(key: str) -> None:
    assert clean_key(key) == key


@pytest.mark.parametrize(
    ("key", "cleaned"),
    [
        ("a=b", "a_b"),
        ("/a", "a"),
        ("a//b", "a/b"),
        ("../a/./b", "a/b"),
        ("", "_"),
        ("a:b", "a_b"),
        ("x" * 300, "x" * 250),
    ],
)
def test_what_a_store_refuses_is_replaced(key: str, cleaned: str) -> None:
    assert clean_key(key) == cleaned


@settings(deadline=None)  # the first call imports MLflow
@given(st.text(max_size=400))
def test_every_cleaned_key_is_one_that_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    cleaned = clean_key(key)
    _validate_metric_name(cleaned)
    assert len(cleaned) <= MAX_KEY
    assert clean_key(cleaned) == cleaned


def test_a_cut_is_visible_and_fits() -> None:
    assert clip("abc", 3) == "abc"
    cut = clip("x" * 7000, 6000)
    assert len(cut) == 6000
    assert cut.endswith("... (7000 characters, cut)")


def test_flatten_dots_nested_mappings_and_keeps_the_rest() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": {}}) == {"a.b.c": 1, "d": [1, 2], "e": {}}


def test_a_password_is_masked_wherever_the_address_stands() -> None:
    assert hide_password("tracking.uri=postgresql://u:s3cret@h/d x") == "tracking.uri=postgresql://u:***@h/d x"
    assert hide_password("http://host:5000") == "http://host:5000"
