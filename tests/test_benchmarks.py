"""The benchmarks can be run as they say, and what they store stands in the docs."""

import ast
import json
from collections import Counter
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import finder_cost, pruning_replay, report, smith_table, throughput
from tests.conftest import docs_module

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks").glob("*.py"))}
CLAIM = {"mean": 0.5, "low": -0.1, "high": 1.1, "p": 0.2, "n": 6}
RATIO = {"median": 1.2, "min": 1.1, "max": 1.3, "n": 3}
COMMANDS = [name for name, source in SOURCES.items() if "def main(" in source]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_says_its_command_and_has_a_small_form(name: str) -> None:
    said = ast.get_docstring(ast.parse(SOURCES[name])) or ""
    assert f"python -m benchmarks.{name}" in said
    assert "--quick" in said
    assert '"--quick"' in SOURCES[name]


def test_make_bench_runs_the_small_form_of_every_benchmark() -> None:
    # but of soak, which starts four processes and kills one at a moment of chance: make soak
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    assert set(COMMANDS) - {"soak"} <= set(recipe.replace(";", " ").split())


@pytest.fixture(scope="module")
def stored() -> ModuleType:
    """`docs/_build/stored.py`."""
    return docs_module("stored")


def test_the_docs_have_a_line_for_every_benchmark_and_every_result(stored: ModuleType) -> None:
    assert {row.name for row in stored.ROWS} == set(COMMANDS)
    kept = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert kept <= {row.file for row in stored.ROWS}
    lines = stored.table().splitlines()[2:]
    for row, line in zip(stored.ROWS, lines, strict=True):
        assert f"`{row.command}`" in line
        if row.file in kept:
            found = json.loads((ROOT / "benchmarks" / "results" / row.file).read_text())
            assert found["machine"]["date"] in line
            assert "n = " in line or "failed" in line  # where nothing else came of it
        else:
            assert "| none |" in line


def test_results_that_are_still_to_come_have_their_line(stored: ModuleType, tmp_path: Path) -> None:
    results: dict[str, Any] = {
        "smith_table": {"claims": {"triangular2 − fixed (claim: ≥ −0.5)": CLAIM}, "scale": 1.0},
        "batch_growth": {"difference": CLAIM},
        "gpu": {"parts": {"resnet9": {"status": "partial", "app_to_loop": {"seconds": RATIO}}}},
        "logging": {
            "steps": {
                "10000": {"lr_lightning": {"foreground_ms_a_step": RATIO}},
                "1000": {"Lightning": {"foreground_ms_a_step": RATIO}},
            }
        },
        "soak": {"kills": 100, "metric_rows": 9, "rows_missing_or_changed": 0, "rows_added_or_changed": 0},
        "growth": {"repeats": 3, "curves": {"rows": {"exponent": 1.0}, "ranks": {"exponent": 1.25}}},
        "peers": {"ratio_to_no_callback": {"no callback": RATIO, "here": RATIO}},
        "start": {"first_step_to_import": RATIO},
        "store_scale": {
            "runs": {"10": {"read_all_runs_seconds": RATIO}, "3000": {"read_all_runs_seconds": RATIO}},
            "compare": {"10": {"logged": {"cpu_seconds": RATIO}}, "1000": {"logged": {"cpu_seconds": RATIO}}},
        },
        "threads": {"nets": {"small_cnn": {"faster": RATIO}}},
        "schedules": {"rows": [{"epochs": 2, "schedule": "cosine", "held_out": [0.8, 0.9]}]},
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": report.machine(), **result}))
    table = stored.table(tmp_path)
    assert "triangular2 − fixed: mean +0.50 (-0.10 to +1.10) points, n = 6; scale 1" in table
    assert "app to loop, seconds: 1.2 (1.1 to 1.3), n = 3; resnet9 partial" in table
    said = "1.2 (1.1 to 1.3), n = 3"
    assert f"{said}, 10,000 steps; Lightning's logger {said}, 1,000 steps" in table
    assert "the steepest of 2 curves: ranks, exponent 1.25, n = 3" in table
    assert "| here 1.2 (1.1 to 1.3), n = 3" in table
    assert "small_cnn 1.2 (1.1 to 1.3), n = 3" in table
    assert f"seconds to read 3,000 runs: {said}; CPU seconds to compare 1,000 long ones: {said}" in table
    assert "100 kills, 0 of 9 rows changed" in table
    assert "2 epochs, the best: cosine 85.0% (80.0% to 90.0%), n = 2" in table


def test_the_page_of_the_papers_shows_what_is_stored_and_what_is_missing(stored: ModuleType, tmp_path: Path) -> None:
    def store(name: str, result: dict[str, Any]) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps({"machine": report.machine(), **result}))

    store("batch_growth_adamw", {
        "data": "digits", "optimizer": "adamw", "epochs": 30, "images": None, "difference": CLAIM,
        "updates": {"decay": 1200, "growth": 900}, "test_accuracy": {"decay": [0.98, 0.99], "growth": [0.99, 0.99]},
        "seconds": {"decay": [4.0, None], "growth": [2.0, 3.0]},
    })  # fmt: skip
    store("smith_table", {
        "scale": 0.25, "steps": {"fixed": 17500, "staged_triangular": 6250}, "claims": {"a − b (claim: > 0)": CLAIM},
        "test_accuracy": {"fixed": [0.8], "staged_triangular": [0.7, 0.8]},
    })  # fmt: skip
    page = stored.papers(tmp_path)
    assert "| fixed | 81.4 at 70,000 | 80.0 (n = 1) at 17,500 |" in page
    assert "| staged_triangular | – | 75.0 ± 63.5 (n = 2) at 6,250 |" in page
    assert "| a − b (the paper: > 0) | mean +0.50 (-0.10 to +1.10) points, n = 6, p = 0.2 |" in page
    assert "| digits, adamw, 30 epochs | 98.5 ± 6.4 (n = 2) in 1,200 | 99.0 ± 0.0 (n = 2) in 900 |" in page
    assert "| 0.50 (0.50 to 0.50), n = 1 |" in page  # a resumed run has no time
    assert "## Super-convergence\n\nNot measured to the end yet." in page


@pytest.mark.parametrize("page", ["benchmarks.md", "papers.md"])
def test_the_tables_of_a_page_are_those_of_the_stored_results(page: str, stored: ModuleType) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert text == stored.filled(page, text)  # else run: python docs/_build/stored.py
    assert stored.filled(page, text.replace("n = ", "n of ")) == text  # what was changed by hand goes
    assert stored.filled("other.md", text) == text
    with pytest.raises(ValueError, match=f"docs/{page}: the lines '<!-- made from"):
        stored.filled(page, "A page without the lines")


@pytest.mark.parametrize(
    ("part", "found", "said"),
    [
        ("precision", {"ratio_to_32 contiguous": {"bf16 channels_last": RATIO}}, "over 32: 1.2 (1.1 to 1.3), n = 3;"),
        (
            "callbacks",
            {"machine": {}, "resnet9": {"ratio_to_lightning": {"all four, MLflow": RATIO}}},
            "resnet9 with all callbacks, over Lightning: 1.2 (1.1 to 1.3), n = 3;",
        ),
        ("finder", {"seconds": RATIO}, "range test, seconds: 1.2 (1.1 to 1.3), n = 3;"),
        ("smith_table", {"claims": {"a − b (claim)": CLAIM}, "scale": 1.0}, "a − b: mean +0.50"),
        *((part, {}, "") for part in ("resnet9", "precision", "callbacks", "finder", "smith_table")),  # it failed
    ],
)
def test_a_part_that_was_measured_alone_says_its_spread(
    part: str, found: dict[str, Any], said: str, stored: ModuleType
) -> None:
    (row,) = [row for row in stored.ROWS if row.name == "gpu"]
    text = row.say({"parts": {part: {"status": "done", **found}}})
    assert said in text
    assert text.endswith(f"{part} done")


def test_a_range_test_is_timed_over_as_many_steps_as_the_bare_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    step = finder_cost.Module.training_step

    def counted(self: finder_cost.Module, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        made.append(batch_idx)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(finder_cost.Module, "training_step", counted)
    images, labels = torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)  # nothing to learn: flat to the end
    finder_cost.ours(DataLoader(TensorDataset(images, labels), batch_size=4), 12)
    assert len(made) == 12 + 1  # and the one of the fit


@pytest.mark.parametrize(("accuracy", "second"), [(False, 3.0), (True, 0.9)])
def test_a_replayed_search_prunes_as_the_search_itself(accuracy: bool, second: float) -> None:
    trials = [
        {"schedule": schedule, "curve": [[value] * 4] * epochs}
        for schedule, value, epochs in (("cosine", 0.5, 12), ("wsd", second, 12), ("linear", 0.5, 12), ("linear", 1, 2))
    ]
    found = pruning_replay.replay(trials, ["cooled"], preview=True, accuracy=accuracy)
    assert found == (12 + 3 + 12 + 2, [False, True, False, False])


def test_trainings_in_turns_make_the_same_steps_and_follow_each_other_alike() -> None:
    order: list[str] = []

    def training(name: str, steps: throughput.Steps) -> None:
        for made in range(1, throughput.WARMUP + 3 * 8 + 1):
            order.append(name)
            steps.step(made)

    arms = {name: partial(training, name) for name in "abcd"}
    found = throughput.in_turns(arms, 3, 8)
    assert {name: steps.shape for name, steps in found.items()} == dict.fromkeys("abcd", (8, 3))
    turns = order[4 * throughput.WARMUP :: 3]
    assert [sorted(turns[i : i + 4]) for i in range(0, 32, 4)] == [list("abcd")] * 8
    followed = Counter(pairwise(turns))
    assert set(followed) == set(permutations("abcd", 2))


def test_the_rows_of_smiths_claims_come_first() -> None:
    rows = [piece.settings["row"] for piece in smith_table.pieces([], 0.25, 2)]
    assert rows == [*smith_table.ORDER[:4], *smith_table.ORDER[:4], *smith_table.ORDER[4:], *smith_table.ORDER[4:]]


def test_smiths_table_of_a_scale_tells_what_there_is_at_full_length(stored: ModuleType) -> None:
    results = {(0.25, "fixed", 0): 0.7, (0.25, "decay", 0): 0.6, (1.0, "fixed", 0): 0.8, (1.0, "fixed", 1): 0.9}
    records = {
        smith_table.key(scale, row, seed): {"result": {"steps": int(70_000 * scale), "test_accuracy": accuracy}}
        for (scale, row, seed), accuracy in results.items()
    }
    found = smith_table.summary(records, 0.25, 6)
    assert found["test_accuracy"] == {"fixed": [0.7], "decay": [0.6]}
    assert list(found["whole"]) == ["fixed"]
    text = stored._smith_rows({"machine": report.machine(), **found})
    assert "At the paper's own lengths, so far: fixed 85.0" in text
    assert "(n = 2) at 70,000 updates." in text
    whole = smith_table.summary(records, 1.0, 6)
    assert whole["test_accuracy"] == {"fixed": [0.8, 0.9]}
    assert whole["whole"] == {}
