"""The texts of `--help`, and what composing changes in a process."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from lr_lightning.app.commands.train import _usage
from lr_lightning.app.composition import choices_help, prepare, validate, wants_tracebacks
from lr_lightning.app.config import flatten

Compose = Callable[..., DictConfig]

CONF = Path(__file__).resolve().parent.parent.parent / "conf"

UNLISTED = {"name", "_target_", "kwargs", "apply"}  # of a search that trains nothing

CHOICES = sorted((f.parent.name, f.stem) for f in CONF.glob("*/*.yaml"))


def test_the_help_has_a_line_for_every_choice() -> None:
    lines = choices_help(CONF.parent).splitlines()
    said = {line.split()[0]: line.split(maxsplit=1)[1:] for line in lines if line.startswith("  ")}
    assert {choice for _, choice in CHOICES} <= set(said)
    assert [choice for choice, text in said.items() if not text] == []
    assert max(map(len, lines)) <= 160
    assert "  cosine               Half a cosine to zero after a warm-up" in lines  # the first sentence, no source


def test_the_help_of_find_lr_is_its_own(composed: Compose) -> None:
    command = [sys.executable, str(CONF.parent / "scripts" / "find_lr.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert text.startswith("Search for a learning rate, without training;")
    assert "It trains nothing" in text
    assert "train.py schedule" not in text
    for choice in ("range_test", "lr_grid"):
        keys = set(flatten(OmegaConf.to_container(composed(f"finder={choice}").finder)))
        listed = text.partition(f"Keys of finder={choice}")[2].partition("\n\n")[0]
        assert set(re.findall(r"^  finder\.(\w+)  +\S", listed, flags=re.MULTILINE)) == keys - UNLISTED, choice
    examples = re.findall(r"^  python scripts/find_lr\.py (\S+=\S+(?: \S+=\S+)*)", text, flags=re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        words = example.split()
        finder = [] if any(word.startswith("finder=") for word in words) else ["finder=range_test"]  # its default
        validate(composed(*words, *finder))


def test_the_help_of_train_has_no_keys_of_a_search() -> None:
    assert _usage("train").splitlines()[1].startswith("  python scripts/train.py schedule=")
    assert "finder." not in _usage("train")


def test_a_rank_that_lightning_starts_prints_errors_as_the_first_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HYDRA_FULL_ERROR", "LR_LIGHTNING_SET_HYDRA_FULL_ERROR"):
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert not wants_tracebacks()
    prepare(tmp_path)
    assert not wants_tracebacks()  # in a child, which has its environment
    monkeypatch.delenv("LR_LIGHTNING_SET_HYDRA_FULL_ERROR")
    assert wants_tracebacks()
    prepare(tmp_path)
    assert wants_tracebacks()
