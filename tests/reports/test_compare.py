"""A comparison from a store to its files: every number again by hand, and every kind of run there is."""

import csv
import itertools
import math
import re
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lr_lightning._plotting import styles
from lr_lightning.app.commands import compare as app_compare
from lr_lightning.errors import CompareError
from lr_lightning.reports import tables, wording
from lr_lightning.reports.comparison import Report
from lr_lightning.reports.plots import plot_cost, plot_seed_means
from lr_lightning.reports.tables import print_comparison
from lr_lightning.tracking import Store

from .conftest import Runs

Compare = Callable[..., Report]
BEST = {
    "cosine": [0.951, 0.962, 0.943, 0.955, 0.968, 0.957],
    "constant": [0.931, 0.940, 0.945, 0.936, 0.939, 0.951],
    "wsd": [0.95, 0.96, 0.95, 0.94, 0.96, 0.97],
}


def table(done: Report) -> dict[str, dict[str, str]]:
    found = tables.group_table(done.compared, done.target)
    return {row[0]: dict(zip(found.titles, row, strict=True)) for row in found.rows}


def page(done: Report) -> str:
    return done.files[0].read_text(encoding="utf-8")


def csv_rows(done: Report) -> list[dict[str, str]]:
    with done.files[1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def database(store: Store, query: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{store.root}/mlflow.db?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.fixture
def sweep(runs: Runs) -> Runs:
    for schedule, values in BEST.items():
        for seed, best in enumerate(values):
            runs.train(schedule, seed, best, tags={"verdict": "good fit" if seed else "overfit"})
    return runs


def test_every_number_again_from_the_database(sweep: Runs, store: Store, comparison: Compare) -> None:
    done = comparison(target="val/acc>=0.945", log_run=False)
    rows = database(
        store,
        "SELECT s.value, d.value, max(m.value) FROM metrics m JOIN tags s ON s.run_uuid = m.run_uuid AND s.key = "
        "'schedule' JOIN tags d ON d.run_uuid = m.run_uuid AND d.key = 'seed' WHERE m.key = 'val/acc' "
        "GROUP BY m.run_uuid",
    )
    best = {(schedule, seed): value for schedule, seed, value in rows}
    shown = table(done)
    order = []
    for schedule in BEST:
        values = np.array([best[schedule, str(seed)] for seed in range(6)])
        t = stats.ttest_1samp(values, 0).confidence_interval()
        cells = shown[schedule]
        assert cells["n"] == "6"
        assert cells["best val/acc"] == f"{values.mean():.4f} ± {(t.high - t.low) / 2:.4f}"
        assert cells["last val/acc"] == f"{values.mean() - 0.01:.4f} ± {(t.high - t.low) / 2:.4f}"
        assert cells["test/acc"] == f"{values.mean() - 0.02:.4f} ± {(t.high - t.low) / 2:.4f}"
        assert cells["gap (val − probe loss)"] == "0.0300 ± 0.0000"
        assert cells["verdicts"] == "5× good fit, 1× overfit"
        assert (cells["steps"], cells["lost runs"], cells["worst setback"]) == ("40", "none", "0.01")
        assert cells["examples seen"] == "2,560"
        reached = int((values >= 0.945).sum())
        tail = f"all {reached}" if reached == 6 else f"{reached} of 6, {6 - reached} censored at > 40"
        median = "30" if reached > 3 else "not reached by half"
        assert cells["steps to val/acc>=0.945, median"] == f"{median} ({tail})"
        order.append((values.mean(), schedule))
    assert [group.name for group in done.compared.groups] == [name for _, name in sorted(order, reverse=True)]
    for c in done.compared.differences:
        d = np.array([best[c.better, str(seed)] - best[c.worse, str(seed)] for seed in range(6)])
        signs = np.array(list(itertools.product((1, -1), repeat=6)))
        assert c.difference == pytest.approx(d.mean())
        assert c.p == pytest.approx((np.abs((signs * d).mean(axis=1)) >= abs(d.mean()) - 1e-12).mean())
        assert (c.n, c.paired, c.seeds_needed) == (6, True, 7)
    assert len(done.compared.differences) == 3


def test_the_files_are_there_and_say_the_same(sweep: Runs, comparison: Compare) -> None:
    done = comparison(log_run=False, draw=True)
    names = [path.name for path in done.files]
    assert names == ["report.html", "runs.csv", "means.png", "curves.png", "cost.png", "loss_vs_lr.png"]
    assert all(path.parent == done.folder and path.stat().st_size > 1000 for path in done.files)
    text = page(done)
    assert wording.headline(done.compared) in text
    assert "http" not in text[: text.index('<script type="application/json"')].replace("http-equiv", "").replace(
        "http://127.0.0.1:5000", ""
    )
    rows = csv_rows(done)
    assert len(rows) == 18
    assert {(row["group"], row["seed"]): float(row["best"]) for row in rows} == {
        (schedule, str(seed)): best for schedule, values in BEST.items() for seed, best in enumerate(values)
    }
    assert {row["counted"] for row in rows} == {"true"}


def test_no_winner_without_enough_seeds_and_one_with_them(sweep: Runs, comparison: Compare) -> None:
    few = comparison(log_run=False)
    assert wording.headline(few.compared).startswith("No winner can be named. ")
    assert "not enough seeds to tell (n = 6, needs 7)" in wording.headline(few.compared)
    two = comparison(log_run=False, filter_string="tags.schedule != 'wsd'", against="constant")
    (c,) = two.compared.differences
    assert (c.better, c.significant, c.seeds_needed) == ("cosine", c.adjusted <= 0.05, 6)
    assert wording.p_value(c.adjusted) in wording.headline(two.compared)
    assert wording.interval(c) in wording.headline(two.compared)


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_group_does_not_win_by_the_runs_that_did_not_diverge(runs: Runs, comparison: Compare, lost: int) -> None:
    gone = {"status": "FAILED", "tags": {"diverged": "true"}}
    for seed in range(6):
        runs.train("cosine", seed, 0.95 + 0.001 * seed, **(gone if seed < lost else {}))
        runs.train("constant", seed, 0.9)
    done = comparison(log_run=False)
    said = wording.headline(done.compared)
    assert said.startswith("cosine won: " if not lost else "No winner can be named. cosine has the best mean")
    (c,) = done.compared.differences
    assert c.n == 6
    if lost:
        assert f"(n = {6 - lost}; {lost} of 6 diverged)" in said
        assert wording.finding(c) == f"not significant (n = 6); by ranks, cosine: {lost} of 6 diverged"
        assert said in page(done)
        assert ("cosine ranks before constant" if lost < 4 else "constant ranks before cosine") in said


def test_the_winner_need_not_have_the_best_mean_of_the_survivors(runs: Runs, comparison: Compare) -> None:
    for seed in range(6):
        gone = {"status": "FAILED", "tags": {"diverged": "true"}} if seed else {}
        runs.train("cosine", seed, 0.99 if not seed else 0.1, **gone)
        runs.train("constant", seed, 0.9 if seed else 0.995)
    done = comparison(log_run=False)
    assert wording.headline(done.compared).startswith("constant won: a mean val/acc, 0.9158")
    assert "cosine: 5 of 6 diverged" in wording.headline(done.compared)


def test_two_seeds_say_that_six_are_needed(runs: Runs, comparison: Compare) -> None:
    for seed in range(2):
        runs.train("cosine", seed, 0.95)
        runs.train("constant", seed, 0.9)
    done = comparison(log_run=False)
    assert "not enough seeds to tell (n = 2, needs 6)" in page(done)


def test_groups_of_one_seed_are_one_line_and_no_p(
    runs: Runs, comparison: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, schedule in enumerate(("cosine", "constant", "wsd")):
        runs.train(schedule, 0, 0.95 - 0.01 * i)
    one = comparison(log_run=False)
    line = "These groups share only one seed, which tells nothing; 7 seeds each are needed."
    assert len(one.compared.differences) == 3
    assert not tables.comparison_table(one.compared).rows
    assert wording.headline(one.compared) == (
        "No winner can be named. cosine has the best mean val/acc, 0.9500 (n = 1). cosine is 0.0100 ahead of constant "
        "by one seed: not enough seeds to tell (n = 1, needs 7)."
    )
    app_compare.report(one)
    said = capsys.readouterr().out
    assert said.count(line) == page(one).count(line) == 1
    assert "p = " not in said + page(one).split("The curves")[0]
    runs.train("cosine", 1, 0.95)
    runs.train("constant", 1, 0.94)
    two = comparison(log_run=False)
    assert [row[:2] for row in tables.comparison_table(two.compared).rows] == [["cosine", "constant"]]
    assert "Other groups share only one seed" in page(two)


def test_every_kind_of_run_is_listed_and_none_breaks_it(runs: Runs, comparison: Compare) -> None:
    for seed in range(3):
        runs.train("cosine", seed, 0.95)
    runs.train("cosine", 3, 0.99, name="it diverged", status="FAILED", tags={"diverged": "true", "diverged_step": "7"})
    runs.train("cosine", 4, 0.99, name="it failed", status="FAILED")
    runs.train("cosine", 5, 0.99, name="it was killed", status="KILLED")
    runs.train("wsd", 0, 0.99, name="it is running", status="RUNNING")
    runs.train("constant", 0, 0.9, name="it is longer", steps=400)
    runs.add("it lacks everything", {})
    runs.add("it lacks the metric", {"train/loss": [(0, 1.0), (1, 0.5)]}, tags={"schedule": "constant", "seed": "1"})
    runs.add("one row", {"val/acc": [(0, 0.5)]}, tags={"schedule": "constant"})
    runs.add("bad numbers", {"val/acc": [(0, math.nan), (1, 0.4), (2, math.inf)]}, tags={"schedule": "constant"})
    foreign: dict[str, list[tuple[int, float]]] = {
        "train_loss_step": [(i, 1 / (i + 1)) for i in range(0, 50, 10)],
        "val_loss": [(24, 0.6), (49, 0.5)],
        "val_acc": [(24, 0.7), (49, 0.8)],
        "test_acc": [(50, 0.75)],
        "lr-SGD": [(i, 0.1) for i in range(0, 50, 10)],
        "epoch": [(24, 0.0), (49, 1.0)],
    }
    runs.add("plain MLFlowLogger", foreign, params={"batch_size": "32", "lr": "0.1"})
    runs.add("a range test", {"val/acc": [(0, 0.99)]}, tags={"job": "find_lr", "schedule": "cosine"})
    done = comparison(target="val/acc>=0.9", log_run=False)
    text, rows = page(done), {row["name"]: row for row in csv_rows(done)}
    for name in [
        *("it diverged", "it failed", "it was killed", "it is running", "it is longer", "it lacks everything"),
        *("it lacks the metric", "one row", "bad numbers", "plain MLFlowLogger"),
    ]:
        assert name in text
        assert name in rows
    assert "a range test</a>: a run of the job &#39;find_lr&#39;, not a training" in text
    assert "a range test" not in rows
    shown = table(done)
    assert shown["cosine"]["n"] == "3 (3 of 6 runs)"
    assert shown["cosine"]["lost runs"] == "1 diverged, 1 failed, 1 killed"
    assert (shown["wsd"]["n"], shown["wsd"]["best val/acc"]) == ("0 (0 of 1 runs)", "–")
    assert shown["constant"]["lost runs"] == "1 without the metric"
    assert (rows["it diverged"]["state"], rows["it diverged"]["counted"]) == ("diverged", "false")
    assert (rows["plain MLFlowLogger"]["best"], rows["plain MLFlowLogger"]["test"]) == ("0.8", "0.75")
    assert rows["plain MLFlowLogger"]["group"] == "(no schedule)"
    assert rows["bad numbers"]["best"] == "0.4"
    assert "nan or infinite: val/acc (2)" in text
    assert "diverged at step 7" in text
    assert "read by other names: lr-SGD, test_acc" not in text
    assert "read by other names: lr-SGD, train_loss_step, val_acc, val_loss" in text
    assert "constant: the runs have" in text
    assert [g.name for g in done.compared.groups][-1] == "wsd"


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


def test_the_name_of_a_group_is_a_rounded_rate(runs: Runs, comparison: Compare) -> None:
    for lr in (0.010000000000000002, 0.01, 3.0000000000000004e-05):
        runs.train("cosine", 0, 0.9, lr=lr)
    runs.train("cosine", 0, 0.9, lr=0.1, params={"version": "1.10"})
    assert set(table(comparison(by=["optimizer.lr"], log_run=False))) == {"0.01", "3e-05", "0.1"}
    assert "(no version)" in (names := set(table(comparison(by=["version"], log_run=False))))
    assert "1.10" in names


def test_what_some_run_has_or_nobody_asked_for_is_no_error(runs: Runs, comparison: Compare) -> None:
    runs.add("other", {"val/acc": [(0, 0.5)]})
    assert set(table(comparison(log_run=False))) == {"(no schedule)"}
    assert set(table(comparison(by_varied=["callbacks"], log_run=False))) == {"(no callbacks)"}
    runs.train("cosine", 0, 0.9)
    assert set(table(comparison(by=["schedule"], log_run=False))) == {"(no schedule)", "cosine"}


def test_lengths_that_differ_are_said(runs: Runs, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9, steps=40)
    runs.train("constant", 0, 0.9, steps=80)
    (warning,) = [w for w in comparison(log_run=False).compared.warnings if "different lengths" in w]
    assert "40 to 80 steps" in warning


def test_what_else_varies_in_a_group_is_said_and_grouping_by_it_helps(runs: Runs, comparison: Compare) -> None:
    for lr in (0.01, 0.1):
        for seed in range(2):
            runs.train("cosine", seed, 0.9 + lr / 2, lr=lr)
            runs.train("constant", seed, 0.8 + lr, lr=lr)
    mixed = comparison(log_run=False, draw=True)
    assert any("optimizer.lr (2 values)" in warning for warning in mixed.compared.warnings)
    assert table(mixed)["cosine"]["n"] == "2 (4 of 4 runs)"
    assert (mixed.folder / "sensitivity.png").exists()
    apart = comparison(by=["schedule", "optimizer.lr"], log_run=False, draw=True)
    assert [group.name for group in apart.compared.groups] == [
        *("cosine, lr=0.1", "cosine, lr=0.01", "constant, lr=0.1", "constant, lr=0.01")
    ]
    assert not apart.compared.warnings
    assert (apart.folder / "sensitivity.png").exists()
    assert apart.compared.varying == {
        "optimizer.lr": ["0.01", "0.1"],
        "schedule.name": ["constant", "cosine"],
        "seed": ["0", "1"],
    }


FOLDER = {"data.name": "image_folder", "data.root": "/data/images"}


@pytest.mark.parametrize(
    ("other", "keys", "said"),
    [
        (FOLDER, "data.name", "2 data sets, digits (18 runs), image_folder (17 runs)"),
        (
            {"data.name": "digits", "data.root": "/a $1 'b'"},
            "data.root",
            "2 data sets, digits (18 runs), digits data.root=/a $1 'b' (17 runs)",
        ),
    ],
)
def test_runs_of_several_data_sets_are_apart_and_one_can_be_compared_alone(
    runs: Runs, comparison: Compare, other: dict[str, str], keys: str, said: str
) -> None:
    for schedule, rate, seed in itertools.product(
        ("cosine", "constant", "wsd"), (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0,)
    ):
        runs.train(schedule, seed, 0.95 - rate / 10, lr=rate, params={"data.name": "digits"})
        lost = {"status": "FAILED"} if (schedule, rate, seed) == ("wsd", 0.1, 0) else {}
        runs.train(schedule, seed, 0.2, lr=rate, params=other, **lost)
    done = comparison(log_run=False)
    headline = wording.headline(done.compared)
    assert headline.startswith(f"The runs are of {said}: they are grouped by data set as well")
    of_the_other = said.split(", ")[-1].removesuffix(" (17 runs)")
    names = [f"{schedule}, {one}" for one in ("digits", of_the_other) for schedule in ("constant", "cosine", "wsd")]
    assert sorted(group.name for group in done.compared.groups) == sorted(names)
    assert sorted(text.split(": ")[0] for text in done.good_lrs) == sorted(names)
    (option,) = re.findall(r'--filter (".*") \(', headline)
    (by,) = re.findall(r"--by (\S+)\)\.", headline)
    assert by == f"{keys},schedule"
    given = subprocess.run(["bash", "-c", f"printf %s {option}"], capture_output=True, text=True, check=True).stdout
    one = comparison(log_run=False, filter_string=given)
    assert sum(len(group.runs) for group in one.compared.groups) == 18
    assert not one.compared.data_sets
    assert {re.sub("^([a-z]+), .*: ", r"\1: ", text) for text in done.good_lrs} >= {*one.good_lrs}
    assert not comparison(log_run=False, by=by.split(",")).compared.data_sets


@pytest.fixture
def two_data_sets(sweep: Runs) -> Runs:
    """The sweep, which does not say its data set, on digits, and on a harder one that takes twice the steps."""
    for schedule, values in BEST.items():
        for seed, best in enumerate(values):
            for name, value in (("digits", best), ("image_folder", (1.2 if schedule == "wsd" else 1.0) - best)):
                sweep.train(schedule, seed, value, steps=40 + 40 * (name != "digits"), params={"data.name": name})
    return sweep


def test_no_table_or_picture_mixes_data_sets(two_data_sets: Runs, comparison: Compare) -> None:
    done = comparison(log_run=False, target="val/acc>=0.945")
    shown = table(done)
    assert [*shown] == [group.name for group in done.compared.groups]
    for schedule, values in BEST.items():
        for of in ("digits", "(no data set)"):
            assert shown[f"{schedule}, {of}"]["best val/acc"].startswith(f"{np.mean(values):.4f}")
            assert shown[f"{schedule}, {of}"]["steps"] == "40"
        hard = np.mean([(1.2 if schedule == "wsd" else 1.0) - best for best in values])
        assert shown[f"{schedule}, image_folder"]["best val/acc"].startswith(f"{hard:.4f}")
        assert shown[f"{schedule}, image_folder"]["steps"] == "80"
    assert {cells["n"] for cells in shown.values()} == {"6"}
    assert not done.compared.warnings  # that data sets take their own steps is nothing to warn of
    assert [group.data_set for group in done.compared.groups] == sorted(
        group.data_set for group in done.compared.groups
    )
    assert {row["group"] for row in csv_rows(done)} == {*shown}
    looks = styles(shown)
    cost = plot_cost(done.compared, looks)
    assert cost is not None
    fronts = [trace.by_axis["step"].x.tolist() for trace in cost.traces if trace.kind == "front"]
    assert fronts == [[40.0], [40.0], [80.0]]
    means = plot_seed_means(done.compared, looks)
    assert means is not None
    assert {trace.name for trace in means.traces} == {*shown}


def test_each_data_set_is_compared_by_itself(two_data_sets: Runs, comparison: Compare) -> None:
    done = comparison(log_run=False)
    alone = comparison(log_run=False, filter_string="params.`data.name` = 'image_folder'").compared
    own = [c for c in done.compared.differences if c.better.endswith(", image_folder")]
    assert len(done.compared.differences) == 9
    assert [(c.better.split(",")[0], c.worse.split(",")[0]) for c in own] == [
        (c.better, c.worse) for c in alone.differences
    ]
    assert [(c.p, c.adjusted, c.seeds_needed, c.n) for c in own] == [
        (c.p, c.adjusted, c.seeds_needed, c.n) for c in alone.differences
    ]
    said = wording.findings(done.compared)
    assert [text.split(":")[0] for text in said[1:]] == ["(no data set)", "digits", "image_folder"]
    assert said[3].replace(", image_folder", "") == f"image_folder: {wording.headline(alone)}"
    against = comparison(log_run=False, against="constant").compared
    assert {c.seeds_needed for c in against.differences} == {7}
    assert {name for c in against.differences for name in (c.better, c.worse) if name.startswith("constant")} == {
        *("constant, digits", "constant, image_folder", "constant, (no data set)")
    }
    assert len(against.differences) == 6


def test_a_multirun_over_data_sets_is_no_comparison_of_them(runs: Runs, comparison: Compare) -> None:
    for seed, (name, best) in itertools.product(range(6), (("digits", 0.9), ("mnist", 0.99))):
        for schedule in ("cosine", "constant"):
            ahead = 0.005 * (schedule == "constant")
            runs.train(schedule, seed, best + ahead - seed / 1000, params={"data.name": name})
    varied = comparison(log_run=False, by_varied=["data", "schedule"]).compared
    assert {(c.better, c.worse) for c in varied.differences} == {
        ("constant, digits", "cosine, digits"),
        ("constant, mnist", "cosine, mnist"),
    }
    only = comparison(log_run=False, by_varied=["data"], filter_string="tags.schedule = 'cosine'").compared
    assert [group.name for group in only.groups] == ["digits", "mnist"]
    assert not only.differences
    asked = comparison(log_run=False, by=["data"], filter_string="tags.schedule = 'cosine'").compared
    assert [(c.better, c.worse) for c in asked.differences] == [("mnist", "digits")]


def test_no_two_data_sets_have_one_name(runs: Runs, comparison: Compare) -> None:
    a, t = {"data.root": "/a"}, {"data.test": "/t"}
    for place in (a, {"data.path": "hub/b"}, a | t, t, {}):
        runs.train("cosine", 0, 0.9, params=place)
    for by in ({}, {"by_varied": ["data.root", "schedule"]}):
        names = {group.name: len(group.runs) for group in comparison(log_run=False, **by).compared.groups}
        assert names == {
            "cosine, data.root=/a": 1,
            "cosine, data.path=hub/b": 1,
            "cosine, data.root=/a data.test=/t": 1,
            "cosine, data.test=/t": 1,
            "cosine, (no data set)": 1,
        }


def test_folders_that_all_paths_share_are_in_no_name(runs: Runs, comparison: Compare) -> None:
    for root in ("/data/images/birds", "/data/images/bees/wild"):
        runs.train("cosine", 0, 0.9, params={"data.name": "image_folder", "data.root": root})
    done = comparison(log_run=False)
    assert {*table(done)} == {f"cosine, image_folder data.root=…/{root}" for root in ("birds", "bees/wild")}
    assert "image_folder data.root=/data/images/birds (1 run)" in wording.headline(done.compared)


def test_a_run_that_only_a_time_to_the_target_is_over_is_apart_too(runs: Runs, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9, params={"data.name": "digits"})
    runs.train("cosine", 1, 0.9, params={"data.name": "mnist"}, status="KILLED")
    assert [*table(comparison(log_run=False))] == ["cosine"]
    assert [*table(comparison(log_run=False, target="val/acc>=0.5"))] == ["cosine, digits", "cosine, mnist"]


def test_a_data_set_without_the_group_chosen_beforehand_says_so(runs: Runs, comparison: Compare) -> None:
    for schedule, name in (("cosine", "digits"), ("constant", "digits"), ("cosine", "mnist"), ("wsd", "mnist")):
        runs.train(schedule, 0, 0.9, params={"data.name": name})
    digits, mnist = wording.findings(comparison(log_run=False, against="constant").compared)[1:]
    assert "The group to compare it with has no runs here." in mnist
    assert "no runs here" not in digits


def test_a_lower_loss_decides_where_there_is_no_accuracy(runs: Runs, comparison: Compare) -> None:
    runs.add("a", {"val/loss": [(0, 0.5), (1, 0.3), (2, 0.4)]}, tags={"schedule": "a", "seed": "0"})
    runs.add("b", {"val/loss": [(0, 0.5), (1, 0.2)]}, tags={"schedule": "b", "seed": "0"})
    done = comparison(log_run=False)
    assert done.compared.objective == "val/loss"
    assert [group.name for group in done.compared.groups] == ["b", "a"]
    assert table(done)["a"]["best val/loss"] == "0.3000"
    assert done.compared.differences[0].difference == pytest.approx(0.1)


def test_without_any_validation_metric_the_runs_are_listed(runs: Runs, comparison: Compare) -> None:
    runs.add("a", {"other": [(0, 1.0)]})
    done = comparison(log_run=False)
    assert "there is nothing to rank" in page(done)
    assert len(csv_rows(done)) == 1


def test_a_single_run_is_a_report_without_a_winner(runs: Runs, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9)
    done = comparison(log_run=False)
    assert "There is no other group to compare it with." in page(done)
    assert table(done)["cosine"]["best val/acc"] == "0.9000"


def test_the_comparison_is_a_run_of_its_own_that_is_never_compared(
    sweep: Runs, store: Store, comparison: Compare
) -> None:
    first = comparison()
    assert first.address is not None
    run_id = first.address.split("/runs/")[1].split("/")[0]
    run = store.run(run_id)
    assert (run.info.status, run.data.tags["job"], run.data.metrics) == ("FINISHED", "compare", {})
    kept = {file.path for file in store.call("list_artifacts", run_id)}
    assert kept == {path.name for path in first.files}
    second = comparison(log_run=False)
    assert len(csv_rows(second)) == 18
    assert "a run of the job &#39;compare&#39;" in page(second)
    assert wording.headline(first.compared) == wording.headline(second.compared)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"experiments": ["nope"]}, r"^--experiment: .* has no experiment 'nope'\. It has: Default, empty, exp\."),
        ({"experiments": ["empty"]}, r"experiment empty of .* has no training run yet\. Train some"),
        ({"filter_string": "schedule ="}, r"^--filter: 'schedule =' is not understood: .*Write it in MLflow's"),
        ({"filter_string": "tags.schedule = 'x'"}, r"^--filter: no training run of .* matches"),
        ({"target": "val/acc"}, r"^--target: target must be a metric, one of"),
        ({"target": "val/f1>=0.9"}, r"^--target: no run has a metric 'val/f1'\. They have: lr/group0, .*val/acc"),
        ({"metric": "val/f1"}, r"^--metric: no run has a metric 'val/f1'\. They have: lr/group0"),
        (
            {"by": ["seed", "schedul"]},
            r"^--by: no run has a tag or param 'schedul'\. Did you mean 'schedule'\? Tags: schedule, seed\. "
            r"Params: data\.batch_size, .*trainer\.max_epochs\.$",
        ),
        ({"by": ["data.batchsize"]}, r"no run has .* 'data.batchsize'\. Did you mean 'data.batch_size'\?"),
        ({"by": ["zzz"]}, r"no run has a tag or param 'zzz'\. Tags: "),
        ({"against": "wsd"}, r"^--against: there is no group 'wsd'\. Groups: cosine\."),
    ],
)
def test_bad_input_is_one_message(runs: Runs, comparison: Compare, asked: dict[str, Any], message: str) -> None:
    runs.train("cosine", 0, 0.9)
    runs.store.experiment_id("empty")
    with pytest.raises(CompareError) as caught:
        comparison(log_run=False, **asked)
    assert re.search(message, caught.value.on_the_command_line)
    assert "--" not in str(caught.value)[:2]


def test_a_metric_whose_direction_is_not_known_is_asked_for(
    runs: Runs, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, score in enumerate((0.5, 0.7)):
        runs.add(f"s{seed}", {"val/score": [(0, score), (1, 0.6)]}, tags={"schedule": f"s{seed}", "seed": "0"})
    asked: dict[str, Any] = {"experiments": ["exp"], "metric": "val/score", "log_run": False}
    assert app_compare.run(store.root, None, tmp_path / "out", **asked) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --metric: the name 'val/score' does not tell whether a higher value is better.")
    assert "--higher-is-better or --lower-is-better" in said
    for higher, first in ((True, "s1 has the best mean"), (False, "s0 has the best mean")):
        assert app_compare.run(store.root, None, tmp_path / "out", higher_is_better=higher, **asked) == 0
        assert first in capsys.readouterr().out


def test_after_a_sweep_no_message_names_an_option_that_nobody_gave(
    runs: Runs, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.train("cosine", 0, 0.9)
    asked: dict[str, Any] = {"experiments": ["exp"], "filter_string": "tags.sweep = 's1'", "after_sweep": True}
    assert app_compare.run(store.root, None, tmp_path / "out", **asked) == 2
    said = capsys.readouterr().err
    assert said.startswith("the runs are not compared: no training run of experiment exp")
    assert "--" not in said


def test_the_command_prints_tables_and_paths(
    sweep: Runs, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert app_compare.run(store.root, None, tmp_path / "out", experiments=["exp"], by=["schedule"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out[: out.index("who won")].splitlines())) <= 100
    assert "No winner can be named. cosine has the best mean val/acc" in out
    reports = [line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("report:")]
    assert [Path(path).exists() for path in reports] == [True]
    assert app_compare.run(store.root, None, tmp_path / "out", experiments=["nope"], by=["schedule"]) == 2
    assert capsys.readouterr().err.startswith("error: --experiment: ")
    assert app_compare.run(store.root, None, tmp_path / "out", by=[]) == 2
    assert app_compare.run(store.root, "http://127.0.0.1:1", tmp_path / "out", by=["schedule"]) == 1
    assert "the store does not answer" in capsys.readouterr().err


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


def test_the_default_experiment_or_the_only_one(runs: Runs, store: Store, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9)
    assert comparison(experiments=[], log_run=False).title.startswith("exp: 1 runs")
    Runs(store, "other").train("cosine", 0, 0.9)
    with pytest.raises(CompareError, match=r"^choose one of exp, other"):
        comparison(experiments=[])
    Runs(store, "lr_lightning").train("cosine", 0, 0.9)
    assert comparison(experiments=[], log_run=False).title.startswith("lr_lightning: 1 runs")
