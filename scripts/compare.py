"""Compare runs: python scripts/compare.py --by schedule --target "val/acc>=0.97" writes a report below outputs/."""

import argparse
import logging
import sys
from pathlib import Path

from _checkout import ROOT, installed, uri_of


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--experiment", action="append", default=[], help="name of an MLflow experiment; may be given more than once")
    add("--by", help="tags or params that make the groups, such as schedule,optimizer.lr (schedule)")
    add("--filter", default="", help="in MLflow's search language: \"params.\\`optimizer.lr\\` = '0.1'\"")
    add("--target", help='the target to measure the time to, such as "val/acc>=0.97"')
    add("--metric", help="the validation metric that decides (val/acc, else val/loss)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--higher-is-better", action="store_true", default=None, help="more of that metric is better")
    which.add_argument("--lower-is-better", dest="higher_is_better", action="store_false", help="less of it is")
    add("--against", metavar="GROUP", help="compare only with this group, chosen beforehand: that needs fewer seeds")
    add(
        "--same-within",
        type=float,
        help="a difference that does not matter, such as 0.003: test whether groups are equal",
    )
    add("--root", type=Path, default=ROOT / "mlruns", help="the store: this checkout's mlruns/")
    add("--uri", help="another store: postgresql://... or http://...")
    add(
        "--out",
        type=Path,
        default=ROOT / "outputs",
        help="folder for the report, in compare/: outputs/ of the checkout",
    )
    add("--server", help="address of the MLflow UI, for the links (http://127.0.0.1:5000)")
    add("--no-log", action="store_true", help="do not log the report to MLflow")
    return parser.parse_args()


def main() -> int:
    """Compare the requested runs; return 2 for bad input, 1 if the store does not answer."""
    given = _arguments()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with installed():
        from lr_lightning.app.commands.compare import run
    return run(
        given.root,
        uri_of(given),
        given.out,
        experiments=given.experiment,
        by=None if given.by is None else [key.strip() for key in given.by.split(",") if key.strip()],
        filter_string=given.filter,
        target=given.target,
        metric=given.metric,
        higher_is_better=given.higher_is_better,
        against=given.against,
        same_within=given.same_within,
        log_run=not given.no_log,
        server=given.server,
    )


if __name__ == "__main__":
    sys.exit(main())
