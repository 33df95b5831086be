"""The tables, in the CSV file and in the terminal: names stay text, and no terminal breaks a word."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.app.commands import compare as app_compare
from lr_lightning.reports import tables
from lr_lightning.reports.comparison_report import ComparisonReport
from lr_lightning.reports.tables import print_comparison
from lr_lightning.tracking import Store

from .conftest import IMAGE, SCRIPT, Compare, Runs, table


@pytest.mark.parametrize("target", ["val/acc>=0.9", None])
def test_only_a_run_that_diverged_never_reaches_the_target(runs: Runs, comparison: Compare, target: str | None) -> None:
    """With a target of the command line, and with the one that the runs themselves recorded."""
    ends = {"cosine": ("FINISHED", {}), "constant": ("FAILED", {}), "wsd": ("FAILED", {"diverged": "true"})}
    for schedule, (status, tags) in ends.items():
        recorded = {} if target else {"summary/target_reached": [(0, 0.0)]}
        runs.train(schedule, 0, 0.5, status=status, tags=tags, rows=recorded)
        runs.train(schedule, 1, 0.95, rows={} if target else {"summary/steps_to_target": [(0, 30.0)]})
    shown = table(comparison(target=target, log_run=False))
    (column,) = [name for name in shown["cosine"] if name.startswith("steps to")]
    censored = "30 (1 of 2, 1 censored at > 40)"  # 40 steps were made: the last is number 39
    never = "30 (1 of 2, 1 censored)"
    assert {name: cells[column] for name, cells in shown.items()} == {
        "cosine": censored,
        "constant": censored,
        "wsd": never,
    }


def test_the_name_of_a_group_is_a_rounded_lr(runs: Runs, comparison: Compare) -> None:
    for lr in (0.010000000000000002, 0.01, 3.0000000000000004e-05):
        runs.train("cosine", 0, 0.9, lr=lr)
    runs.train("cosine", 0, 0.9, lr=0.1, params={"version": "1.10"})
    assert set(table(comparison(by=["optimizer.lr"], log_run=False))) == {"lr=0.01", "lr=3e-05", "lr=0.1"}
    assert "(no version)" in (names := set(table(comparison(by=["version"], log_run=False))))
    assert "version=1.10" in names


@pytest.mark.parametrize("columns", [80, 100, 300])
def test_the_time_to_a_target_is_in_every_terminal(
    sweep: Runs, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    columns: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", str(columns))
    asked: dict[str, Any] = {"experiments": ["exp"], "target": "val/acc>=0.945", "log_run": False}
    assert app_compare.run(store.root, None, tmp_path / "out", **asked) == 0
    groups = capsys.readouterr().out.split("who won")[0]
    assert max(map(len, groups.splitlines())) <= columns
    assert "not reached by half" in " ".join(groups.split("│")).replace("\n", " ") or columns < 300
    for part in ("steps to", "seconds to", "30"):
        assert part in groups


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("target", [None, "val/acc>=0.945"])
def test_no_terminal_breaks_a_word(
    runs: Runs, comparison: Compare, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    columns: int, target: str | None,
) -> None:  # fmt: skip
    for seed in range(2):
        runs.train("cosine", seed, 0.95, lr=0.05, tags={"verdict": "inconclusive"})
        runs.train("inverse_square_root", seed, 0.9, tags={"verdict": "inconclusive"})
    done = comparison(log_run=False, by=["schedule", "optimizer.lr"], target=target)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_comparison(done.compared, done.target, "title")
    lines = capsys.readouterr().out.split("who won")[0].splitlines()
    assert max(map(len, lines)) <= columns
    known = tables.group_table(done.compared, done.target)
    words_known = {word for row in [known.titles, *known.rows] for cell in row for word in cell.split()}
    shown = {word for line in lines[2:] for cell in re.split("[│┃]", line) for word in cell.split() if word.isascii()}
    assert {word for word in shown if "…" not in word} - words_known == set()
    assert {"best", "val/acc"} <= shown
    assert not target or {"steps", "seconds", "val/acc>=0.945,"} <= shown
    assert target or "inconclusive" in shown


def test_a_spreadsheet_gets_no_formula(hostile: Runs, comparison: Callable[..., ComparisonReport]) -> None:
    with comparison(log_run=False).files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["name"] for row in rows}
    assert {"'=cmd|' /C calc'!A0", SCRIPT, IMAGE} <= names
    assert {"'=HYPERLINK(1)"} <= {row["group"] for row in rows}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@"))]


def test_the_terminal_gets_no_escape_sequence_and_no_markup(
    hostile: Runs, comparison: Callable[..., ComparisonReport], capsys: pytest.CaptureFixture[str]
) -> None:
    done = comparison(log_run=False)
    print_comparison(done.compared, None, done.title)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]x[/red]" in out.replace("\n", "")
