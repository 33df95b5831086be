"""Tell a running training to cool down now, test and end: python scripts/cooldown.py outputs/RUN --over 10%."""

import argparse
import sys
from pathlib import Path

from _checkout import ROOT, installed, uri_of


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.replace("%", "%%"))
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a running training, or its MLflow run id")
    add("--over", default="20%", metavar="LENGTH", help="share of its steps so far, steps or epochs (20%%)")
    add("--outputs", type=Path, help="folder of the runs' output folders: outputs/ of the checkout")
    add("--root", type=Path, help="the MLflow store that knows the run: this checkout's mlruns/")
    add("--uri", help="another store: postgresql://... or http://...")
    return parser.parse_args()


def main() -> int:
    """Ask for the cooldown; return 2 for bad input, such as a run that is not running."""
    given = _arguments()
    with installed():
        from lr_lightning.app.commands.cooldown import run
    return run(ROOT, given.run, given.over, output_root=given.outputs, store_root=given.root, uri=uri_of(given))


if __name__ == "__main__":
    sys.exit(main())
