"""The plugin in a project with its own LightningCLI: cli.yaml names the callbacks, and the code does not change.

python examples/cli.py fit --config examples/cli.yaml
"""

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningCLI
from plain import Classifier, stripes
from torch import Tensor
from torch.utils.data import DataLoader, random_split


class Stripes(LightningDataModule):
    """The project's data."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.train, self.val = random_split(stripes(), (640, 128), torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return one batch."""
        return DataLoader(self.val, 128)


def main(args: ArgsType = None) -> LightningCLI:
    """Run the project's command line."""
    return LightningCLI(
        Classifier, Stripes, args=args, seed_everything_default=0, save_config_kwargs={"overwrite": True}
    )


if __name__ == "__main__":
    main()
