"""`scripts/compare.py`, and the comparison at the end of a multirun."""

import shlex
import sys
from pathlib import Path
from typing import Any

from lr_lightning.reports.compare import CompareError, Comparison, Request, compare
from lr_lightning.reports.terminal import print_outcome
from lr_lightning.tracking import StoreUnavailable, TrackingError, open_store

FAILED, BAD_INPUT = 1, 2


def run(root: Path, uri: str | None, out: Path, **asked: Any) -> int:
    """Compare and print; every error of input is one message.

    Args:
        root: Folder of the default store.
        uri: Another store, or None.
        out: Where the comparison's folder is made, below ``compare/``.
        asked: The other fields of :class:`~lr_lightning.reports.compare.Request`.

    Returns:
        The exit status: 0; 1 if the store does not answer; 2 for bad input or nothing to compare.
    """
    try:
        if not asked.get("by", True):
            raise CompareError("--by: name at least one tag or param, such as schedule.")
        done = compare(Request(open_store(root, uri), out.expanduser().absolute(), **asked))
    except (CompareError, TrackingError) as e:
        print(f"error: {e}", file=sys.stderr)
        return BAD_INPUT
    except StoreUnavailable as e:
        print(f"error: the store does not answer: {e}", file=sys.stderr)
        return FAILED
    except OSError as e:
        print(f"error: --out: {e}", file=sys.stderr)
        return BAD_INPUT
    report(done)
    return 0


def report(done: Comparison) -> None:
    """Print the tables, the findings, and where the files are."""
    print_outcome(done.outcome, done.target, done.title)
    page, table, *pictures = done.files
    print(f"report:   {page}")
    print(f"table:    {table}")
    for path in pictures:
        print(f"picture:  {path}")
    if done.address:
        print(f"in MLflow (while `make ui` is running): {done.address}")
    print(f"open it:  xdg-open {shlex.quote(str(page))}")
