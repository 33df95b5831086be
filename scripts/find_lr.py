"""Search for a learning rate, without training: python scripts/find_lr.py model=resnet9 optimizer=adam (--help)."""

import sys

from _checkout import ROOT, installed

if __name__ == "__main__":
    with installed():
        from lr_lightning.app.commands.hydra_main import main
    sys.exit(main(ROOT, "find_lr"))
