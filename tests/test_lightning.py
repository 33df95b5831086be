"""What the package shares around Lightning, and the fence around Lightning's private attributes."""

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Trainer

import lr_lightning
from lr_lightning import LRFinder, RunCost
from lr_lightning._lightning import gather_rows, mean_over_ranks, warn_if_results_are_lost
from tests.callbacks.threads import on_ranks
from tests.callbacks.tiny import QUIET


def test_ranks_without_a_value_take_part_in_means_and_rows() -> None:
    own = [3.0, None, 1.0]
    assert on_ranks(lambda trainer: mean_over_ranks(trainer, own[trainer.global_rank]), 3) == [2.0] * 3
    assert on_ranks(lambda trainer: mean_over_ranks(trainer, None), 2) == [None] * 2
    rows = [torch.ones(2, 1), torch.empty(0, 1), torch.zeros(1, 1)]
    for every in on_ranks(lambda trainer: gather_rows(trainer, rows[trainer.global_rank]), 3):
        assert every.tolist() == [[1.0], [1.0], [0.0]]


def _private_names(tree: ast.Module) -> Iterator[str]:
    """Names with one leading underscore that a file imports, or reads or writes on any object but its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if (not own and not isinstance(node.value, ast.Call)) or (own and node.attr.startswith("_every_n_")):
                yield node.attr


def test_private_names_of_lightning_stand_in_one_file_only() -> None:
    of_lightning: set[str] = set()
    for folder in ("pytorch", "fabric"):
        for path in (Path(lightning.__file__).parent / folder).rglob("*.py"):
            of_lightning |= set(re.findall(r"\b_[A-Za-z]\w*", path.read_text(encoding="utf-8")))
    of_lightning.remove("_version")  # a tensor's as well
    own = Path(lr_lightning.__file__).parent
    found = {
        path.name: names
        for path in own.rglob("*.py")
        if (names := {*_private_names(ast.parse(path.read_text(encoding="utf-8")))} & of_lightning)
    }
    assert set(found) == {"_lightning.py"}, found


def test_results_that_stay_in_other_processes_are_announced_once() -> None:
    options: dict[str, Any] = {**QUIET, "callbacks": [LRFinder(), RunCost()]}
    run = Trainer(devices=2, strategy="ddp_spawn", **options)
    with pytest.warns(UserWarning, match="So what LRFinder, RunCost find .* is missing in the script after fit"):
        warn_if_results_are_lost(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_results_are_lost(run)
        warn_if_results_are_lost(Trainer(**options))
