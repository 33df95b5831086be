"""Serve the MLflow UI on this checkout's own store, on 127.0.0.1 only: python scripts/ui.py [--port 5000]."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Start the server and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=5000, help="the port; a free one is taken if it is in use")
    parser.add_argument("--root", type=Path, default=ROOT / "mlruns", help="the store: this checkout's mlruns/")
    parser.add_argument("--uri", help="another store: postgresql://...")
    arguments = parser.parse_args()
    try:
        from lr_lightning.tracking.server import serve
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Run it with `make ui`, or activate .venv first (`make install`).")
    return serve(arguments.root, arguments.uri, arguments.port)


if __name__ == "__main__":
    sys.exit(main())
