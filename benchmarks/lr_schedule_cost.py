"""Cost of LRSchedule for each optimizer step, in microseconds, on the CPU and, where there is one, on a GPU.

Run: ``python -m benchmarks.lr_schedule_cost [--quick]``. Each row is the median over 20 repeats of the time that
``on_train_batch_start`` takes, in a run of 100,000 steps, AdamW with two param groups. On a GPU, rates are tensors and
any synchronization is an error.
"""

import argparse
import time
from types import SimpleNamespace
from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer

from benchmarks.report import show, spread, store
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.optimizer_driver import OptimizerDriver
from lr_lightning.schedules import (
    REX,
    WSD,
    Clock,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    OneMinusSqrt,
    Polynomial,
    Product,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)

TOTAL = 100_000
REPEATS, CALLS = 20, 500

SCHEDULES: dict[str, Schedule] = {
    "constant": Constant(),
    "linear": Linear(),
    "cosine": Cosine(),
    "exponential": Exponential(),
    "polynomial": Polynomial(),
    "one minus sqrt": OneMinusSqrt(),
    "rex": REX(),
    "inverse sqrt": InverseSqrt("1%"),
    "step, in steps": Step(1000, 0.9),
    "step, in epochs": Step("1 epoch", 0.99),
    "multistep": MultiStep(("30%", "60%", "80%")),
    "triangular": Triangular(0.2, "2 epochs"),
    "restarts x 1, in epochs": Restarts(Cosine(), "1 epoch"),
    "restarts x 2": Restarts(Cosine(), 10, mult=2),
    "one cycle": OneCycle(),
    "wsd": WSD(),
    "warmup, cosine": Warmup("5%", Cosine()),
    "join of three": Join((Linear(0, 1), "5%"), (Constant(), None), (OneMinusSqrt(), "20%")),
    "nested": Warmup("5%", Join((Product(Cosine(), Step("1 epoch", 0.99)), "50%"), (Restarts(Linear(), "5%"), None))),
}


def microseconds(schedule: Schedule, device: str) -> dict[str, float]:
    """Cost of one call, over the whole run."""
    lr: float | torch.Tensor = 0.1 if device == "cpu" else torch.tensor(0.1, device=device)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1, device=device))]} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups, lr=lr, capturable=device != "cpu")
    callback = LRSchedule(schedule)
    clock = Clock(TOTAL, epoch_starts=tuple(range(0, TOTAL + 1, 400)))
    callback._drivers, callback._clocks = [OptimizerDriver(optimizer, schedule)], [clock]
    stand_in = SimpleNamespace(global_step=0)
    trainer, module = cast(Trainer, stand_in), cast(LightningModule, None)
    callback.on_train_batch_start(trainer, module, None, 0)  # the peak is read once, which waits for the device
    if device != "cpu":
        torch.cuda.set_sync_debug_mode("error")
    times = []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        for call in range(CALLS):
            stand_in.global_step = (repeat * CALLS + call) * (TOTAL // (REPEATS * CALLS))
            callback.on_train_batch_start(trainer, module, None, 0)
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    if device != "cpu":
        torch.cuda.set_sync_debug_mode("default")
    return spread(times)


def main() -> None:
    """Print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three schedules, nothing stored")
    quick = parser.parse_args().quick
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    chosen = dict(list(SCHEDULES.items())[:3]) if quick else SCHEDULES
    print("microseconds a step, median (smallest to largest)")
    print(f"{'schedule':<26}" + "".join(f"{device:>24}" for device in devices))
    result = {name: {device: microseconds(schedule, device) for device in devices} for name, schedule in chosen.items()}
    for name, found in result.items():
        print(f"{name:<26}" + "".join(f"{show(found[device], '{:.1f}'):>24}" for device in devices))
    store("lr_schedule_cost", {"microseconds": result}, quick)


if __name__ == "__main__":
    main()
