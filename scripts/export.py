"""Write a trained run's network for plain torch or ONNX: python scripts/export.py outputs/RUN --format onnx."""

import argparse
import sys
from pathlib import Path

from _checkout import ROOT, installed, run_arguments, uri_of


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a run, or its MLflow run id; the table at its end names both")
    add(
        "--format",
        action="append",
        default=[],
        choices=("torchscript", "torch_export", "onnx"),
        help="may be given more than once (torchscript and torch_export); onnx needs onnx and onnxscript",
    )
    add("--to", type=Path, metavar="FOLDER", help="where to write (export/ in the run's output folder)")
    add(
        "--weights",
        choices=("last", "averaged"),
        default="last",
        help="averaged: the running average of callbacks.cooldown_preview, in place of the checkpoint's own (last)",
    )
    run_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Export; return 2 for bad input."""
    given = _arguments()
    with installed():
        from lr_lightning.app.commands.export import run
    return run(
        ROOT,
        given.run,
        to=given.to,
        formats=given.format,
        checkpoint=given.checkpoint,
        averaged=given.weights == "averaged",
        trust=given.trust,
        output_root=given.outputs,
        store_root=given.root,
        uri=uri_of(given),
    )


if __name__ == "__main__":
    sys.exit(main())
