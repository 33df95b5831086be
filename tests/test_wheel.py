"""The wheel, in an environment that has what it requires and nothing else."""

import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from shutil import copy, copytree

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """
import importlib.util, sys
from pathlib import Path

def main(name, *arguments, **options):
    spec = importlib.util.spec_from_file_location(name, Path(sys.argv[1], f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    module.main(*arguments, **options)

for name in ("plain", "gan", "regression", "fine_tuning"):
    main(name, max_epochs=1)
main("cli", ["fit", "--config", str(Path(sys.argv[1], "cli.yaml")), "--trainer.max_epochs", "1"])
import lr_lightning
print("from", lr_lightning.__file__)
print("loaded", *sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from copies, so that no build folder of this checkout is taken up."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    copytree(ROOT / "lr_lightning", source / "lr_lightning")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    subprocess.run([sys.executable, *command], cwd=source, check=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


def required(extra: str) -> set[str]:
    """The distributions that the package and one of its extras require, and those that these require."""
    todo, seen = [("lr-lightning", ""), ("lr-lightning", extra)], set[tuple[str, str]]()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in distribution(name).requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(need.name, wanted) for wanted in ("", *need.extras)]
    return {name for name, _ in seen} - {"lr-lightning"}


def environment(folder: Path, packages: set[str], wheel: Path) -> Path:
    """A virtual environment with these packages of this one, linked, and a wheel; returns its Python."""
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        found = distribution(package)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    return folder / "bin" / "python"


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert "lr_lightning/py.typed" in names
    assert "lr_lightning/reports/template/report.html.j2" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lr_lightning"}


@pytest.mark.slow
def test_the_examples_run_without_the_app(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", required("examples"), wheel)
    done = subprocess.run(
        [python, "-c", EXAMPLES, str(ROOT / "examples")],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *_, origin, loaded = done.stdout.splitlines()
    assert origin.startswith(f"from {tmp_path}")
    assert not set(loaded.split()) & {"mlflow", "hydra", "omegaconf", "matplotlib", "optuna", "sklearn", "rich"}
