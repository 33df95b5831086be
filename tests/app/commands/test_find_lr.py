"""The search for a rate through the app: what it sets, what it leaves alone, what it records, and bad keys."""

import csv
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from omegaconf import DictConfig

from lr_lightning.app import build
from lr_lightning.app.commands.find_lr import run_finder
from lr_lightning.app.composition import validate
from lr_lightning.app.run.train import train
from lr_lightning.errors import ConfigError
from lr_lightning.lr_finder import results as result_module
from lr_lightning.lr_finder.curve import Abstention, Cause, Reading
from lr_lightning.schedules import Linear
from tests.leftovers import untimed, values, weights

Compose = Callable[..., DictConfig]
SMALL = [
    "test=false",
    "tracking=csv",
    "model.kwargs.width=4",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.progress=none",
    "trainer.deterministic=false",  # a global switch
]
LR, BASE, TOP = 0.0625, 0.03125, 0.25


def run(composed: Compose, *overrides: str) -> tuple[Path, dict[str, list[float]]]:
    """The folder of a run and the values of every metric, in order."""
    result = train(validate(composed(*SMALL, *overrides)))
    assert result.output_dir is not None
    return result.output_dir, values(result.output_dir)


def params(folder: Path) -> dict[str, str]:
    return {str(k): str(v) for k, v in yaml.safe_load((folder / "params.yaml").read_text()).items()}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every curve says the same: here it matters where the answer goes, not which it is."""

    def reading(lrs: Any, runs: Any, **_: Any) -> Reading:
        import numpy as np

        return Reading(LR, None, (LR / 2, LR * 2), BASE, TOP, np.asarray(runs[0], dtype=float), {"smith": TOP})

    monkeypatch.setattr(result_module, "read_curve", reading)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curve says anything."""

    def reading(lrs: Any, runs: Any, **_: Any) -> Reading:
        import numpy as np

        return Reading(None, Abstention(Cause.FLAT), None, None, None, np.asarray(runs[0], dtype=float), {})

    monkeypatch.setattr(result_module, "read_curve", reading)


@pytest.mark.usefixtures("known")
def test_a_found_rate_is_the_peak_of_the_schedule(composed: Compose) -> None:
    _, found = run(composed, "finder=range_test", "schedule=linear", "schedule.warmup=0")
    steps = len(found["lr/group0"])
    assert found["lr/group0"] == [LR * factor for factor in Linear().factors(steps)]
    assert "lr/group1" not in found  # that of the group without weight decay, which is the same


@pytest.mark.usefixtures("known")
def test_cyclical_bounds_are_both_found(composed: Compose) -> None:
    folder, found = run(composed, "finder=range_test", "schedule=triangular", "schedule.up=5")
    assert found["lr/group0"][0] == BASE
    assert found["lr/group0"][5] == TOP
    assert found["lr/group0"][10] == BASE
    recorded = params(folder)
    assert [float(recorded[f"schedule.{name}"]) for name in ("base_lr", "max_lr")] == [BASE, TOP]


@pytest.mark.usefixtures("known")
def test_nothing_recorded_is_stale(composed: Compose) -> None:
    folder, _ = run(composed, "finder=range_test")
    recorded = params(folder)
    assert float(recorded["optimizer.lr"]) == LR
    assert float(recorded["lr_finder.lr"]) == LR
    assert "schedule.base_lr" not in recorded
    assert "0.1" not in {value for key, value in recorded.items() if key.startswith(("optimizer", "schedule"))}
    assert (folder / "artifacts" / "range_test" / "curve.png").stat().st_size > 10_000
    lines = (folder / "artifacts" / "range_test" / "curve.csv").read_text().splitlines()
    assert lines[0] == "lr,loss,smoothed,loss_0"
    assert lines[1].startswith("1e-06,")


@pytest.mark.usefixtures("unknown")
def test_without_a_suggestion_the_configured_rate_holds(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    folder, found = run(composed, "finder=range_test", "schedule=constant", "optimizer.lr=0.02")
    assert set(found["lr/group0"]) == {0.02}
    assert float(params(folder)["optimizer.lr"]) == 0.02
    out = capsys.readouterr().out
    assert "The curve is flat: nothing exceeds its noise. Raise max_lr" in out
    assert "peak lr of 0.02 (as configured)" in out


@pytest.mark.parametrize(
    ("finder", "metric"),
    [*product(["range_test", "lr_grid"], ["loss", "accuracy"]), ("race", "val_loss")],
)
def test_a_search_that_applies_nothing_leaves_no_trace(composed: Compose, finder: str, metric: str) -> None:
    data = ["data.flip=true", "model.kwargs.dropout=0.2", "optimizer=adamw"]
    data += ["trainer.max_epochs=5"] if finder == "race" else []
    few = ["finder.budget=60"] if finder == "race" else ["finder.num_steps=10"]
    few += ["finder.apply=false", f"finder.metric={metric}"]
    few += ["finder.num_lrs=3"] if finder == "lr_grid" else []
    one, _ = run(composed, *data, f"finder={finder}", *few)
    two, _ = run(composed, *data)
    assert untimed(one) == untimed(two)
    mine, other = weights(one), weights(two)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_run_that_goes_on_from_its_race_is_the_run_of_that_lr(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_race.rank_zero_info", said.append)
    data = ["data.flip=true", "model.kwargs.dropout=0.2", "optimizer=adamw", "schedule=wsd", "schedule.warmup=4"]
    data += ["trainer.max_epochs=6", "callbacks.cost=null", "callbacks.cooldown_preview=false"]
    one, _ = run(composed, *data, "finder=race", "finder.keep=true")
    assert [text.rpartition("It took ")[2] for text in said] == ["5 updates from the race."]
    two, _ = run(composed, *data, f"optimizer.lr={params(one)['optimizer.lr']}")
    assert untimed(one) == untimed(two)
    mine, other = weights(one), weights(two)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_multipliers_are_ratios_to_the_optimizers_rate(composed: Compose) -> None:
    config = validate(composed("finder=range_test", "experiment=smith"))
    assert config.optimizer.multipliers
    from lr_lightning.callbacks.found_lr import configured_lr, lr_ratios

    data = build.build_data(config)
    data.prepare()
    module = build.build_module(config.module, config.optimizer, build.build_net(config.model, data), data)
    trainer = type("T", (), {"optimizers": [module.configure_optimizers()], "lr_scheduler_configs": []})()
    reference = configured_lr(trainer, module)
    assert reference == config.optimizer.lr
    assert sorted(set(lr_ratios(trainer, reference))) == [1.0, 2.0]


def test_a_grid_takes_its_best_rate(composed: Compose) -> None:
    grid = ["finder=lr_grid", "finder.min_lr=1e-5", "finder.max_lr=1000", "finder.num_lrs=5", "finder.num_steps=30"]
    folder, found = run(composed, *grid, "schedule=constant")
    assert set(found["lr/group0"]) == {0.1}  # less learns next to nothing in 30 steps, more diverges
    with (folder / "artifacts" / "lr_grid" / "losses.csv").open() as file:
        rows = {float(row["lr"]): float(row["loss"]) for row in csv.DictReader(file)}
    assert list(rows) == pytest.approx([1e-5, 1e-3, 0.1, 10.0, 1000.0])
    assert min(rows, key=lambda lr: rows[lr] if rows[lr] == rows[lr] else 1e9) == 0.1


@pytest.mark.usefixtures("known")
def test_find_searches_only(composed: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_finder(validate(composed(*SMALL, "finder=range_test")), ["optimizer=adam", "finder=range_test"])
    assert result.output_dir is not None
    assert result.summary == {"suggested_lr": LR, "base_lr": BASE, "max_lr": TOP}
    assert not list(result.output_dir.rglob("*.ckpt"))
    found = values(result.output_dir)
    assert found["summary/suggested_lr"] == [LR]
    assert "train/loss" not in found
    assert "val/loss" not in found
    recorded = params(result.output_dir)
    assert (recorded["optimizer.lr"], recorded["finder.apply"], recorded["trainer.max_steps"]) == ("0.1", "False", "-1")
    tags = json.loads((result.output_dir / "run.json").read_text())["tags"]
    assert tags["job"] == "find_lr"
    assert not {"schedule", "mlflow.runColor", "checkpoint.best"} & tags.keys()
    out = capsys.readouterr().out
    for part in ("suggestion", "0.0625", "0.031 to 0.12", "for comparison: smith", "curve.png", "curve.csv"):
        assert part in out
    assert "train.py optimizer=adam optimizer.lr=0.0625" in out
    assert "schedule=triangular schedule.base_lr=0.0312 schedule.max_lr=0.25" in out


@pytest.mark.parametrize(("progress", "lines"), [("lines", 9), ("none", 0)])
def test_a_search_without_a_terminal_says_how_far_it_is(
    composed: Compose,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    progress: str,
    lines: int,
) -> None:
    monkeypatch.setattr("lr_lightning.callbacks.base_finder._SECONDS", 0.0)
    search = ["finder=range_test", "finder.num_steps=10", "finder.max_lr=1e-3", "finder.retry=false"]
    run_finder(validate(composed(*SMALL, *search, f"trainer.progress={progress}")), [])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LR range test: ")]
    assert len(said) == lines
    assert all(line.endswith(" s left") for line in said)


@pytest.mark.parametrize("metric", ["loss", "val_loss"])
def test_a_data_set_that_is_too_large_to_copy_is_not_said_to_have_moved(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, metric: str
) -> None:
    monkeypatch.setattr("lr_lightning.lr_finder.snapshot._LARGE", 10_000)  # bytes; the digits have 100,000
    run_finder(validate(composed(*SMALL, "finder=range_test", "finder.num_steps=10", f"finder.metric={metric}")), [])
    assert not [w for w in recwarn if "objects that it cannot restore" in str(w.message)]


@pytest.mark.usefixtures("unknown")
def test_a_search_that_finds_nothing_names_the_next_one(
    composed: Compose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["scripts/find_lr.py"])
    run_finder(validate(composed(*SMALL, "finder=range_test")), ["optimizer=adam", "finder=range_test"])
    assert "python scripts/find_lr.py optimizer=adam finder=lr_grid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finder.num_steps=9"], "finder.num_steps: must be 10 or more optimizer updates, for instance 100, got 9."),
        (["finder.min_lr=0"], "finder.min_lr: must be a finite number above 0, for instance 1e-6, got 0.0."),
        (["finder.min_lr=1", "finder.max_lr=0.1"], "finder.max_lr: must be above finder.min_lr, 1, got 0.1."),
        (["finder.metric=acc"], "finder.metric: unknown choice 'acc'. Choices: loss, val_loss, accuracy."),
        (["finder.mode=log"], "finder.mode: unknown choice 'log'. Choices: exponential, linear."),
        (["finder.repeats=0"], "finder.repeats: must be 1 or more, got 0."),
        (["finder.metric=val_loss", "trainer.limit_val_batches=0"], "finder.metric: needs validation batches"),
        (["schedule=triangular", "schedule.base_lr=0.01"], "schedule.base_lr: finder=range_test sets both bounds"),
        (["optimizer=prodigy"], "finder: prodigy estimates its learning rate"),
        (
            ["finder=race", "finder.keep=true", "schedule=wsd", "callbacks.checkpoint.every=10%"],
            "finder.keep: skips the training of the first steps, and these callbacks need their weights. "
            "Give callbacks.cost=null callbacks.cooldown_preview=false callbacks.checkpoint.every=null.",
        ),
        (
            ["finder=race", "finder.keep=true", "finder.apply=false"],
            "finder.keep: goes on from the race, and finder.apply is false.",
        ),
        (["finder=race", "finder.keep=true", "optimizer=schedule_free_sgd"], "averages the weights at each step"),
        (
            ["experiment=lr_effects"],
            "finder: experiment=lr_effects trains given learning rates, so there is none to find.",
        ),
        (["finder.num_lrs=5"], "num_lrs"),
        (
            ["finder=none", "finder._target_=mine.Search", "experiment=lr_effects"],
            "finder: experiment=lr_effects trains given learning rates",
        ),
    ],
)
def test_bad_keys(composed: Compose, overrides: list[str], message: str) -> None:
    from lr_lightning.app.error_messages import explain

    with pytest.raises(Exception) as caught:  # noqa: PT011  # of Hydra or of ours; the text is what counts
        validate(composed("finder=range_test", *overrides))
    text = str(caught.value) if isinstance(caught.value, ConfigError) else explain(caught.value)
    assert message in text


def test_bounds_of_ones_own_go_with_a_search_that_applies_nothing(composed: Compose) -> None:
    own = ["schedule=triangular", "schedule.base_lr=0.01", "finder=range_test", "finder.apply=false"]
    assert validate(composed(*own)).schedule.base_lr == 0.01  # type: ignore[attr-defined]


def test_a_module_that_optimizes_by_hand_is_refused_before_anything_runs(composed: Compose) -> None:
    module = LightningModule()
    module.automatic_optimization = False
    with pytest.raises(ConfigError, match=r"finder: LightningModule optimizes by hand"):
        build.build_finder(validate(composed("finder=range_test")).finder, module, "none")


def test_a_target_that_is_no_search_is_refused(composed: Compose) -> None:
    config = validate(composed("finder._target_=lightning.pytorch.callbacks.Timer"))
    with pytest.raises(ConfigError, match="gave a Timer, not a BaseLRFinder"):
        build.build_finder(config.finder, LightningModule(), "none")


def test_a_stored_config_with_a_finder_can_be_resumed(composed: Compose) -> None:
    from lr_lightning.app.run.resume import ALLOWED_TARGETS

    for name in ("range_test", "race", "lr_grid"):
        target = validate(composed(f"finder={name}")).finder._target_
        assert target in ALLOWED_TARGETS
