"""Search for a learning rate: python scripts/search.py search=grid (--help)."""

import sys

from _checkout import ROOT, installed

if __name__ == "__main__":
    with installed():
        from lr_lightning.search.cli import main
    sys.exit(main(ROOT))
