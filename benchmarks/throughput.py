"""The training step of the app beside a hand-written torch loop and beside Lightning alone, over the same batches.

Run: ``python -m benchmarks.throughput [--quick] [--cifar10 FOLDER]``. Four arms take turns in one process, so that a
busy machine slows all of them alike: ``loop`` (plain torch: forward, backward, SGD, cosine rate), ``lightning`` (the
same module in a Trainer without callbacks or logger), ``callbacks`` (the app, recording nothing) and ``app`` (the app
as it is: each step's rate and loss is stored by MLflow on SQLite). A round's ratio is the arm's median step over the
loop's of the same round; the table gives the median over rounds, with the smallest and largest. ``of means`` is the
ratio of the mean steps of all rounds: it contains what comes only now and then, such as a flush of the log, and the
machine's noise. Validation, probe and checkpoints are per epoch, not per step: they are left out of these arms, and
measured in a run of their own, which also says where a step's time goes. digits always runs; CIFAR-10 where its two
parquet files are given.
"""

import argparse
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.nn.functional import cross_entropy

from benchmarks.report import show, spread, store
from benchmarks.time_profile import profile, show_parts
from benchmarks.trainings import ROOT
from lr_lightning.app import build
from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.config import Config
from lr_lightning.app.run.messages import quiet
from lr_lightning.app.run.train import train
from lr_lightning.training.datamodule import ImageDataModule

WARMUP = 20  # steps that are not measured
ROUNDS = 15
GOALS = (
    ("cifar10/smith_cnn", "app", "loop", 1.03),
    ("digits/small_cnn", "callbacks", "lightning", 1.05),
    ("digits/small_cnn", "app", "lightning", 1.05),
)
"""What a step may cost: of a problem, an arm over another, at the most."""


class Clock(Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def durations(ends: list[float]) -> list[float]:
    """Milliseconds of each step after the warmup."""
    return [1000 * (b - a) for a, b in zip(ends[WARMUP - 1 :], ends[WARMUP:], strict=False)]


def endless(data: ImageDataModule) -> Iterator[Any]:
    """The training batches as a loop sees them, epoch after epoch."""
    loader = data.train_dataloader()
    for epoch in range(10**9):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            yield data.on_after_batch_transfer(batch, 0)


def fresh(config: Config, data: ImageDataModule) -> Any:
    """A module with the same weights in every arm."""
    seed_everything(config.seed, verbose=False)
    net = build.build_net(config.model, data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return build.build_module(config.module, config.optimizer, net, data)


def loop(config: Config, data: ImageDataModule, steps: int) -> list[float]:
    """The hand-written loop."""
    net = fresh(config, data).net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.optimizer.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    data.trainer = None
    batches = endless(data)
    ends = []
    for step in range(WARMUP + steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * step / (WARMUP + steps)))
        images, labels = next(batches)
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return durations(ends)


def lightning(config: Config, data: ImageDataModule, steps: int) -> list[float]:
    """Lightning alone."""
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=WARMUP + steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(fresh(config, data), datamodule=data)
    return durations(clock.ends)


def app(config: Config, data: ImageDataModule, steps: int) -> list[float]:
    """A run of the app; the logger's own thread works meanwhile."""
    clock = Clock()
    node = replace(config.trainer, max_steps=WARMUP + steps, max_epochs=-1, limit_val_batches=0)
    with patch.object(build, "build_data", lambda config: data):  # decoded once for all arms
        train(replace(config, trainer=node), report=False, watching=[clock])
    return durations(clock.ends)


def callbacks(config: Config, data: ImageDataModule, steps: int) -> list[float]:
    """The same, recording nothing."""
    return app(replace(config, tracking=replace(config.tracking, name="none")), data, steps)


ARMS: dict[str, Callable[[Config, ImageDataModule, int], list[float]]] = {
    "loop": loop,
    "lightning": lightning,
    "callbacks": callbacks,
    "app": app,
}


def measure(config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """All arms in turn, several rounds; the order changes from round to round."""
    data = build.build_data(config)
    data.prepare()
    medians: dict[str, list[float]] = {name: [] for name in ARMS}
    means: dict[str, list[float]] = {name: [] for name in ARMS}
    for number in range(rounds):
        names = list(ARMS) if number % 2 == 0 else list(reversed(ARMS))
        for name in names:
            taken = ARMS[name](config, data, steps)
            medians[name].append(statistics.median(taken))
            means[name].append(statistics.fmean(taken))
        print(f"  round {number + 1}: " + ", ".join(f"{n} {medians[n][-1]:.2f} ms" for n in ARMS), flush=True)

    def ratio(over: str, under: str) -> dict[str, float]:
        rounds = spread([a / b for a, b in zip(medians[over], medians[under], strict=True)])
        return {**rounds, "of_means": sum(means[over]) / sum(means[under])}

    return {
        "steps_a_round": steps,
        "ms_per_step": {name: spread(values) for name, values in medians.items()},
        "ratio_to_loop": {name: ratio(name, "loop") for name in ARMS},
        "ratio_to_lightning": {name: ratio(name, "lightning") for name in ARMS},
    }


def show_table(result: dict[str, Any]) -> None:
    """The ratios, and whether the goals are met."""
    heads = "".join(f"{head:>22}{'of means':>10}" for head in ("ratio to the loop", "to Lightning"))
    print(f"\n{'':20}{'arm':12}{'ms/step':>24}{heads}")
    for name, found in result.items():
        for arm in ARMS:
            ms, loop, bare = (found[key][arm] for key in ("ms_per_step", "ratio_to_loop", "ratio_to_lightning"))
            ratios = f"{show(loop):>22}{loop['of_means']:>10.2f}{show(bare):>22}{bare['of_means']:>10.2f}"
            print(f"{name:20}{arm:12}{show(ms):>24}{ratios}")
    for name, over, under, most in GOALS:
        if name in result:
            found = result[name][f"ratio_to_{under}"][over]["median"]
            print(f"{name}: {over} / {under} {found:.3f}, goal at most {most}: {'met' if found <= most else 'missed'}")


def main() -> None:
    """Measure, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one round, nothing stored")
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet of CIFAR-10")
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore", message=".*could not find the monitored key")  # the arms have no validation
    prepare(ROOT)
    problems: dict[str, tuple[list[str], int, int]] = {"digits/small_cnn": (["data=digits"], 200, 10)}
    if arguments.cifar10:
        files = [f"data.{split}={arguments.cifar10.absolute()}/{split}.parquet" for split in ("train", "test")]
        problems["cifar10/smith_cnn"] = (["data=parquet", *files, "model=smith_cnn"], 50, 1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = [f"output_root={folder}/outputs", f"tracking.root={folder}/mlruns"]
        for name, (overrides, steps, epochs) in problems.items():
            config = load_config(ROOT, [*overrides, *places, "trainer=cpu", "trainer.progress=none", "test=false"])
            print(name, flush=True)
            result[name] = measure(config, 30 if arguments.quick else steps, 1 if arguments.quick else ROUNDS)
            if not (arguments.quick and epochs == 1):
                result[name]["profile"] = profile(config, 2 if arguments.quick else epochs)
                for part, values in result[name]["profile"].items():
                    show_parts(f"{name}, {part}", values)
    show_table(result)
    store("throughput", result, arguments.quick)


if __name__ == "__main__":
    main()
