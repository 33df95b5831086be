"""Every example in a docstring of the diagnosis is run."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["comparison", "cost", "early_stopping", "curves", "history", "lr_claims", "statistics"]
)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lr_lightning.diagnosis.{name}"))
    assert (result.failed, result.attempted > 0) == (0, True)
