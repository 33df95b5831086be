"""`scripts/compare.py`, and the comparison that ends a multirun or a search: compare runs, and print the result."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lr_lightning._commands import shell_quote
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import BAD_INPUT, FAILED
from lr_lightning.errors import CompareError, StoreUnavailable, TrackingError
from lr_lightning.reports import wording
from lr_lightning.reports.comparison_report import ComparisonReport, ReportRequest, compare
from lr_lightning.reports.tables import print_comparison
from lr_lightning.tracking import open_store


def run(root: Path, uri: str | None, out: Path, *, after_sweep: bool = False, brief: bool = False, **asked: Any) -> int:
    """Compare runs, print the result, and return the exit status; every input error is one message.

    A comparison ``after_sweep`` ends a multirun, whose user gave no options, so no message names one. A ``brief`` one
    prints only the findings and the files. ``asked`` are the other fields of ``ReportRequest``.
    """
    status = BAD_INPUT
    try:
        if asked.get("by") == []:
            raise CompareError("name at least one tag or param, such as schedule.", "by")
        done = compare(ReportRequest(open_store(root, uri), out.expanduser().absolute(), **asked))
    except CompareError as e:
        text = str(e) if after_sweep else e.on_the_command_line
    except TrackingError as e:
        text = str(e)
    except StoreUnavailable as e:
        status, text = FAILED, f"the store does not answer: {e}"
    except OSError as e:
        text = str(e) if after_sweep else f"--out: {e}"
    else:
        report(done, brief=brief)
        return 0
    print(f"{'the runs are not compared' if after_sweep else 'error'}: {text}", file=sys.stderr)
    return status


def report(done: ComparisonReport, *, brief: bool = False) -> None:
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
    print(f"open it:  xdg-open {shell_quote(str(page))}")


def compare_sweep(config: Config, sweep: str, by: Sequence[str], experiments: list[str], brief: bool = False) -> None:
    """Compare the runs that share the tag ``sweep``. Never raises: the runs are done, and their command succeeded."""
    try:
        places = Path(config.tracking.root), config.tracking.uri, Path(config.output_root)
        runs = f"tags.sweep = '{sweep}'"
        run(*places, experiments=experiments, by_varied=by, filter_string=runs, after_sweep=True, brief=brief)
    except Exception as e:
        print(f"the runs are not compared: {type(e).__name__}: {e}", file=sys.stderr)
