"""`scripts/compare.py`, and the comparison that ends a multirun or a search: compare runs, and print the result."""

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lr_lightning._commands import shell_quote
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, explain_path
from lr_lightning.app.schemas.trainer import TrackingConfig
from lr_lightning.errors import CompareError, Rejected, StoreUnavailable, TrackingError
from lr_lightning.reports import wording
from lr_lightning.reports.comparison_report import ComparisonReport, ReportRequest, compare
from lr_lightning.reports.tables import print_comparison
from lr_lightning.tracking import open_store
from lr_lightning.tracking.keys import JOB_TAG
from lr_lightning.tracking.query import experiment_of_environment, experiments

_EARLIER_RUNS = 300
_FEWEST_FREE = 3  # degrees of freedom of a spread
_ACCURACY = "summary/best_val_acc"
_OF_A_RUN = ("seed", "tracking.", "output_root", "data.split_seed")


def run(
    store_root: Path, uri: str | None, out: Path, *, after_sweep: bool = False, brief: bool = False, **asked: Any
) -> int:
    """Compare runs, print the result, and return the exit status; every input error is one message.

    A comparison ``after_sweep`` ends a multirun, whose user gave no options, so no message names one. A ``brief`` one
    prints only the findings and the files. ``asked`` are the other fields of ``ReportRequest``.
    """
    status = BAD_INPUT
    try:
        if asked.get("by") == []:
            raise CompareError("name at least one tag or param, such as schedule.", "by")
        store = open_store(store_root, uri).for_reading()
        if not asked.get("experiments") and (name := experiment_of_environment(store)):
            print(f"the experiment is {name}, from MLflow's variables", file=sys.stderr)
            asked["experiments"] = [name]
        done = compare(ReportRequest(store, out.expanduser().absolute(), **asked))
    except CompareError as e:
        text = str(e) if after_sweep else e.on_the_command_line
    except TrackingError as e:
        text = str(e)
    except StoreUnavailable as e:
        status, text = FAILED, f"the store does not answer: {e}"
    except OSError as e:
        text = str(e) if after_sweep else explain_path(e, [("--out", out)]) or f"--out: {e}"
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
    while_served = "" if done.served else " (while `make ui` is running)"
    if done.address:
        print(f"in MLflow{while_served}: {done.address}")
    for name, address in done.charts.items():
        print(f"charts of {name}{while_served}, without failed and diverged runs: {wording.printable(address)}")
    print(f"open it:  xdg-open {shell_quote(str(page))}")


def compare_sweep(node: TrackingConfig, out: str, sweep: str, by: Sequence[str], **asked: Any) -> None:
    """Compare the runs that share the tag ``sweep``, with arguments of :func:`run`. Never raises: the runs are done."""
    try:
        runs = f"tags.sweep = '{sweep}'"
        run(Path(node.root), node.uri, Path(out), by_varied=by, filter_string=runs, after_sweep=True, **asked)
    except Exception as e:
        print(f"the runs are not compared: {type(e).__name__}: {e}", file=sys.stderr)


def seed_spread(node: TrackingConfig, data: str, model: str) -> tuple[float, int] | None:
    """Return the standard deviation of the best validation accuracy between seeds, and of how many runs it is.

    The runs are earlier ones of the same data set and model in the same experiment, pooled over the settings in which
    they agree. It is None without a local store, or if there are fewer than three degrees of freedom.
    """
    if node.name != "mlflow" or (node.uri or "").startswith("http"):  # one that is down would delay the start
        return None
    wanted = {JOB_TAG: "train", "data": data, "model": model}
    where = " and ".join(f"tags.{key} = '{value}'" for key, value in wanted.items())
    options = {"max_results": _EARLIER_RUNS, "order_by": ["attributes.start_time DESC"]}
    try:
        store = open_store(Path(node.root), node.uri)
        key = experiments(store).get(node.experiment_name)
        found = (
            store.call("search_runs", [key], f"{where} and attributes.status = 'FINISHED'", **options) if key else []
        )
    except (TrackingError, StoreUnavailable, Rejected, OSError):
        return None  # the run itself says what is wrong with the store
    of_setting: dict[frozenset[tuple[str, str]], list[float]] = {}
    for logged in (run.data for run in found if _ACCURACY in run.data.metrics):
        setting = ((name, value) for name, value in logged.params.items() if not name.startswith(_OF_A_RUN))
        of_setting.setdefault(frozenset(setting), []).append(logged.metrics[_ACCURACY])
    several = [values for values in of_setting.values() if len(values) > 1]
    free = sum(len(values) - 1 for values in several)
    if free < _FEWEST_FREE:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return math.sqrt(squares / free), sum(map(len, several))
