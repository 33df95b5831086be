"""What one rank pays for there being many: the order of an epoch, and the random numbers of a whole batch.

    python -m benchmarks.many_ranks [--quick]

No other process is started: a loader is told that it is rank 0 of so many. 1,281,167 images (as many as ImageNet's), 32
a rank and step, with flips and crops, whose random numbers every rank draws for all ranks so that their number changes
nothing.
"""

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.report import spread, store
from lr_lightning.training import transforms as augment
from lr_lightning.training.loader import BatchLoader

WORLDS = (1, 8, 64, 1024)
_IMAGES, _BATCH = 1_281_167, 32


class NoImages:
    """Gives an empty batch: what an image costs is another question."""

    def __len__(self) -> int:
        return _IMAGES

    def take(self, indices: Any) -> torch.Tensor:
        return torch.empty(len(indices), 0)


def measure(world: int, steps: int) -> dict[str, Any]:
    labels = np.zeros(_IMAGES, np.int64)
    draw = partial(augment.draw_augmentation, padding=4, flip=True)
    loader = BatchLoader(NoImages(), labels, batch_size=_BATCH, train=True, draw=draw, world=world)
    began = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - began
    times = []
    for _ in range(min(steps, len(loader) - 1)):
        began = time.perf_counter()
        next(batches)
        times.append((time.perf_counter() - began) * 1e3)
    return {"steps_an_epoch": len(loader), "start_of_epoch_seconds": first, "ms_a_step": spread(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 8 ranks, nothing stored")
    args = parser.parse_args()
    result = {}
    for world in WORLDS[:2] if args.quick else WORLDS:
        result[str(world)] = measure(world, 30)
        print(world, result[str(world)], flush=True)
    store("many_ranks", {"ranks": result}, args.quick)


if __name__ == "__main__":
    main()
