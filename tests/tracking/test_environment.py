import subprocess
import sys
from pathlib import Path

import pytest

from lr_lightning.tracking import environment_tags


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_device_and_host_are_there(tmp_path: Path) -> None:
    tags = environment_tags(tmp_path)
    assert tags["env.python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(
        tags[f"env.{name}"] for name in ("torch", "lightning", "mlflow", "lr_lightning", "device", "host", "command")
    )
    assert "git.commit" not in tags


def test_the_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init")
    (tmp_path / "f").write_text("a")
    git(tmp_path, "add", "f")
    git(tmp_path, "commit", "-m", "m")
    tags = environment_tags(tmp_path)
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git(tmp_path, "rev-parse", "HEAD")
    assert tags["git.dirty"] == "false"
    (tmp_path / "f").write_text("b")
    assert environment_tags(tmp_path)["git.dirty"] == "true"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git.commit" not in environment_tags()


def test_a_password_on_the_command_line_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "tracking.uri=postgresql://me:secret@host/db"])
    assert environment_tags(tmp_path)["env.command"].endswith("train.py tracking.uri=postgresql://me:***@host/db")
