"""Search for a learning rate, without training: python scripts/find_lr.py model=resnet9 optimizer=adam (--help)."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    try:
        from lr_lightning.app.cli import main
    except ModuleNotFoundError as e:
        sys.exit(f"error: {e}. Activate .venv first (`make install` makes it).")
    sys.exit(main(ROOT, "find_lr"))
