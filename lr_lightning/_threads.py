"""Threads of torch: the cores that this process may use, how many threads pay, and a warning where they do harm."""

import copy
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SMALL = 50e6
"""Multiply-adds of a batch's forward pass up to which one thread is used.

The default run, `small_cnn` on batches of 64 digits, has 29.5 million. On two quiet cores a second thread makes it 1.2
times as fast (0.94 to 1.82); beside two busy processes it takes 3 to 25 times as long with two. `benchmarks.threads`
measures the former.
"""

SHARE = "LR_LIGHTNING_SHARE"
"""Environment variable: the number of processes, such as the workers of a search, that share this machine's cores."""

_TIMED_STEPS = (20, 60)
_HARMFUL = 5.0  # times as long as with one thread
_GRAIN = 32768  # elements up to which torch works with one thread
_REPEATS = 10
_OPERATIONS = 20  # that a step splits among its threads, at the least


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use: its affinity, and its cgroups' CPU quotas (v1 and v2).

    A quota of 1.5 cores is one: a second thread would be stopped for half of the time, and the first one waits for it.
    ``root`` is where `proc` and `sys` lie.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([own, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each cgroup of this process that has one; the parents of a cgroup count too."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        inner = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for hierarchy in (controllers, "cpu") if controllers else ("", "unified"):
            for group in (inner, *inner.parents):
                yield from _quota_of(mount / hierarchy / group.relative_to("/"))


def _quota_of(group: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # v2, v1
        try:
            words = " ".join((group / name).read_text(encoding="utf-8") for name in names).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # "max": no limit
            continue
        if quota > 0 and period > 0:
            yield quota / period


def core_share(processes: int = 1) -> int:
    """Return how many cores each of a run's ``processes`` may use, beside the other runs that share this machine."""
    others = int(os.environ.get(SHARE, "1"))
    return max(1, usable_cores() // max(1, processes * others))


def multiply_adds(net: "nn.Module", shape: Sequence[int], limit: float = math.inf) -> float:
    """Return the multiply-adds of the forward pass of a batch; infinity if they cannot be counted, or exceed ``limit``.

    The network is copied without its values, so that nothing is computed and no random number is drawn.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if sum(p.numel() for p in net.parameters()) * shape[0] > limit:
        return math.inf  # each weight is used for each example, so there is no need to copy a large network
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            copy.deepcopy(net).to("meta")(torch.empty(tuple(shape), device="meta"))
        return float(counter.get_total_flops()) / 2
    except Exception:  # a network of the user's may do anything
        return math.inf


def threads_for(net: "nn.Module | None" = None, shape: Sequence[int] = (), processes: int = 1, helpers: int = 0) -> int:
    """Return how many threads to use: 1 for a small network, else this process's share of the cores.

    Args:
        net: The network that is trained; None if it is not known yet.
        shape: Of a batch.
        processes: Of this run on this machine.
        helpers: Processes that decode images for this one.
    """
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        return max(1, int(given))
    if net is not None and multiply_adds(net, shape, SMALL) <= SMALL:
        return 1
    return max(1, core_share(processes) - helpers)


class ThreadWatch:
    """Warn, once in a process, if its threads wait for each other so long that steps take many times longer.

    Beside other busy processes each small operation waits until all of its threads have had a core. After a few steps
    on the CPU an operation that torch splits among its threads is timed beside the same work that it does with one.
    """

    _warned = False  # of the process

    def __init__(self) -> None:
        self._steps, self._began = 0, 0.0

    def step(self) -> bool:
        """Count a training step, and time the operations after a few of them. Returns False when nothing is left."""
        self._steps += 1
        if self._steps == 1:
            self._began = time.perf_counter()
        elif self._steps in _TIMED_STEPS:
            self._warn((time.perf_counter() - self._began) / (self._steps - 1))
        return self._steps < _TIMED_STEPS[-1]

    def _warn(self, step_seconds: float) -> None:
        import torch

        if (threads := torch.get_num_threads()) == 1 or ThreadWatch._warned:
            return
        split, alone = _time_operations(threads)
        if split < _HARMFUL * alone or _OPERATIONS * (split - alone) < step_seconds / 2:
            return  # the second: long operations, which threads do not slow down many times
        ThreadWatch._warned = True
        warnings.warn(
            f"Training is slowed down by torch's {threads} threads, which wait for each other: an operation that they "
            f"share takes {split / alone:.0f} times as long as with one thread. Other processes use the same cores, or "
            "a limit allows fewer. Call torch.set_num_threads(1) before training, or set OMP_NUM_THREADS=1; in the app "
            "give trainer.threads=1.",
            stacklevel=2,
        )


def _time_operations(threads: int) -> tuple[float, float]:
    """Return the seconds of an operation that torch splits among its threads, and of the same work with one thread."""
    import torch

    values = torch.zeros(threads * _GRAIN)
    parts = torch.split(values, _GRAIN // 2)  # too small to be shared
    split = alone = 0.0
    for _ in range(_REPEATS):
        began = time.perf_counter()
        values.add_(1.0)
        between = time.perf_counter()
        for part in parts:
            part.add_(1.0)
        split, alone = split + between - began, alone + time.perf_counter() - between
    return split / _REPEATS, alone / _REPEATS
