"""Commands to paste into a shell: their words, quoted for Hydra's grammar and for bash."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

_SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
_BARE = re.compile(r"[\w./:%+@-]+", re.ASCII)
_NOT_TEXT = re.compile(r"(?i)null|true|false|nan|[+-]?(inf|[\d._]+(e[+-]?\d+)?)")  # Hydra reads a value, not a word
_BACKSLASHES = re.compile(r"(\\*)('|$)")


def override(key: str, value: object) -> str:
    """Format a value as an override for Hydra, with every digit: ``optimizer.lr=0.1``.

    >>> override("data.root", "/a b/c=d"), override("seed", 1)
    ("data.root='/a b/c=d'", 'seed=1')
    """
    if value is None or isinstance(value, bool):
        return f"{key}={json.dumps(value)}"
    if isinstance(value, int | float) or (_BARE.fullmatch(str(value)) and not _NOT_TEXT.fullmatch(str(value))):
        return f"{key}={value}"
    # Within quotes Hydra reads a backslash as itself, unless a quote follows.
    escaped = _BACKSLASHES.sub(lambda found: 2 * found[1] + (found[2] and "\\'"), str(value))
    return f"{key}='{escaped}'"


def shell_quote(word: str) -> str:
    """Quote a word for bash. What the terminal cannot show, such as a newline in a path, becomes an escape."""
    try:
        word.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        shown = word.isprintable()
    except UnicodeEncodeError:
        shown = False
    if shown:
        return shlex.quote(word)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"


def resume_argument(folder: Path | str) -> str:
    """Return the argument that resumes the run in a folder, quoted for bash."""
    return shell_quote(override("resume", folder))


def python_command(script: Path | str, *arguments: str) -> str:
    """Return the command that starts a script, with the interpreter that runs now.

    Give the name of a script of the checkout as a string, and any other script as a Path.
    """
    path = _SCRIPTS / script if isinstance(script, str) else script
    found, ours = shutil.which("python"), Path(sys.executable)
    is_found = found is not None and Path(found).parent.resolve() == ours.parent.resolve()
    python = "python" if is_found else _shown(ours)
    return " ".join(map(shell_quote, (str(python), str(_shown(path)), *arguments)))


def replay_command(folder: Path | str) -> str:
    """Return the command that uploads the rest of a stopped run's log, with the checkout's script if there is one."""
    if (_SCRIPTS / "replay.py").is_file():
        return python_command("replay.py", str(folder))
    code = f"from lr_lightning.tracking import replay; replay({str(folder)!r})"
    return python_command(Path("-c"), code)


def _shown(path: Path) -> Path:
    """Shorten a path below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
