"""Predict new images with a trained run: python scripts/predict.py outputs/RUN new_images/ > predictions.csv."""

import argparse
import sys
from pathlib import Path

from _checkout import ROOT, installed, run_arguments, uri_of


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a run, or its MLflow run id; the table at its end names both")
    add("images", metavar="IMAGES", nargs="+", help="image files, and folders of them; unreadable ones are skipped")
    add("--top", type=int, default=1, metavar="N", help="give the N most probable classes of each image (1)")
    add("--csv", type=Path, metavar="FILE", help="also write the table as CSV; a pipe gets CSV anyway")
    run_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Predict; return 1 if no image could be read, 2 for bad input."""
    given = _arguments()
    with installed():
        from lr_lightning.app.commands.predict import run
    return run(
        ROOT,
        given.run,
        given.images,
        table=given.csv,
        checkpoint=given.checkpoint,
        top=max(1, given.top),
        trust=given.trust,
        output_root=given.outputs,
        store_root=given.root,
        uri=uri_of(given),
    )


if __name__ == "__main__":
    sys.exit(main())
