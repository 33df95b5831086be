"""What every script begins with: where the checkout is, and one clear error where the package is not installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def installed() -> Iterator[None]:
    """For the imports of a script: those of scripts with arguments of their own come after these are read."""
    try:
        yield
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Activate .venv first; `make install` makes it, `make help` lists the rest.")
