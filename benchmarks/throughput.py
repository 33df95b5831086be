"""The training step of the app beside a hand-written torch loop and beside Lightning alone, over the same batches.

Run: ``python -m benchmarks.throughput [--quick] [--cifar10 FOLDER]``. Four arms train side by side in one process:
``loop`` (plain torch: forward, backward, SGD, cosine rate), ``lightning`` (the same module in a Trainer without
callbacks or logger), ``callbacks`` (the app, recording nothing) and ``app`` (the app as it is: each step's rate and
loss is stored by MLflow on SQLite). They take turns of a few steps, a tenth of a second or two, in an order in which
each arm follows each other one, so that a busy machine slows all of them alike. A turn's ratio is the arm's median step
over the other arm's in the same round of turns; the table gives the median over rounds with its 95 % interval.

What comes only now and then, such as a flush of the log, is not in a median, and the app's logger works in threads of
its own, also while another arm has its turn. So Lightning and the app also train alternately, one at a time and for
longer: ``of means`` is the ratio of their mean steps, by pairs of such runs. MLflow is imported before, since its
import belongs to the start of a run.

Validation, probe and checkpoints are per epoch, not per step: they are left out of these arms, and measured in a run of
their own, which also says where a step's time goes. digits always runs; CIFAR-10 where its two parquet files are given.
"""

import argparse
import math
import tempfile
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
from numpy.typing import NDArray
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

Floats = NDArray[np.float64]
WARMUP = 20  # steps of each arm that are not measured
ROUNDS = 60
GOALS = (
    ("cifar10/smith_cnn", "app", "loop", 1.03),
    ("digits/small_cnn", "callbacks", "lightning", 1.05),
    ("digits/small_cnn", "app", "lightning", 1.05),
)
"""What a step may cost: of a problem, the median ratio of an arm to another, at the most."""


class Steps:
    """Notes how long each step of one training takes, after its warmup.

    Attributes:
        milliseconds: Of each step.
    """

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self._last = 0.0

    def step(self, made: int) -> None:
        """Note the end of a step.

        Args:
            made: Steps that the training has made.
        """
        now = time.perf_counter()
        if made > WARMUP:
            self.milliseconds.append(1000 * (now - self._last))
        self._last = now


class Turn(Steps):
    """Also hands over at the end of the warmup and of every turn, in a greenlet.

    Args:
        length: Steps of a turn.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def step(self, made: int) -> None:
        super().step(made)
        if made >= WARMUP and (made - WARMUP) % self.length == 0:
            getcurrent().parent.switch()
            self._last = time.perf_counter()


Arm = Callable[[Config, ImageDataModule, int, Steps], None]


def in_turns(arms: Mapping[str, Callable[[Steps], None]], length: int, rounds: int) -> dict[str, Floats]:
    """Run several trainings in one thread, a few steps of each after the other.

    Args:
        arms: Four trainings of ``WARMUP + length * rounds`` steps.
        length: Steps of a turn.
        rounds: Turns of each.

    Returns:
        Milliseconds of each step, [rounds, length].
    """
    turns = {name: Turn(length) for name in arms}
    running = {name: greenlet(arm) for name, arm in arms.items()}
    for name, each in running.items():
        each.switch(turns[name])  # to the end of its warmup
    names = list(arms)
    for number in range(rounds):
        for place in (0, 1, 3, 2):  # a balanced Latin square, row by row
            running[names[(place + number) % len(names)]].switch()
    for each in running.values():
        each.switch()  # to its end
    return {name: np.array(turn.milliseconds).reshape(rounds, length) for name, turn in turns.items()}


class Watch(Callback):
    """Notes when each step ends."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.made = steps, 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.made += 1
        self.steps.step(self.made)


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


def loop(config: Config, data: ImageDataModule, count: int, steps: Steps) -> None:
    """The hand-written loop."""
    net = fresh(config, data).net.train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.optimizer.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    batches = endless(data)
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * 0.5 * (1 + math.cos(math.pi * step / count))
        images, labels = next(batches)
        loss = cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.step(step + 1)


def lightning(config: Config, data: ImageDataModule, count: int, steps: Steps) -> None:
    """Lightning alone."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=count,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        callbacks=[Watch(steps)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(fresh(config, data), datamodule=data)


def app(config: Config, data: ImageDataModule, count: int, steps: Steps) -> None:
    """A run of the app; the logger's own threads work meanwhile."""
    node = replace(config.trainer, max_steps=count, max_epochs=-1, limit_val_batches=0)
    train(replace(config, trainer=node), report=False, watching=[Watch(steps)])


def callbacks(config: Config, data: ImageDataModule, count: int, steps: Steps) -> None:
    """The same, recording nothing."""
    app(replace(config, tracking=replace(config.tracking, name="none")), data, count, steps)


ARMS: dict[str, Arm] = {"loop": loop, "lightning": lightning, "callbacks": callbacks, "app": app}


def measure(config: Config, length: int, rounds: int, pairs: int) -> dict[str, Any]:
    """All arms in turns, and then Lightning and the app one at a time.

    Args:
        config: The run.
        length: Steps of a turn.
        rounds: Turns of each arm.
        pairs: Of runs one at a time, each of as many steps as all turns have, so that the log is sent meanwhile.
    """
    data = build.build_data(config)
    data.prepare()
    count, alone = WARMUP + length * rounds, length * rounds
    arms = {name: partial(arm, config, copy(data), count) for name, arm in ARMS.items()}
    with patch.object(build, "build_data", lambda config: copy(data)):  # decoded once for all arms
        steps = in_turns(arms, length, rounds)
        means = [one_at_a_time(config, data, WARMUP + alone, number % 2 == 1) for number in range(pairs)]
    medians = {name: np.median(values, axis=1) for name, values in steps.items()}
    ratios = {under: {name: of_median(medians[name] / medians[under]) for name in ARMS} for under in ARMS}
    return {
        "steps_a_turn": length,
        "threads": torch.get_num_threads(),
        "ms_per_step": {name: spread(values.tolist()) for name, values in medians.items()},
        "ratio_to_loop": ratios["loop"],
        "ratio_to_lightning": ratios["lightning"],
        "of_means_app_to_lightning": {**of_median(np.array(means)), "steps": alone},
    }


def one_at_a_time(config: Config, data: ImageDataModule, count: int, reverse: bool) -> float:
    """Train with Lightning and with the app; return the ratio of their mean steps.

    Args:
        config: The run.
        data: Of both.
        count: Steps of each.
        reverse: Whether the app comes first.
    """
    taken = {}
    for name in sorted(("app", "lightning"), reverse=not reverse):
        steps = Steps()
        ARMS[name](config, copy(data), count, steps)
        taken[name] = float(np.mean(steps.milliseconds))
    return taken["app"] / taken["lightning"]


def of_median(values: Floats) -> dict[str, float]:
    """The median of several ratios, its 95 % interval, and their number."""
    low, high = quantile_test(values).confidence_interval()
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "n": len(values)}


def show_table(result: dict[str, Any]) -> None:
    """The ratios, and whether the goals are met."""
    print(f"\n{'':20}{'arm':12}{'ms/step':>24}{'ratio to the loop':>24}{'to Lightning':>24}")
    for name, found in result.items():
        for arm in ARMS:
            ms, loop, bare = (found[key][arm] for key in ("ms_per_step", "ratio_to_loop", "ratio_to_lightning"))
            print(f"{name:20}{arm:12}{show(ms):>24}{interval(loop):>24}{interval(bare):>24}")
        means = found["of_means_app_to_lightning"]
        print(f"{name}: app / lightning, of means {interval(means)}, {means['n']} pairs of runs")
    for name, over, under, most in GOALS:
        if name in result:
            ratio = result[name][f"ratio_to_{under}"][over]
            met = "met" if ratio["median"] <= most else "missed"
            print(f"{name}: {over} / {under} {interval(ratio)}, goal at most {most}: {met}")


def interval(value: dict[str, float]) -> str:
    """A median with its interval."""
    return "{median:.3f} ({low:.3f} to {high:.3f})".format_map(value)


def main() -> None:
    """Measure, print tables, store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, two rounds, nothing stored")
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet of CIFAR-10")
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore", message=".*could not find the monitored key")  # the arms have no validation
    prepare(ROOT)
    problems: dict[str, tuple[list[str], int, int, int]] = {"digits/small_cnn": (["data=digits"], 25, 20, 10)}
    if arguments.cifar10:
        files = [f"data.{split}={arguments.cifar10.absolute()}/{split}.parquet" for split in ("train", "test")]
        problems["cifar10/smith_cnn"] = (["data=parquet", *files, "model=smith_cnn"], 5, 6, 1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        places = [f"output_root={folder}/outputs", f"tracking.root={folder}/mlruns"]
        for name, (overrides, length, pairs, epochs) in problems.items():
            config = load_config(ROOT, [*overrides, *places, "trainer=cpu", "trainer.progress=none", "test=false"])
            print(name, flush=True)
            result[name] = measure(config, length, *((2, 1) if arguments.quick else (ROUNDS, pairs)))
            if not (arguments.quick and epochs == 1):
                result[name]["profile"] = profile(config, 2 if arguments.quick else epochs)
                for part, values in result[name]["profile"].items():
                    show_parts(f"{name}, {part}", values)
    show_table(result)
    store("throughput", result, arguments.quick)


if __name__ == "__main__":
    main()
