"""Train a CNN on a learning-rate schedule: python scripts/train.py schedule=cosine optimizer.lr=0.05 (--help)."""

import sys

from _checkout import ROOT, installed

if __name__ == "__main__":
    with installed():
        from lr_lightning.app.commands.hydra_main import main
    sys.exit(main(ROOT))
