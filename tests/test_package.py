"""What importing the package costs and offers."""

import ast
import builtins
import importlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import lr_lightning
from lr_lightning import errors

ROOT = Path(__file__).resolve().parent.parent
CAUGHT_INSIDE = {"Abandoned", "StorageGone", "SQLFailed", "NotRecordedError"}  # the package catches these itself


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
    assert not _loaded("import lr_lightning.app.commands.hydra_main") & {
        "torch",
        "lightning",
        "mlflow",
        "datasets",
        "sklearn",
    }


def test_what_a_training_imports_before_its_first_step() -> None:
    loaded = _loaded(
        "from lr_lightning.app.run.train import build_data_and_module\n"
        "from lr_lightning.training.sources import digits\ndigits()"
    )
    assert "lightning" in loaded
    assert not loaded & {"mlflow", "datasets", "pandas", "plotly", "sklearn", "optuna"}


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("[a-z]*.py")))
def test_a_script_without_the_environment_says_how_to_make_it(script: str) -> None:
    needed = {"export.py": ["run"], "predict.py": ["run", "image.png"], "replay.py": ["folder"], "cooldown.py": ["run"]}
    arguments = needed.get(script, [])
    command = [sys.executable, "-S", str(ROOT / "scripts" / script), *arguments]  # -S: without what is installed
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No module named")
    assert len(done.stderr.splitlines()) == 1
    assert "Activate .venv first" in done.stderr


def test_public_names() -> None:
    assert lr_lightning.__all__ == [
        "BatchSizeSchedule",
        "CooldownPreview",
        "Diverged",
        "History",
        "LRFinder",
        "LRGrid",
        "LRRace",
        "LRSchedule",
        "OverfittingMonitor",
        "RandomState",
        "RangeTest",
        "RunCost",
        "ScheduleAwareStopping",
        "ScheduleFreeMode",
        "StepRecorder",
        "TorchSchedule",
        "__version__",
        "diagnose",
        "find_lr",
    ]
    for name in lr_lightning.__all__:
        assert getattr(lr_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LRScheduler'"):
        _ = lr_lightning.LRScheduler


def _raised() -> Iterator[tuple[str, Any]]:
    """Every class that the package raises by name, with the place."""
    for path in sorted((ROOT / "lr_lightning").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names = {node.exc for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise) and node.exc}
        module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
        for exc in names:
            name = ast.unparse(exc.func if isinstance(exc, ast.Call) else exc)
            found = getattr(module, name, getattr(builtins, name, None))
            if isinstance(found, type):
                yield f"{path.relative_to(ROOT)}:{exc.lineno} {name}", found


def test_every_exception_that_leaves_the_package_is_in_one_tree() -> None:
    # Python prescribes these: for a missing attribute, module or file, the exit of a process, and unreachable code.
    prescribed = (AttributeError, ImportError, OSError, SystemExit, AssertionError)
    outside = {
        place
        for place, kind in _raised()
        if not issubclass(kind, (errors.LRLightningError, *prescribed)) and kind.__name__ not in CAUGHT_INSIDE
    }
    assert outside == set()


def test_the_tree_of_errors() -> None:
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    for kind in own:
        assert issubclass(kind, errors.LRLightningError)
        assert kind is errors.LRLightningError or issubclass(kind, ValueError | RuntimeError)
        assert kind.__name__ in (errors.__doc__ or "")


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


def test_the_way_of_a_learning_rate_is_as_described_and_never_turns_back() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("**The way of a learning rate**")[2]
    text = text.partition("\n\n`trainer_clock`")[0]
    stops = re.findall(r"^\d+\. `(\S+\.py)`([^:\n]*)", text, re.MULTILINE)
    assert len(stops) == 13
    above = ""
    for number, (path, names) in enumerate(stops):
        source = (ROOT / path if path.startswith("scripts/") else ROOT / "lr_lightning" / path).read_text()
        for name in re.findall(r"`(\w+)`", names if number else ""):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), (path, name)
            assert re.search(rf"\b{name}\b", above), (path, name)
        back = {passed for passed, _ in stops[:number] if passed[:-3].replace("/", ".") + " import" in source}
        assert back <= {"app/config.py", "app/schemas/model.py"}, (
            path
        )  # which hold the values that the others are given
        above += source


def test_every_file_that_contributing_names_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert [
        path for path in named if not any((folder / path).is_file() for folder in (ROOT, ROOT / "lr_lightning"))
    ] == []
