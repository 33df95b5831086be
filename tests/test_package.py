"""What importing the package costs and offers."""

import os
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

import lr_lightning

ROOT = Path(__file__).resolve().parent.parent


def _loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_the_plugin_with_its_names_or_the_tracking_loads_no_part_of_the_app_nor_mlflow() -> None:
    loaded = _loaded("from lr_lightning import *\nimport lr_lightning.tracking")
    assert "lightning" in loaded  # so the names were really loaded
    assert not loaded & {"hydra", "omegaconf", "mlflow", "optuna", "datasets", "sklearn"}


def test_importing_the_package_alone_loads_neither_torch_nor_lightning() -> None:
    assert not _loaded("import lr_lightning") & {"torch", "lightning"}


def test_the_command_line_is_read_before_anything_heavy_is_loaded() -> None:
    assert not _loaded("import lr_lightning.app.commands.train") & {
        "torch",
        "lightning",
        "mlflow",
        "datasets",
        "sklearn",
    }


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("[a-z]*.py")))
def test_a_script_without_the_environment_says_how_to_make_it(script: str) -> None:
    arguments = {"predict.py": ["run", "image.png"], "replay.py": ["folder"]}.get(script, [])
    command = [sys.executable, "-S", str(ROOT / "scripts" / script), *arguments]  # -S: without what is installed
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No module named")
    assert len(done.stderr.splitlines()) == 1
    assert "Activate .venv first" in done.stderr


def test_public_names() -> None:
    assert lr_lightning.__all__ == [
        "BatchSizeSchedule",
        "Diverged",
        "History",
        "LRFinder",
        "LRGrid",
        "LRSchedule",
        "OverfittingMonitor",
        "RandomState",
        "RangeTest",
        "RunCost",
        "ScheduleAwareStopping",
        "ScheduleFreeMode",
        "StepRecorder",
        "__version__",
        "diagnose",
    ]
    for name in lr_lightning.__all__:
        assert getattr(lr_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LRScheduler'"):
        _ = lr_lightning.LRScheduler


def test_typed_and_with_its_version_in_one_place() -> None:
    assert files(lr_lightning).joinpath("py.typed").is_file()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lr_lightning.__version__"}


def test_a_terminal_without_utf_8_gets_a_question_mark_and_no_traceback() -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import sys; sys.path.insert(0, 'scripts'); import _checkout; print('8\\u00d78')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8?8\n", "")
