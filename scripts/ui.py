"""Serve the MLflow UI on this checkout's store, on 127.0.0.1 only: python scripts/ui.py [--port 5000] [--open]."""

import argparse
import sys
from pathlib import Path

from _checkout import ROOT, installed, uri_of


def _port(text: str) -> int:
    if not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 (any) to 65535, got {text}")
    return int(text)


def main() -> int:
    """Start the server and print its address; return 2 for bad input, 1 if the store does not answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=_port, default=5000, help="the port; a free one is taken if it is in use")
    parser.add_argument("--open", action="store_true", help="open the charts in a browser")
    parser.add_argument("--experiment", help="the experiment to show; by default the one written to last")
    parser.add_argument("--root", type=Path, default=ROOT / "mlruns", help="the store: this checkout's mlruns/")
    parser.add_argument("--uri", help="another store: postgresql://...")
    upgrade = "upgrade a store that an older MLflow made, and keep a copy of it"
    parser.add_argument("--upgrade-store", action="store_true", help=upgrade)
    given = parser.parse_args()
    uri = uri_of(given)
    with installed():
        from lr_lightning.errors import StoreUnavailable, TrackingError
        from lr_lightning.tracking import open_store
        from lr_lightning.tracking.ui import serve
    try:
        if given.upgrade_store:
            print(f"upgraded; the store of before is {open_store(given.root, uri).upgrade()}")
            return 0
        return serve(given.root, uri, given.port, given.experiment, show=given.open)
    except TrackingError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except StoreUnavailable as e:
        print(f"error: the store does not answer: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
