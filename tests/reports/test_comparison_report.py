"""A comparison from a store to its files: every number again by hand, and every kind of run there is."""

import itertools
import math
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lr_lightning.app.commands import compare as app_compare
from lr_lightning.errors import CompareError, Rejected, TrackingError
from lr_lightning.reports import comparison_report, wording
from lr_lightning.tracking import Store
from lr_lightning.tracking.database import SQLFailed

from .conftest import BEST, Compare, Runs, csv_rows, page, table


def database(store: Store, query: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{store.root}/mlflow.db?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_comparison_that_is_not_logged_imports_neither_mlflow_nor_hydra(sweep: Runs, store: Store) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom lr_lightning.app.commands.compare import run\n"
        f"status = run(Path({str(store.root)!r}), None, Path({str(store.root / 'out')!r}), log_run=False)\n"
        "print(status, *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, *loaded = done.stderr.split()
    assert (status, "report.html" in done.stdout) == ("0", True)
    assert "sqlalchemy" in loaded
    assert not {"mlflow", "hydra", "lightning", "torch", "pandas"} & {*loaded}


def test_metrics_that_nobody_asked_for_do_not_split_the_reading(
    runs: Runs, comparison: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        runs.train("cosine", seed, 0.9, rows={f"trial_{seed}/loss": [(0, 1.0)]})
    asked: list[int] = []
    read_curves = comparison_report.read_curves
    monkeypatch.setattr(
        comparison_report,
        "read_curves",
        lambda store, some, keys: (asked.append(len(some)), read_curves(store, some, keys)),
    )
    comparison(log_run=False)
    assert asked == [4]


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


def test_what_some_run_has_or_nobody_asked_for_is_no_error(runs: Runs, comparison: Compare) -> None:
    runs.add("other", {"val/acc": [(0, 0.5)]})
    assert set(table(comparison(log_run=False))) == {"(no schedule)"}
    assert set(table(comparison(by_varied=["callbacks"], log_run=False))) == {"(no callbacks)"}
    runs.train("cosine", 0, 0.9)
    assert set(table(comparison(by=["schedule"], log_run=False))) == {"(no schedule)", "cosine"}


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


def test_the_filter_is_blamed_only_for_its_own_faults(
    runs: Runs, store: Store, comparison: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.train("cosine", 0, 0.9)
    call = Store.call

    def fail(error: Exception) -> None:
        def answer(self: Store, method: str, /, *args: Any, **kwargs: Any) -> Any:
            if method == "search_runs":
                raise error
            return call(self, method, *args, **kwargs)

        monkeypatch.setattr(Store, "call", answer)

    def differ(*args: object) -> None:
        raise SQLFailed("as on a server")

    monkeypatch.setattr("lr_lightning.tracking.database.read_runs", differ)
    for error, filter_string in (
        (TrackingError("tracking store x: it asks for a user and a password"), ""),
        (TrackingError("tracking store x: it asks for a user and a password"), "tags.schedule = 'cosine'"),
        (Rejected("max_results is too large"), ""),
    ):
        fail(error)
        with pytest.raises(TrackingError, match="tracking store") as caught:
            comparison(filter_string=filter_string, log_run=False)
        assert str(error) in str(caught.value)
        assert "is not understood" not in str(caught.value)


def test_a_store_without_an_experiment_asks_for_a_training(store: Store, comparison: Compare) -> None:
    store.call("delete_experiment", "0")
    with pytest.raises(CompareError, match=r"has no runs yet\. Train some first: python scripts/train\.py") as caught:
        comparison(experiments=[], log_run=False)
    assert caught.value.option == ""


def test_runs_of_lr_effects_are_left_out_and_a_filter_lets_them_in(runs: Runs, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9)
    runs.train("cosine", 1, 0.9, tags={"study": "lr_effects"})
    runs.train("cosine", 2, 0.9, tags={"study": "a user's own"})
    done = comparison(log_run=False)
    assert "a run of experiment=lr_effects. Such runs are included only with --filter" in page(done)
    assert len(csv_rows(done)) == 2
    assert len(csv_rows(comparison(log_run=False, filter_string="tags.study = 'lr_effects'"))) == 1


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


def test_the_default_experiment_or_the_only_one(runs: Runs, store: Store, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9)
    assert comparison(experiments=[], log_run=False).title.startswith("exp: 1 runs")
    Runs(store, "other").train("cosine", 0, 0.9)
    with pytest.raises(CompareError, match=r"^choose one of exp, other"):
        comparison(experiments=[])
    Runs(store, "lr_lightning").train("cosine", 0, 0.9)
    assert comparison(experiments=[], log_run=False).title.startswith("lr_lightning: 1 runs")
