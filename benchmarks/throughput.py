"""The training step of the app beside a hand-written torch loop and beside Lightning alone, over the same batches.

Run: ``python -m benchmarks.throughput [--quick] [--cifar10 FOLDER]``. Four arms train side by side in one process:
``loop`` (plain torch: forward, backward, SGD, cosine rate), ``lightning`` (the same module in a Trainer without
callbacks or logger), ``callbacks`` (the app, recording nothing) and ``app`` (the app as it is: each step's rate and
loss is stored by MLflow on SQLite). They take turns of a few steps, a tenth of a second or two, in an order that
changes, so that a busy machine slows all of them alike. A turn's ratio is the arm's median step over that of the other
arm's turn beside it; the table gives the median over turns with its 95 % interval. ``of means`` is the ratio
of the mean steps of all turns: it contains what comes only now and then, such as a flush of the log. The app's logger
works in threads of its own, also while another arm has its turn; all the processor time that these threads take is
added to the app's mean, as if nothing of it ran beside. They find MLflow imported, which belongs to a run's start.
Validation, probe and checkpoints are per epoch, not per step: they are left out of these arms, and measured in a run of
their own, which also says where a step's time goes. digits always runs; CIFAR-10 where its two parquet files are given.
"""

import argparse
import math
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  the import is no part of a step
import numpy as np
import torch
from greenlet import getcurrent, greenlet
from lightning.pytorch import Callback, Trainer, seed_everything
from psutil import Process
from scipy.stats import quantile_test
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

WARMUP = 20  # steps of each arm that are not measured
TURNS = 60
GOALS = (
    ("cifar10/smith_cnn", "app", "loop", 1.03),
    ("digits/small_cnn", "callbacks", "lightning", 1.05),
    ("digits/small_cnn", "app", "lightning", 1.05),
)
"""What a step may cost: of a problem, an arm over another, at the most."""


class Turns:
    """Lets several trainings take turns in one thread: each is a greenlet, which hands over after a few steps.

    Args:
        length: Steps of a turn.

    Attributes:
        milliseconds: Of each step, by arm and turn.
        aside: Processor seconds of Python's other threads.
    """

    def __init__(self, length: int) -> None:
        self.length, self.aside = length, 0.0
        self.milliseconds: dict[str, list[list[float]]] = {}
        self._steps: list[float] | None = None
        self._last = 0.0

    def take(self, arms: Mapping[str, Callable[["Turns"], None]], turns: int) -> None:
        """Run every arm for so many turns, of ``length`` steps each after the warmup, and on to its end."""
        running = {name: greenlet(partial(arm, self)) for name, arm in arms.items()}
        self.milliseconds = {name: [] for name in arms}
        for each in running.values():
            each.switch()  # to the end of its warmup
        began = other_threads()
        for number in range(turns):
            for name in sorted(arms, key=list(arms).index, reverse=number % 2 == 1):
                self._steps = []
                self._last = time.perf_counter()
                running[name].switch()
                self.milliseconds[name].append(self._steps)
        self.aside = other_threads() - began
        self._steps = None
        for each in running.values():
            each.switch()  # to its end

    def step(self, made: int) -> None:
        """Note the end of a step; hand over at the end of the warmup and of each turn.

        Args:
            made: Steps that this arm has made.
        """
        if self._steps is not None:
            now = time.perf_counter()
            self._steps.append(1000 * (now - self._last))
            self._last = now
        if made >= WARMUP and (made - WARMUP) % self.length == 0:
            getcurrent().parent.switch()


def other_threads() -> float:
    """Processor seconds of Python's threads but the main one; those of OpenMP are torch's."""
    known = {thread.native_id for thread in threading.enumerate()} - {threading.main_thread().native_id}
    return sum(thread.user_time + thread.system_time for thread in Process().threads() if thread.id in known)


class Watch(Callback):
    """Notes when each step ends."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.made = turns, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.made += 1
        self.turns.step(self.made)


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


def loop(config: Config, data: ImageDataModule, steps: int, turns: Turns) -> None:
    """The hand-written loop."""
    net = fresh(config, data).net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.optimizer.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batches = endless(data)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, labels = next(batches)
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        turns.step(step + 1)


def lightning(config: Config, data: ImageDataModule, steps: int, turns: Turns) -> None:
    """Lightning alone."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        callbacks=[Watch(turns)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(fresh(config, data), datamodule=data)


def app(config: Config, data: ImageDataModule, steps: int, turns: Turns) -> None:
    """A run of the app; the logger's own threads work meanwhile."""
    node = replace(config.trainer, max_steps=steps, max_epochs=-1, limit_val_batches=0)
    train(replace(config, trainer=node), report=False, watching=[Watch(turns)])


def callbacks(config: Config, data: ImageDataModule, steps: int, turns: Turns) -> None:
    """The same, recording nothing."""
    app(replace(config, tracking=replace(config.tracking, name="none")), data, steps, turns)


ARMS = {"loop": loop, "lightning": lightning, "callbacks": callbacks, "app": app}


def measure(config: Config, length: int, count: int) -> dict[str, Any]:
    """All arms side by side.

    Args:
        config: The run.
        length: Steps of a turn.
        count: Turns of each arm.
    """
    data = build.build_data(config)
    data.prepare()
    turns = Turns(length)
    total = WARMUP + length * count
    arms = {name: partial(arm, config, copy(data), total) for name, arm in ARMS.items()}
    with patch.object(build, "build_data", lambda config: copy(data)):  # decoded once for all arms
        turns.take(arms, count)
    medians = {name: np.median(steps, axis=1) for name, steps in turns.milliseconds.items()}
    means = {name: float(np.mean(steps)) for name, steps in turns.milliseconds.items()}
    aside = 1000 * turns.aside / (length * count)
    means["app"] += aside

    def ratio(over: str, under: str) -> dict[str, float]:
        pairs = medians[over] / medians[under]
        low, high = quantile_test(pairs).confidence_interval()  # of the median
        middle = {"median": float(np.median(pairs)), "low": float(low), "high": float(high), "n": len(pairs)}
        return {**middle, "of_means": means[over] / means[under]}

    return {
        "steps_a_turn": length,
        "ms_per_step": {name: spread(values.tolist()) for name, values in medians.items()},
        "ms_of_other_threads_per_step": aside,
        "ratio_to_loop": {name: ratio(name, "loop") for name in ARMS},
        "ratio_to_lightning": {name: ratio(name, "lightning") for name in ARMS},
    }


def show_table(result: dict[str, Any]) -> None:
    """The ratios, and whether the goals are met."""
    heads = "".join(f"{head:>24}{'of means':>10}" for head in ("ratio to the loop", "to Lightning"))
    print(f"\n{'':20}{'arm':12}{'ms/step':>24}{heads}")
    for name, found in result.items():
        for arm in ARMS:
            ms, loop, bare = (found[key][arm] for key in ("ms_per_step", "ratio_to_loop", "ratio_to_lightning"))
            ratios = "".join(f"{interval(each):>24}{each['of_means']:>10.3f}" for each in (loop, bare))
            print(f"{name:20}{arm:12}{show(ms):>24}{ratios}")
    for name, over, under, most in GOALS:
        if name in result:
            found = result[name][f"ratio_to_{under}"][over]
            met = "met" if max(found["median"], found["of_means"]) <= most else "missed"
            print(f"{name}: {over} / {under} {interval(found)}, of means {found['of_means']:.3f}, goal {most}: {met}")


def interval(value: dict[str, float]) -> str:
    """A median with its interval."""
    return "{median:.3f} ({low:.3f} to {high:.3f})".format_map(value)


def main() -> None:
    """Measure, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, two turns, nothing stored")
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet of CIFAR-10")
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore", message=".*could not find the monitored key")  # the arms have no validation
    prepare(ROOT)
    problems: dict[str, tuple[list[str], int, int]] = {"digits/small_cnn": (["data=digits"], 25, 10)}
    if arguments.cifar10:
        files = [f"data.{split}={arguments.cifar10.absolute()}/{split}.parquet" for split in ("train", "test")]
        problems["cifar10/smith_cnn"] = (["data=parquet", *files, "model=smith_cnn"], 5, 1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = [f"output_root={folder}/outputs", f"tracking.root={folder}/mlruns"]
        for name, (overrides, length, epochs) in problems.items():
            config = load_config(ROOT, [*overrides, *places, "trainer=cpu", "trainer.progress=none", "test=false"])
            print(name, flush=True)
            result[name] = measure(config, length, 2 if arguments.quick else TURNS)
            if not (arguments.quick and epochs == 1):
                result[name]["profile"] = profile(config, 2 if arguments.quick else epochs)
                for part, values in result[name]["profile"].items():
                    show_parts(f"{name}, {part}", values)
    show_table(result)
    store("throughput", result, arguments.quick)


if __name__ == "__main__":
    main()
