"""The groups and their schemas."""

from lr_lightning.app.config import GROUP_BASES, SCHEMAS, flatten
from tests.app.test_composition import CHOICES


def test_every_group_has_choices_and_every_schema_a_group() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == {*SCHEMAS, "experiment"}
    assert set(SCHEMAS) == {*GROUP_BASES, "search"}


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
