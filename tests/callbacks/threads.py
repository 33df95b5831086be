"""Ranks as threads: what several processes would agree on, in one."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Strategy:
    """One rank's collectives among threads: where a rank stays away, or brings another shape, it is an error."""

    root_device = torch.device("cpu")

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.slots, self.barrier = rank, slots, barrier

    def all_gather(self, tensor: Tensor) -> Tensor:
        self.barrier.wait()
        self.slots[self.rank] = tensor
        self.barrier.wait()
        return torch.stack(list(self.slots))

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        every = self.all_gather(torch.tensor(int(decision))).tolist()
        return min(every) == 1 if all else max(every) == 1


def on_ranks(work: Callable[[Any], Any], world: int = 2) -> list[Any]:
    """What ``work`` gives on each rank, called with a Trainer of that rank."""
    slots, barrier, found = [None] * world, threading.Barrier(world, timeout=60), [None] * world

    def run(rank: int) -> None:
        strategy = Strategy(rank, slots, barrier)
        trainer = SimpleNamespace(world_size=world, global_rank=rank, strategy=strategy, callback_metrics={})
        try:
            found[rank] = work(trainer)
        except BaseException as e:
            found[rank] = e
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found
