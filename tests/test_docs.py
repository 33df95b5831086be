"""What README and docs/ say can be done is done: code, commands, links, and the site itself."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from types import ModuleType

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import advice, lr_effects, schedules
from lr_lightning.app.composition import prepare, validate
from lr_lightning.app.config import SCHEMAS, register
from lr_lightning.search.settings import read_search
from tests import forked
from tests.callbacks.tiny import Tiny, X, Y
from tests.conftest import docs_module

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"keys.md", "api.md"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of each command, without comments; a line that ends in a backslash goes on."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def of_script(name: str) -> list[tuple[str, str]]:
    """(page, command) of every `python scripts/NAME.py ...` in README and docs."""
    found = [(page.name, words) for page in PAGES for block in blocks(page, "bash") for words in commands(block)]
    return [(page, shlex.join(words[2:])) for page, words in found if words[:2] == ["python", f"scripts/{name}.py"]]


def scripts_of(page: Path) -> set[str]:
    return set(re.findall(r"scripts/\w+\.py|python -m benchmarks\.\w+", page.read_text()))


@pytest.mark.parametrize(
    ("page", "code"),
    [
        pytest.param(p.name, code, id=f"{p.stem}-{i}")
        for p in PAGES
        if p.stem != "export"  # tests/app/commands/test_export.py runs it on an exported network
        for i, code in enumerate(blocks(p, "python"))
    ],
)
def test_the_code_runs(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = TensorDataset(X, Y)
    own = {"module": Tiny(), "train_loader": DataLoader(data, 10, shuffle=True), "val_loader": DataLoader(data, 30)}
    exec(compile(re.sub(r"max_epochs=\d+", "max_epochs=1", code), page, "exec"), own)


@pytest.fixture
def composing() -> Iterator[None]:
    register()
    OmegaConf.register_new_resolver("checkout", lambda: "", replace=True)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


@pytest.mark.parametrize(("page", "command"), dict.fromkeys([*of_script("train"), *of_script("find_lr")]))
def test_the_overrides_are_taken(
    page: str, command: str, composing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my_images", "outputs"):
        (tmp_path / name).mkdir()
    for name in ("train.parquet", "test.parquet"):
        (tmp_path / name).touch()
    words = [word for word in shlex.split(command) if not word.startswith("-")]
    if "-m" in command.split():
        words = [word.split(",")[0] for word in words]  # one job of the sweep
    validate(compose("config", words))


@pytest.mark.parametrize(("page", "command"), dict.fromkeys(of_script("search")))
def test_the_searches_can_be_read(page: str, command: str, tmp_path: Path) -> None:
    prepare(ROOT)
    read_search(ROOT, [*shlex.split(command), f"output_root={tmp_path}", f"tracking.root={tmp_path}"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert target in GENERATED or (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in scripts_of(page):
        path = name if name.startswith("scripts") else name.removeprefix("python -m ").replace(".", "/") + ".py"
        assert (ROOT / path).is_file(), f"{page.name} names {name}"
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {words[1] for b in blocks(page, "bash") for words in commands(b) if words[0] == "make"} <= set(targets)


def test_the_table_of_regrets_is_the_benchmarks() -> None:
    held_out = json.loads((ROOT / "benchmarks" / "results" / "finder_regret.json").read_text())["sets"]["held out"]
    names = {
        "lr_lightning": "`LRFinder`",
        "fastai minimum/10": "fastai, minimum / 10",
        "fastai valley": "fastai, valley",
        **{name: name for name in ("ignite", "torch-lr-finder", "Lightning")},
    }
    text = (ROOT / "docs" / "lr_finder.md").read_text().replace("**", "")
    for rule, name in names.items():
        cells = [
            f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f}), worst {found['worst']:.2f}"
            for found in (held_out["rules"][rule]["where_answered"], held_out["rules"][rule]["all"])
        ]
        assert f"| {name} | {cells[0]} | {cells[1]} |" in text


_RULES = {
    "LRRace": "`LRRace`",
    "LRFinder": "`LRFinder`",
    "fastai minimum/10": "fastai, minimum / 10",
    "torch-lr-finder": "torch-lr-finder",
    "Lightning": "Lightning",
    "hyperband, 50 %": "Hyperband of half a run",
}


@pytest.mark.parametrize("rule", _RULES)
def test_the_regrets_of_whole_runs_are_the_benchmarks(rule: str) -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "whole_run_sealed.json").read_text())
    found = stored["rules"][rule]
    loss, kinds = found["loss"], {True: [], False: []}
    for cell, answers in found["answers"].items():
        regrets = np.interp(np.log(answers), np.log(stored["lrs"]), stored["truth"][cell])
        kinds["noise" in cell].append(float(regrets.mean()))
    right, wrong = (sum(kinds[noisy]) / len(kinds[noisy]) for noisy in (False, True))
    row = (
        f"| {_RULES[rule]} | {loss['mean']:.3f} ({loss['low']:.3f} to {loss['high']:.3f}) | {loss['worst']:.2f} "
        f"| {right:.3f} | {wrong:.3f} | {found['updates']:.0%} |"
    )
    assert row.replace("%", " %") in (ROOT / "docs" / "lr_finder.md").read_text().replace("**", "")
    readme = (ROOT / "README.md").read_text().split("## Why not")[1]
    shown = rule.replace("fastai minimum/10", "minimum / 10")
    assert rule.startswith("hyperband") or re.search(
        rf"{shown}`?( missed)? {loss['mean']:.0%}".replace("%", " %"), readme
    )


@pytest.mark.parametrize("cells", ["second", "third"])
@pytest.mark.parametrize("rule", _RULES)
def test_the_regrets_on_the_later_cells_are_the_benchmarks(rule: str, cells: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / f"whole_run_{cells}.json").read_text())["rules"][rule]
    loss = found["loss"]
    row = (
        f"| {_RULES[rule]} | {loss['mean']:.3f} ({loss['low']:.3f} to {loss['high']:.3f}) "
        f"| {found['error']['mean']:.3f} | {found['updates']:.0%} |"
    )
    assert row.replace("%", " %") in (ROOT / "docs" / "lr_finder.md").read_text()


_WAYS = {
    "noise": "two seeds of the same run",
    "law": "the law, from trunk and fork",
    "left out": "the law, from all other schedules too",
    "preview": "the preview of the trunk",
    "all alike": "the loss at the end of the fork, for all",
}


@pytest.mark.parametrize("way", _WAYS)
def test_the_errors_of_forecasts_are_the_benchmarks(way: str) -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "forecast.json").read_text())
    cells = [fmean(row[way]["mean"] for row in stored[kind].values()) for kind in ("validation", "training")]
    assert f"| {_WAYS[way]} | {cells[0]:.2f} | {cells[1]:.2f} |" in (ROOT / "docs" / "forks.md").read_text()


def test_the_table_of_schedules_is_the_benchmarks() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "schedules.json").read_text())
    assert schedules.table(result) in (ROOT / "docs" / "schedules.md").read_text()


def test_the_table_of_claims_is_the_benchmarks() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "lr_effects.json").read_text())
    assert lr_effects.table(result) in (ROOT / "docs" / "verdict.md").read_text()


@pytest.mark.parametrize("part", ["all", "fifth"])
def test_the_tables_of_advice_are_the_benchmarks(part: str) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / f"advice_{part}.json").read_text())
    page = (ROOT / "docs" / "verdict.md").read_text()
    assert advice.markdown(result) in page
    for share in (result["agree"], result["agree_or_near"], result["near"]):
        assert f"{share:.0%}".replace("%", " %") in page


@pytest.fixture
def in_sandbox(tmp_path: Path) -> Callable[..., str]:
    """Run a command of the README in `tmp_path`; what it printed."""
    places = [f"output_root={tmp_path}/outputs", f"tracking.root={tmp_path}/mlruns"]
    extra = {
        "find_lr": [*places, "trainer.progress=none"],
        "train": [*places, "trainer.progress=none"],
        "predict": ["--outputs", f"{tmp_path}/outputs", "--root", f"{tmp_path}/mlruns"],
        "compare": ["--root", f"{tmp_path}/mlruns", "--out", f"{tmp_path}/outputs", "--no-log"],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def run(words: list[str], *overrides: str) -> str:
        script = ROOT / words[1]
        arguments = [*words[2:], *extra[script.stem], *overrides]
        done = forked.run(script, *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def block_with(text: str) -> list[list[str]]:
    (block,) = [block for block in blocks(ROOT / "README.md", "bash") if text in block]
    return commands(block)


@pytest.mark.slow
def test_the_readme_says_what_its_first_script_prints(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(blocks(ROOT / "README.md", "python")[0])
    done = forked.run(script, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    printed = {re.sub(r"[\d.]+", "#", line) for line in (done.stdout + done.stderr).splitlines()}
    said = [re.sub(r"[\d.]+", "#", line) for line in blocks(ROOT / "README.md", "text")[0].splitlines()]
    assert [line for line in said if line not in printed] == []


@pytest.mark.slow
def test_from_a_folder_of_images_to_predictions(tmp_path: Path, in_sandbox: Callable[..., str]) -> None:
    pixels, labels = load_digits(n_class=4, return_X_y=True)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = tmp_path / ("new_images" if i < 20 else "my_images") / f"digit {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8).reshape(8, 8)).save(place / f"{i}.png")
    (tmp_path / "new_images" / "notes.txt").write_text("no image")
    find, train, longer, ui, predict = block_with("my_images")
    small = ["model.kwargs.width=8"]
    assert "optimizer.lr=" in in_sandbox(find, *small)  # the command that comes next
    out = in_sandbox(train, *small, "trainer.max_epochs=4")
    assert "verdict" in out
    assert "predict.py" in out
    (folder,) = (path.parent for path in tmp_path.glob("outputs/*/checkpoints") if (path / "best.ckpt").is_file())
    here = [word.replace("outputs/RUN", str(folder)) for word in longer]
    in_sandbox(here, "trainer.max_epochs=5")
    assert ui == ["python", "scripts/ui.py"]  # a server: tests/reports/test_browser.py starts it
    words = [word for word in predict if word not in (">", "predictions.csv")]
    rows = in_sandbox([word.replace("outputs/RUN", str(folder)) for word in words]).splitlines()
    assert rows[0] == "image,prediction,probability,class"
    assert len(rows) == 1 + 20
    right = [label == known for _, label, _, known in (row.split(",") for row in rows[1:])]
    assert sum(right) > 10  # of 20; by chance 5
    (run_id,) = set(re.findall(r"MLflow run ([0-9a-f]{32})", out))
    assert in_sandbox([word.replace("outputs/RUN", run_id) for word in words]).splitlines() == rows


@pytest.mark.slow
def test_the_commands_that_compare(tmp_path: Path, in_sandbox: Callable[..., str]) -> None:
    sweep, compare = block_with("scripts/compare.py")
    small = ["trainer.max_epochs=1", "data.train_size=200", "model.kwargs.width=4"]
    in_sandbox([word.replace("0,1,2,3,4,5", "0,1") for word in sweep], *small)
    assert "cosine" in in_sandbox(compare)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """`docs/_build/pages.py`."""
    return docs_module("pages")


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_a_page_begins_with_the_question_it_answers(page: Path) -> None:
    title, question = page.read_text().split("\n\n")[:2]
    assert title.startswith("# ")
    assert question.endswith("?")


def test_roles_are_shown_as_code() -> None:
    shown = docs_module("doctests").without_roles
    assert shown("see :attr:`losses` and :func:`~lr_lightning.lr_finder.curve.read_curve`") == (
        "see `losses` and `read_curve`"
    )


def test_every_key_has_its_line(pages: ModuleType) -> None:
    text = pages.keys_page()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {f.name for group in SCHEMAS.values() for schema in group.values() for f in fields(schema)} - {"name"} <= {
        row.split("`")[1] for row in rows
    }
    assert "| `batch_size` | `int` | `64` | training examples in a batch |" in rows


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    assert "LRSchedule" in api
    assert not re.search(r":(attr|class|exc|func|meth|mod):", api)
    assert not re.search(r'<(script|link)[^>]+(src|href)="https?:', api)  # the pages open from disk, without a network
