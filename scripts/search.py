"""Search for a learning rate: python scripts/search.py search=grid (--help)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    try:
        from lr_lightning.search.cli import main
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Set up and run everything with `make train`, or activate .venv first (`make install`).")
    sys.exit(main(ROOT))
