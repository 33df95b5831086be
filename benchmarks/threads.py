"""From what size of a network on do more threads of torch pay? The measurement behind `lr_lightning._threads.SMALL`.

Run: ``python -m benchmarks.threads [--quick]`` (about two minutes) on a quiet machine. Training steps of the networks
here, with several batch sizes, take turns with one thread and with all cores that this process may use. The table has
the multiply-adds of a batch's forward pass, which the rule reads, the milliseconds of a step (medians), and how many
times faster all cores are: the median over rounds, with the smallest and largest.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.report import show, spread, store
from lr_lightning._threads import multiply_adds, usable_cores
from lr_lightning.training.models import resnet9, small_cnn, smith_cnn

ROUNDS, SECONDS = 15, 0.2
CASES: tuple[tuple[str, Callable[..., nn.Module], tuple[int, int], tuple[int, ...]], ...] = (
    ("small_cnn", small_cnn, (1, 8), (16, 64, 256)),  # digits
    ("small_cnn", small_cnn, (1, 28), (16, 64, 256)),  # MNIST
    ("smith_cnn", smith_cnn, (3, 32), (16, 100)),  # CIFAR-10
    ("resnet9", resnet9, (3, 32), (4, 16)),
)


def measure(make: Callable[..., nn.Module], shape: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """Milliseconds of a step with one thread and with all."""
    torch.manual_seed(0)
    net = make(in_channels=shape[1], num_classes=10, image_size=shape[2:])
    work = multiply_adds(net, shape)
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(10, shape[:1])

    def step() -> float:
        began = time.perf_counter()
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - began

    taken: dict[int, list[float]] = {1: [], usable_cores(): []}
    for _ in range(rounds):
        for threads, medians in taken.items():
            torch.set_num_threads(threads)
            number = max(3, min(50, round(SECONDS / max(step(), step()))))
            medians.append(1000 * statistics.median(step() for _ in range(number)))
    one, many = taken.values()
    faster = spread([a / b for a, b in zip(one, many, strict=True)])
    return {
        "multiply_adds": work,
        "one_ms": statistics.median(one),
        "all_ms": statistics.median(many),
        "faster": faster,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest batches, nothing stored")
    quick = parser.parse_args().quick
    found: dict[str, Any] = {}
    print(f"{'':32}{'multiply-adds':>14}{'1 thread':>10}{usable_cores():>6} threads{'times faster':>24}")
    for name, make, (channels, side), batches in CASES:
        for batch in batches[: 1 if quick else None]:
            key = f"{name}, {batch} x {channels} x {side} x {side}"
            found[key] = row = measure(make, (batch, channels, side, side), 1 if quick else ROUNDS)
            times = f"{row['multiply_adds'] / 1e6:>12.1f} M{row['one_ms']:>7.2f} ms{row['all_ms']:>11.2f} ms"
            print(f"{key:<32}{times}{show(row['faster']):>24}", flush=True)
    store("threads", {"cores": usable_cores(), "nets": found}, quick)


if __name__ == "__main__":
    main()
