"""The start of every script: the checkout's path, output that cannot fail, and an error if nothing is installed."""

import atexit
import gc
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Importing torch and MLflow makes a million objects that live to the end. Without this, a third of a short run's CPU
# time goes into collecting among them: on the way, and once more when the interpreter ends.
gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)

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
