"""What every script begins with: where the checkout is, what it prints to, and an error where nothing is installed."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets a "?", and the run its end


@contextmanager
def installed() -> Iterator[None]:
    """For the imports of a script: those of scripts with arguments of their own come after these are read."""
    try:
        yield
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Activate .venv first; `make install` makes it, `make help` lists the rest.")
