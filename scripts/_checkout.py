"""The start of every script: the checkout's path, output that cannot fail, and an error if nothing is installed."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows a "?", and the run does not fail


@contextmanager
def installed() -> Iterator[None]:
    """Turn a missing package into one message. Scripts import after they parse their arguments, so --help is fast."""
    try:
        yield
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Activate .venv first; `make install` makes it, `make help` lists the rest.")
