"""Draw schedules without training: python scripts/plot_schedules.py cosine wsd schedule.cooldown=40% --terminal."""

import argparse
import shutil
import sys
from pathlib import Path

from _checkout import ROOT, installed


def _positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text}")
    return float(text)


def _steps(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)


def main() -> int:
    """Draw the requested schedules; return 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="NAME|KEY=VALUE",
        help="choices of conf/schedule (all, if none is given) and overrides: one after a name is for that name, "
        "one before all names is for all",
    )
    parser.add_argument("--steps", type=_steps, default=300, help="optimizer steps in the run (%(default)s)")
    parser.add_argument("--epochs", type=_positive, default=15, help="epochs in the run (%(default)s)")
    parser.add_argument("--lr", type=_positive, help="the peak lr: draw learning rates, not shares of the peak")
    parser.add_argument("--out", type=Path, help="the picture (outputs/schedules.png of the checkout)")
    parser.add_argument("--terminal", action="store_true", help="draw as text; without --out, only that")
    arguments = parser.parse_intermixed_args()
    with installed():
        from lr_lightning.app.commands.plot_schedules import as_text, preview, save_figure
        from lr_lightning.app.error_messages import BAD_INPUT, print_error
        from lr_lightning.errors import ConfigError
    steps, epochs, out = arguments.steps, arguments.epochs, arguments.out
    unit = "lr / peak" if arguments.lr is None else "lr"
    try:
        drawn = preview(arguments.words, ROOT, steps=steps, epochs=epochs, peak=arguments.lr)
        if arguments.terminal or sys.stdout.isatty():
            print(as_text(drawn, shutil.get_terminal_size((100, 24)).columns))
        if out is not None or not arguments.terminal:
            out = out or ROOT / "outputs" / "schedules.png"
            save_figure(drawn, out, title=f"Learning rate over {steps} steps, {epochs:g} epochs", unit=unit)
            print(f"drawn: {out}")
    except ConfigError as e:
        print_error(e)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
