"""`scripts/compare.py`: compare tracked runs, and print the result."""

import shlex
import sys
from pathlib import Path
from typing import Any

from lr_lightning.app.error_messages import BAD_INPUT, FAILED
from lr_lightning.errors import CompareError, StoreUnavailable, TrackingError
from lr_lightning.reports import wording
from lr_lightning.reports.comparison import Report, ReportRequest, compare
from lr_lightning.reports.tables import print_comparison
from lr_lightning.tracking import open_store


def run(root: Path, uri: str | None, out: Path, *, after_sweep: bool = False, brief: bool = False, **asked: Any) -> int:
    """Compare runs and print the result; every input error is one message.

    Args:
        root: Folder of the default store.
        uri: Another store, or None.
        out: Where the comparison's folder is made, below ``compare/``.
        after_sweep: Whether the comparison ends a multirun. The user gave no options then, so no message names one.
        brief: Whether to print only the findings and the files, not the tables.
        asked: The other fields of :class:`~lr_lightning.reports.comparison.ReportRequest`.

    Returns:
        The exit status: 0; 1 if the store does not answer; 2 for bad input or nothing to compare.
    """
    try:
        if asked.get("by") == []:
            raise CompareError("name at least one tag or param, such as schedule.", "by")
        done = compare(ReportRequest(open_store(root, uri), out.expanduser().absolute(), **asked))
    except CompareError as e:
        return _refused(str(e) if after_sweep else e.on_the_command_line, BAD_INPUT, after_sweep)
    except TrackingError as e:
        return _refused(str(e), BAD_INPUT, after_sweep)
    except StoreUnavailable as e:
        return _refused(f"the store does not answer: {e}", FAILED, after_sweep)
    except OSError as e:
        return _refused(str(e) if after_sweep else f"--out: {e}", BAD_INPUT, after_sweep)
    report(done, brief=brief)
    return 0


def _refused(text: str, status: int, after_sweep: bool) -> int:
    print(f"{'the runs are not compared' if after_sweep else 'error'}: {text}", file=sys.stderr)
    return status


def report(done: Report, *, brief: bool = False) -> None:
    """Print the tables, the findings, and the paths of the files."""
    if brief:
        for finding in wording.findings(done.compared):
            print(wording.printable(finding))
    else:
        print_comparison(done.compared, done.target, done.title)
    for text in done.good_lrs:
        print(f"good lrs:    {wording.printable(text)}")
    page, table, *pictures = done.files
    print(f"report:   {page}")
    print(f"table:    {table}")
    for path in pictures:
        print(f"picture:  {path}")
    if done.address:
        print(f"in MLflow{'' if done.served else ' (while `make ui` is running)'}: {done.address}")
    print(f"open it:  xdg-open {shlex.quote(str(page))}")
