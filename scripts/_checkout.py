"""The start of every script: the checkout's path, output that cannot fail, and an error if nothing is installed."""

import argparse
import atexit
import errno
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Importing torch and MLflow makes a million objects that live to the end. Without this, the garbage collector searches
# them for a third of a short run's CPU time: on the way, and once more when the interpreter ends.
gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)

ROOT = Path(__file__).resolve().parent.parent


class _Output(io.FileIO):
    """Output whose reader may leave, as `head` does, or whose terminal may close: what follows is dropped."""

    def write(self, data: Any) -> int:
        """Write, or drop what nobody can read."""
        try:
            return super().write(data)
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _lasting(stream: TextIO) -> TextIO:
    """Return a stream that never fails: a terminal without UTF-8 shows a "?", and a reader may leave."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    output = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        output, stream.encoding, "replace", line_buffering=stream.line_buffering, write_through=stream.write_through
    )


sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)


def uri_of(given: argparse.Namespace) -> str | None:
    """Return --uri, or the store of MLflow's own variable, which is said, if neither --uri nor --root is given."""
    uri: str | None = given.uri
    if uri is None and given.root in (None, ROOT / "mlruns") and (uri := os.environ.get("MLFLOW_TRACKING_URI") or None):
        print("the store is that of MLFLOW_TRACKING_URI", file=sys.stderr)
    return uri


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a trained run: which checkpoint, and where the run lies."""
    add = parser.add_argument
    add("--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (best, on the validation set)")
    add("--trust", action="append", default=[], metavar="TARGET", help="code outside this project that the run may use")
    add("--outputs", type=Path, help="folder of the runs' output folders: outputs/ of the checkout")
    add("--root", type=Path, help="the MLflow store that knows the run: this checkout's mlruns/")
    add("--uri", help="another store: postgresql://... or http://...")


@contextmanager
def installed() -> Iterator[None]:
    """Turn a missing package into one message. Scripts import after they parse their arguments, so --help is fast."""
    try:
        yield
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Activate .venv first; `make install` makes it, `make help` lists the rest.")
