"""Every example in a docstring of the schedules is run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["base", "clock", "compose", "cyclic", "durations", "growth", "plan", "plateau", "shapes", "steps"]
)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lr_lightning.schedules.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name == "base"
