"""Every example in a docstring of the schedules is run."""

import doctest
import importlib
import pkgutil

import pytest

from lr_lightning import schedules


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(schedules.__path__)])
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lr_lightning.schedules.{name}"))
    assert result.failed == 0
    assert result.attempted > 0
