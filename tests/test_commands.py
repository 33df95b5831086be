"""What is printed to be pasted: bash and Hydra's parser read back the very words."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lr_lightning import _commands
from lr_lightning._commands import override, python_command, replay_command, resume_argument, shell_quote

AWKWARD = [
    *(
        "/a b",
        "/a=b",
        "/a,b",
        "/a[0]",
        "/a{b}",
        "/a(b)",
        "/é ü",
        "~/x",
        "-dash",
        "/a'b",
        '/a"b',
        "/a$b",
        "/a`b`",
        "/a#b",
    ),
    *(
        "/a\nb",
        "/a\tb",
        "C:\\x\\y",
        "/x\\",
        "/x\\'y",
        "/a\\,b",
        "/a`b`",
        "/a;b&c|d",
        "/a:b",
        "/" + "n" * 255,
        "/\udcff",
    ),
    *("007", "1e5", "1_000", "null", "true", " x ", "", "/a*?", "%d", "/a\u00a0b"),
]


def in_bash(command: str) -> list[str]:
    """The words that bash makes of a command."""
    script = f"set -- {command}\nprintf '%s\\0' \"$@\""
    out = subprocess.run(["/bin/bash", "-c", script], capture_output=True, check=True).stdout
    return [word.decode(errors="surrogateescape") for word in out.split(b"\0")[:-1]]


def test_bash_reads_every_word_back() -> None:
    assert in_bash(" ".join(map(shell_quote, AWKWARD))) == AWKWARD


def test_a_terminal_that_cannot_show_a_letter_gets_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", open("/dev/null", "w", encoding="ascii"))  # noqa: SIM115
    assert shell_quote("/é") == "$'/\\xc3\\xa9'"
    assert in_bash(shell_quote("/é")) == ["/é"]


@pytest.mark.parametrize("value", AWKWARD)
def test_hydra_reads_every_value_back(value: str) -> None:
    (word,) = in_bash(shell_quote(override("resume", value)))
    given = OverridesParser.create().parse_override(word)
    assert (given.key_or_group, given.value(), type(given.value())) == ("resume", value, str)
    assert OmegaConf.create({"resume": given.value()}).resume == value
    assert in_bash(resume_argument(value)) == [word]


def test_a_command_names_the_interpreter_and_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my env" / "bin"
    home.mkdir(parents=True)
    (home / "python").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    script = tmp_path / "a b" / "train.py"
    assert in_bash(python_command(script, "seed=1")) == [str(home / "python"), str(script), "seed=1"]
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.chdir(tmp_path)
    assert in_bash(python_command(script)) == ["python", "a b/train.py"]
    assert in_bash(replay_command("/o p"))[1:] == [str(_commands._SCRIPTS / "replay.py"), "/o p"]
    monkeypatch.setattr(_commands, "_SCRIPTS", tmp_path / "none")
    assert in_bash(replay_command("/o'p"))[1:] == ["-c", 'from lr_lightning.tracking import replay; replay("/o\'p")']
