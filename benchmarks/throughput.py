"""The training step of the app beside a hand-written torch loop and beside Lightning alone, over the same batches.

Run: ``python -m benchmarks.throughput [--quick] [--cifar10 FOLDER]``. Three arms take turns in one process, so that a
busy machine slows all of them alike: ``loop`` (plain torch: forward, backward, SGD, cosine rate), ``lightning`` (the
same module in a Trainer without callbacks or logger) and ``app`` (every callback of the app and its MLflow logger on
SQLite: each step's rate and loss is stored). A round's ratio is the app's (or Lightning's) median step over the loop's
of the same round; the table gives the median over rounds, with the smallest and largest. The last column is the ratio
of the mean steps of all rounds: it contains what comes only now and then, such as a flush of the log, and the machine's
noise. Validation, probe and checkpoints are per epoch, not per step: they are left out here. digits always runs;
CIFAR-10 where its two parquet files are given.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, Trainer, seed_everything
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from benchmarks.report import show, spread, store
from lr_lightning.app import build
from lr_lightning.app.config import Config, register
from lr_lightning.app.record import open_logger
from lr_lightning.app.summary import Summary
from lr_lightning.app.train import quiet
from lr_lightning.app.validate import validated
from lr_lightning.training.data import ImageDataModule

ROOT = Path(__file__).resolve().parent.parent
WARMUP = 20  # steps that are not measured


class Clock(Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())


def durations(ends: list[float]) -> list[float]:
    """Milliseconds of each step after the warm-up."""
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
    net = build.build_net(config, data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return build.build_module(config, net, data)


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


def fit(
    config: Config, data: ImageDataModule, steps: int, callbacks: list[Callback], logger: Any = False
) -> list[float]:
    """A Trainer."""
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=WARMUP + steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=logger,
        callbacks=[*callbacks, clock],
        enable_checkpointing=False,
        enable_progress_bar=any("Progress" in type(c).__name__ for c in callbacks),
        enable_model_summary=False,
    )
    module = fresh(config, data)
    if logger:
        trainer.loggers = [logger]
    trainer.fit(module, datamodule=data)
    return durations(clock.ends)


def lightning(config: Config, data: ImageDataModule, steps: int) -> list[float]:
    """Lightning alone."""
    return fit(config, data, steps, [])


def app(config: Config, data: ImageDataModule, steps: int) -> list[float]:
    """Every callback of the app and its logger; the logger's own thread works meanwhile."""
    callbacks = [*build.build_callbacks(config, build.build_schedule(config), fresh(config, data)), Summary()]
    folder = Path(tempfile.mkdtemp(dir=config.output_root))
    logger = open_logger(config, folder, None, data, fresh(config, data))
    try:
        return fit(config, data, steps, callbacks, logger)
    finally:
        if logger:
            logger.end("FINISHED")


ARMS: dict[str, Callable[[Config, ImageDataModule, int], list[float]]] = {
    "loop": loop,
    "lightning": lightning,
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
        "app_to_lightning": ratio("app", "lightning"),
    }


def main() -> None:
    """Measure, print a table, store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one round, nothing stored")
    parser.add_argument("--cifar10", type=Path, help="folder with train.parquet and test.parquet of CIFAR-10")
    arguments = parser.parse_args()
    quiet()
    register()
    problems = {"digits/small_cnn": (["data=digits"], 200)}
    if arguments.cifar10:
        files = [f"data.{split}={arguments.cifar10.absolute()}/{split}.parquet" for split in ("train", "test")]
        problems["cifar10/smith_cnn"] = (["data=parquet", *files, "model=smith_cnn"], 50)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        OmegaConf.register_new_resolver("checkout", lambda: folder, replace=True)
        OmegaConf.register_new_resolver("choices", lambda: "", replace=True)
        for name, (overrides, steps) in problems.items():
            with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
                config = validated(compose("config", [*overrides, f"output_root={folder}", "trainer.progress=none"]))
            print(name, flush=True)
            result[name] = measure(config, 30 if arguments.quick else steps, 1 if arguments.quick else 15)
    print(f"\n{'':20}{'arm':12}{'ms/step':>24}{'ratio to the loop':>26}{'of means':>10}")
    for name, found in result.items():
        for arm in ARMS:
            ms, ratio = found["ms_per_step"][arm], found["ratio_to_loop"][arm]
            print(f"{name:20}{arm:12}{show(ms):>24}{show(ratio):>26}{ratio['of_means']:>10.2f}")
        over = found["app_to_lightning"]
        print(f"{name:20}{'app / lightning':36}{show(over):>26}{over['of_means']:>10.2f}")
    store("throughput", result, arguments.quick)


if __name__ == "__main__":
    main()
