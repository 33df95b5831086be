import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr_lightning.tracking import environment_tags
from lr_lightning.tracking.keys import MAX_KEY, clean_key, clip, flatten, hide_password


@pytest.mark.parametrize("key", ["train/loss", "lr/group0", "a.b-c_d e", "größe"])
def test_a_valid_key_stays_as_it_is(key: str) -> None:
    assert clean_key(key) == key


@pytest.mark.parametrize(
    ("key", "cleaned"),
    [
        ("a=b", "a_b"),
        ("/a", "a"),
        ("a//b", "a/b"),
        ("../a/./b", "a/b"),
        ("", "_"),
        ("a:b", "a_b"),
        ("x" * 300, "x" * 250),
    ],
)
def test_what_a_store_refuses_is_replaced(key: str, cleaned: str) -> None:
    assert clean_key(key) == cleaned


@settings(deadline=None)  # the first call imports MLflow
@given(st.text(max_size=400))
def test_every_cleaned_key_is_one_that_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    cleaned = clean_key(key)
    _validate_metric_name(cleaned)
    assert len(cleaned) <= MAX_KEY
    assert clean_key(cleaned) == cleaned


def test_a_cut_is_visible_and_fits() -> None:
    assert clip("abc", 3) == "abc"
    cut = clip("x" * 7000, 6000)
    assert len(cut) == 6000
    assert cut.endswith("... (7000 characters, cut)")


def test_flatten_dots_nested_mappings_and_keeps_the_rest() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": {}}) == {"a.b.c": 1, "d": [1, 2], "e": {}}


def test_a_password_is_masked_wherever_the_address_stands() -> None:
    assert hide_password("tracking.uri=postgresql://u:s3cret@h/d x") == "tracking.uri=postgresql://u:***@h/d x"
    assert hide_password("http://host:5000") == "http://host:5000"


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
