"""Whose training steps can be moved from outside."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

__all__ = ["check_optimization"]


def check_optimization(trainer: Trainer, module: LightningModule, who: str) -> None:
    """Refuse what cannot be measured, before anything has run.

    Raises:
        ValueError: Manual optimization, several optimizers, one without rates, or a ``training_step`` that takes the
            loader's iterator.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{who} works with automatic optimization, and {name} has automatic_optimization=False: its rates are set "
            f"by its own training_step. Remove {who}, and compare a few rates in whole runs instead."
        )
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"{who} works with one optimizer, and {name}.configure_optimizers gives {len(trainer.optimizers)}. "
            f"Remove {who}, or return one optimizer with several param groups: their ratios are kept."
        )
    groups = trainer.optimizers[0].param_groups
    if not groups or any("lr" not in group for group in groups):
        raise ValueError(
            f"{who} works with an optimizer that has lr, and {type(trainer.optimizers[0]).__name__} has none."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(f"{who} does not support {name}.training_step(dataloader_iter). Take a batch instead.")
