"""The picture of the schedules: what is drawn, as a file and as text, and what bad input is told."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lr_lightning.app.commands.plot_schedules import SchedulePreview, as_text, preview, save_figure
from lr_lightning.errors import ConfigError
from tests import forked

ROOT = Path(__file__).resolve().parents[3]
MOVING = ["schedule.base_momentum=0.85", "schedule.max_momentum=0.95"]


def drawn(*words: str, steps: int = 300, epochs: float = 15, peak: float | None = None) -> list[SchedulePreview]:
    return preview(words, ROOT, steps=steps, epochs=epochs, peak=peak)


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_without_words_every_choice_is_drawn(tmp_path: Path) -> None:
    found = drawn()
    assert [curve.label for curve in found] == sorted(path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml"))
    assert all(len(curve.lr) == 300 and curve.momentum is None for curve in found)
    save_figure(found, tmp_path / "new" / "all.png", title="all", unit="lr / peak")
    assert png_size(tmp_path / "new" / "all.png")[0] == 1280
    lines = as_text(found, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("0 └") for line in lines) == len(found)


def test_an_override_is_for_the_name_before_it_or_for_all() -> None:
    one, two, three = drawn("schedule.warmup=0", "cosine", "schedule=cosine,wsd", "schedule.cooldown=50%")
    assert [one.label, two.label, three.label] == ["cosine", "cosine", "wsd cooldown=50%"]
    assert one.lr == two.lr
    assert one.lr[0] == three.lr[0] == three.lr[149] == 1.0
    assert three.lr[160] < 1.0


def test_rates_are_shares_of_the_peak_or_absolute() -> None:
    (share,) = drawn("triangular", "optimizer.lr=0.02")
    (rate,) = drawn("triangular", peak=0.02)
    assert max(share.lr) == 1.0
    assert rate.lr == [0.02 * factor for factor in share.lr]
    (bounded,) = drawn("triangular", "schedule.base_lr=0.01", peak=0.02)
    assert min(bounded.lr) == pytest.approx(0.01)


def test_a_momentum_that_moves_gets_a_panel_of_its_own(tmp_path: Path) -> None:
    found = drawn("one_cycle", *MOVING, "plateau")
    assert found[0].momentum is not None
    assert (min(found[0].momentum), max(found[0].momentum)) == (0.85, 0.95)
    assert found[1].note == "× 0.5 when val/loss stalls"
    text = as_text(found)
    assert "one_cycle base_momentum=0.85 max_momentum=0.95: momentum" in text
    assert "0.85 └" in text
    save_figure(found, tmp_path / "few.png", title="few", unit="lr / peak")
    save_figure(drawn("one_cycle"), tmp_path / "one.png", title="one", unit="lr / peak")
    width, height = png_size(tmp_path / "few.png")
    assert width == png_size(tmp_path / "one.png")[0] == 1280
    assert height > png_size(tmp_path / "one.png")[1]
    many = [*found, *drawn(*["cosine"] * 6)]
    save_figure(many, tmp_path / "many.png", title="many", unit="lr / peak")
    assert png_size(tmp_path / "many.png")[0] == 1280


def test_text_is_blocks_as_high_as_the_rates() -> None:
    text = as_text([SchedulePreview("ramp", "up", [0.0, 0.25, 0.5, 0.75, 1.0])], width=40)
    assert text.splitlines() == [
        "ramp: up",
        "1 │    █",
        "  │    █",
        "  │   ██",
        "  │   ██",
        "  │  ███",
        "  │  ███",
        "  │ ████",
        "  │ ████",
        "0 └─────",
    ]


@pytest.mark.parametrize("steps", [1, 2, 100_000])
def test_any_length_is_drawn(tmp_path: Path, steps: int) -> None:
    found = drawn("cosine", "constant", steps=steps, epochs=1)
    assert len(as_text(found, 60).splitlines()[1]) <= 60
    save_figure(found, tmp_path / "a.png", title="", unit="lr")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["cosin"], ["schedule: unknown choice 'cosin'", "Choices:", "Did you mean 'cosine'?"]),
        (["cosine", "schedule.ending=1"], ["schedule.ending: there is no such key"]),
        (["cosine", "schedule.end=-1"], ["schedule.end: must be >= 0"]),
        (["wsd", "schedule.warmup=500"], ["schedule=wsd, 300 steps, 15 epochs: WSD: 500", "> 300 steps in all"]),
    ],
)
def test_bad_input_is_one_message(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        drawn(*words)
    for part in parts:
        assert part in str(caught.value)


def test_without_matplotlib_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'lr-lightning\[plot\]'"):
        save_figure(drawn("cosine"), tmp_path / "a.png", title="", unit="lr")


@pytest.mark.parametrize(("name", "reason"), [("a.xyz", "xyz"), ("file/a.png", "Not a directory|File exists")])
def test_a_file_that_cannot_be_written_names_the_option(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"--out: .*({reason})"):
        save_figure(drawn("cosine"), tmp_path / name, title="", unit="lr")


@pytest.mark.slow
def test_the_command_draws_and_refuses(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "plot_schedules.py")

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return forked.run(script, *words, cwd=tmp_path, env=dict(os.environ))

    words = ["cosine", "--steps", "100", "wsd", "schedule.cooldown=40%", "--terminal", "--out", "a.png"]
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "wsd cooldown=40%: linear warmup over 5 steps" in done.stdout
    assert png_size(tmp_path / "a.png")[0] == 1280
    refused = run("cosin", "--terminal")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: schedule: unknown choice 'cosin'")
    assert run("--steps", "0").returncode == 2
