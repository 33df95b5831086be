"""The benchmarks for a GPU, as far as a CPU can run them."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import batch_growth, gpu, gpu_device, monitor_cost, report, smith_table, trainings
from benchmarks.gpu_device import Setting, Synchronizations, Utilisation
from lr_lightning.app.compose import checked, prepare
from lr_lightning.app.schemas.data import ParquetConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting:
    """A few steps of a small network, stored in `tmp_path`."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    prepare(ROOT)
    recipe = (*gpu.RECIPE, *gpu.SMALL, "model=small_cnn", "model.kwargs.width=4", "optimizer.lr=0.01", "tracking=csv")
    return Setting(
        data=("data=digits",),
        recipe=recipe,
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


def test_every_part_for_the_gpu_runs_in_its_small_form(
    small: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.backends.cudnn.benchmark
    parts = gpu.run(list(gpu.PARTS), replace(small, quick=True), {})
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(gpu.PARTS, "done")
    assert parts["resnet9"]["reached"] == {"app": 1, "loop": 1}  # one in a hundred
    assert parts["resnet9"]["arms"]["app"]["epochs_to_target"]["median"] == 1
    assert set(parts["callbacks"]["small_cnn"]["waits_a_step"]) == set(parts["callbacks"]["small_cnn"]["ms_a_step"])
    assert parts["precision"]["ratio_to_32 contiguous"]["32 contiguous"]["median"] == 1
    assert parts["finder"]["seconds"]["median"] > 0
    assert torch.backends.cudnn.benchmark is before
    assert not torch.are_deterministic_algorithms_enabled()
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
    config = checked(ROOT, trainings.images(files[0].parent))
    assert isinstance(config.data, ParquetConfig)
    assert [config.data.train, config.data.test] == [str(file) for file in files]


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
