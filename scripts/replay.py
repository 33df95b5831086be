"""Send the unsent records of stopped runs to their MLflow store: ``python scripts/replay.py <output dir> ...``."""

import argparse
import logging
import sys
from pathlib import Path

from _checkout import installed


def main() -> int:
    """Replay every given folder; return 1 if one of them could not be sent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", nargs="+", type=Path, help="output directory of a run that has stopped")
    folders = parser.parse_args().output_dir
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with installed():
        from lr_lightning.errors import StoreUnavailable, TrackingError
        from lr_lightning.tracking import replay
    failed = False
    for folder in folders:
        try:
            done = replay(folder)
        except StoreUnavailable as error:
            print(f"error: {folder}: the store does not answer: {error}. Try again when it does.", file=sys.stderr)
            failed = True
        except TrackingError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
        except OSError as error:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            failed = True
        else:
            what = f"sent {done.records} records" if done.records else "nothing was left to send"
            print(f"{folder}: {what} (run {done.run_id} of {done.uri})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
