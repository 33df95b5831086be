"""The other callbacks of a Trainer."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

__all__ = ["callbacks_of"]

_T = TypeVar("_T", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[_T]) -> list[_T]:
    """Those of one kind, in the Trainer's order."""
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
    return [callback for callback in every if isinstance(callback, kind)]
