"""Groups of runs, what weakens their comparison, and data sets that must not be mixed."""

import itertools
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from lr_lightning._plotting import styles
from lr_lightning.reports import wording
from lr_lightning.reports.plots import plot_cost, plot_forks, plot_run_curves, plot_seed_means
from lr_lightning.reports.run_metrics import group_name

from .conftest import BEST, Compare, Runs, csv_rows, table


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
    assert any("also differ in optimizer.lr (0.01, 0.1)." in warning for warning in mixed.compared.warnings)
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


def test_the_note_on_mixed_runs_names_the_model_first_and_only_once(runs: Runs, comparison: Compare) -> None:
    for seed, (model, width) in enumerate([("small_cnn", "8"), ("resnet9", "64"), ("resnet9", "64")]):
        own = {"model.name": model, "model.kwargs.width": width, "data.aug_a": width, "data.aug_b": width}
        runs.train("cosine", seed, 0.9, params={**own, **{f"a.key{i}": width for i in range(9)}})
    (warning,) = [w for w in comparison(log_run=False).compared.warnings if "also differ" in w]
    assert warning.startswith("Runs of one group also differ in model (resnet9, small_cnn), a.key0 (64, 8), ")
    assert "6 more. Their mean" in warning
    assert "model.kwargs" not in warning


def test_groups_are_named_with_four_digits_unless_that_mixes_them(runs: Runs, comparison: Compare) -> None:
    for lr in (0.06796580687702834, 10000000000.0, 0.91141):
        runs.train("cosine", 0, 0.9, lr=lr)
    by = ["optimizer.lr"]
    assert {g.name for g in comparison(log_run=False, by=by).compared.groups} == {"lr=0.06797", "lr=1e+10", "lr=0.9114"}
    runs.train("cosine", 0, 0.9, lr=0.91142)
    assert "lr=0.91141" in {g.name for g in comparison(log_run=False, by=by).compared.groups}


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


@pytest.mark.parametrize(
    ("tags", "by", "name"),
    [
        ({"trial": "1"}, ["trial"], "trial=1"),
        ({"schedule": "cosine", "trial": "1"}, ["schedule", "trial"], "cosine, trial=1"),
        ({"optimizer.nesterov": "true"}, ["optimizer.nesterov"], "nesterov=true"),
        ({"schedule.warmup": "5%"}, ["schedule.warmup"], "warmup=5%"),
        ({}, ["trial"], "(no trial)"),
    ],
)
def test_a_value_that_says_nothing_alone_is_named_with_its_key(tags: dict[str, str], by: list[str], name: str) -> None:
    assert group_name(SimpleNamespace(tags=tags, params={}), by) == name  # type: ignore[arg-type]


def forked(trunk: str, step: int) -> dict[str, str]:
    return {"fork.trunk": trunk, "fork.run": trunk, "fork.step": str(step), "fork.point": f"{step // 10}%"}


def test_forks_of_one_run_are_no_independent_seeds_and_tell_what_they_cost(runs: Runs, comparison: Compare) -> None:
    trunk = runs.train("constant", 0, 0.9, steps=1000)
    for seed in (0, 1):
        origin = trunk if seed == 0 else "elsewhere"
        for step, best in ((500, 0.93), (1000, 0.95)):
            runs.train("cooldown", seed, best - seed / 100, steps=step * 6 // 5, tags=forked(origin, step))
    done = comparison(by=["schedule"], log_run=False)
    assert table(done)["cooldown"]["n"] == "2 (4 of 4 runs)"
    texts = {warning for warning in done.compared.warnings if "forks" in warning}
    assert texts == {
        f"2 runs are forks of {name}: they share its steps, so they are no independent seeds and count as one. "
        "Together they took 1,300 steps, 1,000 before the forks and 300 after them; trained apart they would have "
        f"taken {apart} steps."
        for name, apart in (("constant seed=0", "2,800"), ("elsewhere", "1,800"))
    }


def test_forks_without_a_seed_count_as_one_too(runs: Runs, comparison: Compare) -> None:
    for step in (10, 20):
        runs.add("a", {"val/acc": [(39, 0.9)]}, tags={"schedule": "a", **forked("x", step)})
    assert table(comparison(log_run=False))["a"]["n"] == "1 (2 of 2 runs)"


def test_the_best_of_a_fork_is_of_its_own_steps_and_the_picture_shows_both(runs: Runs, comparison: Compare) -> None:
    curve = [(9, 0.5), (19, 0.99), (29, 0.6), (39, 0.7)]
    for step, end in ((20, 40), (10, 20)):
        rows = {"val/acc": [row for row in curve if row[0] < end], "summary/steps": [(0, end)]}
        runs.add(f"at {step}", rows, tags={"schedule": f"at {step}", **forked("x", step)})
    compared = comparison(log_run=False).compared
    assert {group.name: group.runs[0].best for group in compared.groups} == {"at 20": 0.7, "at 10": 0.99}
    plot = plot_forks(compared, styles(group.name for group in compared.groups))
    assert plot is not None
    drawn = {(trace.name, trace.kind): trace.by_axis[""] for trace in plot.traces}
    assert drawn["before the forks", "curve"].x.tolist() == [10, 20]
    assert drawn["at 20", "curve"].x.tolist() == [30, 40]
    assert drawn["at 10", "curve"].y.tolist() == [0.99]
    assert drawn["best of each fork", "front"].x.tolist() == [20, 40]
    assert drawn["best of each fork", "front"].y.tolist() == [0.99, 0.7]


def test_what_a_cooldown_would_reach_is_drawn_dashed_beside_the_loss(runs: Runs, comparison: Compare) -> None:
    runs.train("constant", 0, 0.9, rows={"val/loss_if_cooled": [(9, 0.4), (19, 0.3), (29, 0.2), (39, 0.1)]})
    compared = comparison(log_run=False).compared
    plot = plot_run_curves(compared, styles(group.name for group in compared.groups))
    assert plot is not None
    (dashed,) = [trace for trace in plot.traces if trace.name.endswith("if cooled")]
    assert (plot.panels[dashed.panel], dashed.style.dash) == ("val/loss", "dash")
    assert dashed.by_axis["step"].y.tolist() == [0.4, 0.3, 0.2, 0.1]
    assert "Dashed" in plot.note
