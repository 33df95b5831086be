"""The state of every random generator, in the checkpoint."""

import random
from typing import Any, cast

import numpy as np
import torch

from lr_lightning._lightning import BaseCallback, LightningModule, Trainer, restart_train_iterator

__all__ = ["RandomState", "global_random_state", "restore_random_state"]


class RandomState(BaseCallback):
    """Keep the random states of torch, CUDA, numpy and Python in the checkpoint, so that dropout resumes exactly.

    Lightning's own checkpoint holds none of them. With several processes, each rank gets its own state back. The state
    consists of tensors and plain values: ``torch.load(weights_only=True)`` reads it. List this callback after the
    callbacks that draw random numbers when training starts.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks, in rank order."""
        state = global_random_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [state]}
        ranks: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(ranks, state)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts; the rest of loading draws random numbers until then."""
        self._loaded = state_dict["ranks"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore this rank's state; if the number of ranks has changed, the generators keep their fresh state."""
        if self._loaded is not None and len(self._loaded) == trainer.world_size:
            restore_random_state(self._loaded[trainer.global_rank])
            fit_loop = trainer.fit_loop
            if fit_loop.resumed_on_epoch_end or fit_loop.restarted_on_epoch_end:
                # A DataLoader draws a random number when its iterator is made. The run that was never stopped makes it
                # now, after the state that was saved; a resumed one has made it before this hook.
                restart_train_iterator(trainer)
        self._loaded = None


def global_random_state() -> dict[str, Any]:
    """Return the states of this process's global generators, as tensors and plain values; CUDA's current device."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = cast(Any, np.random.get_state(legacy=True))
    words = torch.tensor(keys.tolist(), dtype=torch.int64)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # type: ignore[no-untyped-call]
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [str(kind), words, int(position), int(has_gauss), float(cached)],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global generators to what :func:`global_random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys.tolist(), dtype=np.uint32), position, has_gauss, cached))
