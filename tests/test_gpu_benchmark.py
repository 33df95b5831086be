"""The benchmarks for a GPU, as far as a CPU can run them."""

import json
import os
import shutil
import threading
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import batch_growth, gpu, gpu_device, gpu_race, gpu_steps, monitor_cost, report, smith_table, trainings
from benchmarks.gpu_device import Setting, Synchronizations, Utilisation
from lr_lightning import RunCost
from lr_lightning.app import build
from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.schemas.data import ParquetConfig

ROOT = Path(__file__).resolve().parent.parent


RECIPE = (*gpu.RECIPE, *gpu.SMALL, "model=small_cnn", "model.kwargs.width=4", "optimizer.lr=0.01")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting:
    """A few steps of a small network, stored in `tmp_path`."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    prepare(ROOT)
    return Setting(
        data=("data=digits",),
        recipe=(*RECIPE, "tracking=csv"),  # a store is slow to open
        target=0.01,
        epochs=1,
        seeds=1,
        rounds=1,
        warmup=1,
        block=1,
        blocks=1,
        models=("small_cnn",),
        scale=0.0001,
        smith_seeds=1,
        quick=False,
    )


def settings() -> tuple[bool, bool, str | None]:
    """What a Trainer sets for the whole process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.backends.cudnn.benchmark, deterministic, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


def test_every_part_for_the_gpu_runs_in_its_small_form(
    small: Setting,
    tmp_path: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mlflow.store.db import utils

    monkeypatch.setattr(utils, "_initialize_tables", lambda engine: shutil.copyfile(empty_store, engine.url.database))
    stores: list[bool] = []

    def opened(*args: Any) -> Any:
        logger = open_logger(*args)
        stores.append(logger.store is not None)
        return logger

    open_logger = gpu_steps.open_logger
    monkeypatch.setattr(gpu_steps, "open_logger", opened)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    quick = replace(small, quick=True)
    parts = gpu.run([name for name in gpu.PARTS if name != "callbacks"], quick, {})
    parts = gpu.run(["callbacks"], replace(quick, recipe=RECIPE), parts)
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(gpu.PARTS, "done")
    assert parts["resnet9"]["reached"] == {"app": 1, "loop": 1}  # one in a hundred
    arms = parts["resnet9"]["arms"]
    assert arms["app"]["epochs_to_target"]["median"] == 1
    assert all(arm["validation_seconds"]["median"] < arm["seconds"]["median"] for arm in arms.values())
    assert stores == [True, True]  # one to count the waits, one for the clock
    assert set(parts["callbacks"]["small_cnn"]["waits_a_step"]) == set(parts["callbacks"]["small_cnn"]["ms_a_step"])
    assert parts["precision"]["ratio_to_32 contiguous"]["32 contiguous"]["median"] == 1
    assert parts["finder"]["seconds"]["median"] > 0
    assert parts["finder"]["steps_made"]["min"] == parts["finder"]["steps_asked"]
    assert settings() == before
    gpu.show_parts(list(gpu.PARTS), parts)
    assert "app_to_loop / seconds" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # nothing is stored


def test_a_part_that_fails_is_recorded_and_the_others_go_on(
    small: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "gpu.json"

    def statuses() -> dict[str, str]:
        return {name: part["status"] for name, part in json.loads(path.read_text())["parts"].items()}

    def breaks(_: Setting) -> Iterator[dict[str, Any]]:
        yield {"n": 1}
        assert statuses() == {"finder": "done", "resnet9": "partial"}  # stored before it goes on
        yield {"n": 2}
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(gpu.PARTS, "resnet9", breaks)
    monkeypatch.setitem(gpu.PARTS, "precision", lambda _: iter([{"n": 3}]))
    gpu.run(["resnet9", "precision"], small, {"finder": {"status": "done", "n": 0}})
    assert statuses() == {"finder": "done", "resnet9": "failed", "precision": "done"}
    found = json.loads(path.read_text())["parts"]["resnet9"]
    assert found["reason"] == "OutOfMemoryError: CUDA out of memory"
    assert found["n"] == 2  # what was measured stays


def test_after_an_error_that_stays_no_part_goes_on(small: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def sticky() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def breaks(_: Setting) -> Iterator[dict[str, Any]]:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", sticky)
        yield {"n": 1}
        sticky()

    monkeypatch.setitem(gpu.PARTS, "resnet9", breaks)
    monkeypatch.setitem(gpu.PARTS, "precision", lambda _: asked.append("precision") or iter([{"n": 3}]))
    parts = gpu.run(["resnet9", "precision"], small, {})
    assert {name: part["status"] for name, part in parts.items()} == {"resnet9": "failed", "precision": "failed"}
    assert "not run: the GPU was lost" in parts["precision"]["reason"]
    assert parts["resnet9"]["n"] == 1
    assert not asked


@pytest.mark.parametrize("text", ['{"parts": {"resnet9": {"sta', "[]", '{"parts": 3}', '{"parts": {"finder": {}}}'])
def test_a_damaged_result_is_refused_before_anything_runs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name in ("train.parquet", "test.parquet", "gpu.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--cifar10", str(tmp_path)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "gpu.json: the stored result is damaged" in said
    assert "delete it" in said
    assert (tmp_path / "gpu.json").read_text() == text


def test_a_result_is_stored_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    report.store("x", {"n": 1}, quick=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lr_lightning.tracking.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        report.store("x", {"n": 2}, quick=False)
    assert json.loads((report.RESULTS / "x.json").read_text())["n"] == 1


@pytest.mark.parametrize(
    ("main", "option"),
    [
        *((gpu.main, option) for option in ("--seeds", "--smith-seeds", "--epochs")),
        *((batch_growth.main, option) for option in ("--seeds", "--epochs")),
        *((monitor_cost.main, option) for option in ("--rounds", "--epochs")),
        (smith_table.main, "--seeds"),
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_what_is_counted_is_at_least_one(
    main: Any, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark", "--quick", option, value])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"argument {option}: '{value}' is no whole number of at least 1" in capsys.readouterr().err


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    files = [tmp_path / "a (b), c=d [1] {x: y} ${HOME} it\\'s" / file for file in ("train.parquet", "test.parquet")]
    files[0].parent.mkdir()
    for file in files:
        file.touch()
    prepare(ROOT)
    config = load_config(ROOT, trainings.images(files[0].parent))
    assert isinstance(config.data, ParquetConfig)
    assert [config.data.train, config.data.test] == [str(file) for file in files]


def test_the_apps_seconds_are_those_to_the_end_of_the_last_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)

    def train(*_: Any, watching: list[Any], **__: Any) -> SimpleNamespace:
        (watch,), cost = watching, RunCost()
        for at, sanity in ((1.0, True), (7.0, False)):
            trainer: Any = SimpleNamespace(sanity_checking=sanity, callbacks=[cost, watch])
            clock.now = at
            watch.on_validation_start(trainer)
            clock.now += 2.0
            watch.on_validation_end(trainer)
            if sanity:
                clock.now = 4.0
                cost.on_train_start(trainer, SimpleNamespace(device=torch.device("cpu")))  # type: ignore[arg-type]
                watch.on_train_start()
        clock.now = 100.0
        watch.on_train_end()
        return SimpleNamespace(summary={"steps": 2.0, "train_seconds": 96.0, "last_val_acc": 0.5})

    monkeypatch.setattr(gpu_race, "train", train)
    monkeypatch.setattr(gpu_race, "load_config", lambda *_: None)
    raced = gpu_race.app([], 0.9)
    assert (raced.seconds, raced.validation_seconds, raced.ms_a_step) == (5.0, 2.0, 1500.0)


def test_no_thread_outlives_a_training_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SimpleNamespace(nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=50))
    monkeypatch.setattr(gpu_device, "_nvml", lambda: (nvml, object()))
    before = threading.active_count()
    watch = gpu_race.Watch()
    watch.on_train_start()
    assert threading.active_count() == before + 1
    watch.on_exception()
    assert threading.active_count() == before


def test_garbage_is_not_counted_as_left_behind() -> None:
    class Cycle:
        itself: object

    cycle = Cycle()
    cycle.itself = cycle
    seen = weakref.ref(cycle)
    del cycle
    moment = gpu_steps.Moment()
    moment.on_fit_start()
    assert seen() is None
    assert moment.came < moment.went  # nor is the time it takes counted as the search's


def test_the_loop_has_the_recipes_optimizer_and_validation_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Optimizer] = []
    looked_at: list[int] = []

    def factory(config: Any) -> Any:
        make = build_optimizer(config)
        return lambda net: made.append(make(net)) or made[-1]

    def accuracy(net: Any, data: Any, split: gpu_race.OnDevice, config: Any) -> float:
        looked_at.append(len(split.labels))
        return 0.5

    build_optimizer = build.build_optimizer
    monkeypatch.setattr(build, "build_optimizer", factory)
    monkeypatch.setattr(gpu_race, "accuracy", accuracy)
    prepare(ROOT)
    own = ("optimizer.momentum=0.5", "optimizer.nesterov=false", "optimizer.weight_decay=0.25", "trainer.max_epochs=1")
    gpu_race.loop(["data=digits", *RECIPE, *own, "trainer.limit_train_batches=1"], 1.0)
    (optimizer,) = made
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25, 0.0}
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.5, False)}
    (count,) = looked_at
    assert 0 < count <= 64  # one batch of the Trainer's: four times data.batch_size


@pytest.mark.parametrize(("arguments", "why"), [([], "--cifar10"), (["--cifar10", "."], "train.parquet")])
def test_without_its_data_it_says_so_at_once(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        gpu.main(arguments)
    assert why in capsys.readouterr().err


def test_utilisation_is_sampled_until_the_end_and_none_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    with Utilisation(0.001) as without:
        pass
    assert without.percent is None
    readings = iter([50, 90, 70])

    def read(_: object) -> SimpleNamespace:
        return SimpleNamespace(gpu=next(readings))  # then StopIteration: NVML went away

    nvml = SimpleNamespace(nvmlDeviceGetUtilizationRates=read)
    monkeypatch.setattr(gpu_device, "_nvml", lambda: (nvml, object()))
    with Utilisation(0.001) as sampled:
        assert sampled._thread is not None
        sampled._thread.join()
    assert sampled.percent == 70


def test_waits_are_counted_by_torchs_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with Synchronizations() as waits:
        waits.start()
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        waits.stop()
    assert waits.count == 3
    assert modes == ["warn", "default", "default"]
