"""Milliseconds a step in a Trainer: by precision and memory layout, with and without each callback; and the finder."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.gpu_device import Setting, Synchronizations, allocated, global_settings_kept, synchronize
from benchmarks.report import show, spread
from benchmarks.trainings import ROOT
from lr_lightning import LRFinder, LRSchedule, OverfittingMonitor, RunCost, StepRecorder
from lr_lightning.app import build
from lr_lightning.app.composition import load_config
from lr_lightning.app.config import Config
from lr_lightning.app.run.record import open_logger
from lr_lightning.training.datamodule import ImageDataModule

_LOW = "optimizer.lr=0.001"  # a rate at which nothing diverges, whatever drives it: only the time matters here


class Blocks(Callback):
    """Looks at the clock every so many steps, each time after waiting for the device. The first of the callbacks."""

    def __init__(self, setting: Setting) -> None:
        self.warmup, self.size = setting.warmup, setting.block
        self.steps = self.warmup + setting.blocks * self.size + 1
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        measured = trainer.global_step - self.warmup
        if measured >= 0 and measured % self.size == 0:
            synchronize()
            self.times.append(time.perf_counter())

    @property
    def milliseconds(self) -> float:
        """Median over the blocks, of a step."""
        blocks = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        return 1000 * statistics.median(blocks) / self.size


class Counted(Callback):
    """Counts the waits for the device in the steps after the warmup. The first of the callbacks."""

    def __init__(self, setting: Setting, waits: Synchronizations) -> None:
        self.first, self.last, self.waits = setting.warmup, setting.warmup + setting.block, waits

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.first:
            self.waits.start()
        elif trainer.global_step == self.last:
            self.waits.stop()


@dataclass(frozen=True)
class Bench:
    """A config and its data, loaded once for all arms."""

    config: Config
    data: ImageDataModule

    @classmethod
    def of(cls, words: Sequence[str]) -> "Bench":
        config = load_config(ROOT, [*words, _LOW])
        data = build.build_data(config)
        data.prepare()
        return cls(config, data)

    def module(self, channels_last: bool = True) -> LightningModule:
        """The same weights in every arm."""
        seed_everything(self.config.seed, verbose=False)
        net = build.build_net(self.config.model, self.data)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return build.build_module(self.config.module, self.config.optimizer, net, self.data)

    def fit(
        self, steps: int, callbacks: list[Callback], *, layout: bool = True, logger: Any = False, **settings: Any
    ) -> None:
        """Train, without validations."""
        settings = {"precision": self.config.trainer.precision, "benchmark": True, "limit_val_batches": 0, **settings}
        self.data.channels_last = layout
        with global_settings_kept():
            trainer = Trainer(
                accelerator="auto",
                devices=1,
                max_steps=steps,
                max_epochs=-1,
                logger=False,
                callbacks=callbacks,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **settings,
            )
            if logger:
                trainer.loggers = [logger]
            trainer.fit(self.module(layout), datamodule=self.data)


Arm = Callable[[list[Callback]], None]


def alternating(arms: dict[str, Arm], setting: Setting) -> Iterator[dict[str, Any]]:
    """Each arm in turn, in changing order; of each round the ratio to the first arm. The result after every round."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    base = next(iter(arms))
    for number in range(setting.rounds):
        for name in arms if number % 2 == 0 else reversed(arms):
            blocks = Blocks(setting)
            arms[name]([blocks])
            taken[name].append(blocks.milliseconds)
        print(
            f"  round {number + 1}: " + ", ".join(f"{name} {ms[-1]:.2f} ms" for name, ms in taken.items()), flush=True
        )
        yield {
            "steps_a_round": setting.block * setting.blocks,
            "ms_a_step": {name: spread(ms) for name, ms in taken.items()},
            f"ratio_to_{base}": {
                name: spread([a / b for a, b in zip(ms, taken[base], strict=True)]) for name, ms in taken.items()
            },
        }


def steps_of(setting: Setting) -> int:
    """Of an arm in a round; the last one only ends the last block."""
    return setting.warmup + setting.block * setting.blocks + 1


def precision(setting: Setting) -> Iterator[dict[str, Any]]:
    """32 bits and bfloat16, contiguous and channels last, and what the app's default, deterministic kernels, costs."""
    bench = Bench.of([*setting.data, *setting.recipe])
    wanted: dict[str, dict[str, Any]] = {
        "32 contiguous": {"precision": "32-true", "layout": False},
        "32 channels_last": {"precision": "32-true"},
        "bf16 contiguous": {"precision": "bf16-mixed", "layout": False},
        "bf16 channels_last": {"precision": "bf16-mixed"},
        "bf16 channels_last deterministic": {"precision": "bf16-mixed", "deterministic": "warn", "benchmark": False},
    }
    arms: dict[str, Arm] = {name: partial(bench.fit, steps_of(setting), **given) for name, given in wanted.items()}
    kernels = {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allows_tf32": torch.backends.cudnn.allow_tf32,
    }
    for found in alternating(arms, setting):
        yield {"model": bench.config.model.name, "batch": bench.config.data.batch_size, **kernels, **found}


def callback_sets(config: Config) -> dict[str, Callable[[], list[Callback]]]:
    """The arms, each with callbacks of its own in every round."""
    schedule = build.build_schedules(config.schedule, config.optimizer.lr).lr
    ours: dict[str, Callable[[], Callback]] = {
        "LRSchedule": partial(LRSchedule, schedule),
        "StepRecorder": StepRecorder,
        "OverfittingMonitor": OverfittingMonitor,
        "RunCost": RunCost,
    }
    sets: dict[str, Callable[[], list[Callback]]] = {"lightning": list}
    sets |= {name: lambda make=make: [make()] for name, make in ours.items()}  # type: ignore[misc]
    return {**sets, "all four": lambda: [make() for make in ours.values()]}


def _logged(bench: Bench, make: Callable[[], list[Callback]], steps: int, root: Path, clock: list[Callback]) -> None:
    """Lightning with some callbacks and the app's MLflow logger on SQLite."""
    bench.config.tracking.root = str(root / "mlruns")
    folder = Path(mkdtemp(dir=root))
    logger = open_logger(bench.config, folder, bench.data, bench.module())
    try:
        bench.fit(steps, [*clock, *make()], logger=logger)
    finally:
        logger.end("FINISHED")


def _watched(bench: Bench, make: Callable[[], list[Callback]], steps: int, clock: list[Callback]) -> None:
    """Lightning with some callbacks."""
    bench.fit(steps, [*clock, *make()])


def callbacks(setting: Setting) -> Iterator[dict[str, Any]]:
    """Lightning alone beside each callback: milliseconds, and waits for the device a step (validations are apart)."""
    result: dict[str, Any] = {}
    for model in setting.models:
        with TemporaryDirectory() as root:
            for measured in _callbacks_of(model, setting, Path(root)):
                result[model] = measured
                yield dict(result)


def _callbacks_of(model: str, setting: Setting, root: Path) -> Iterator[dict[str, Any]]:
    bench = Bench.of([*setting.data, *setting.recipe, f"model={model}"])
    sets = callback_sets(bench.config)
    arms: dict[str, Arm] = {name: partial(_watched, bench, make, steps_of(setting)) for name, make in sets.items()}
    arms["all four, MLflow"] = partial(_logged, bench, sets["all four"], steps_of(setting), root)
    waits = {}
    for name, arm in arms.items():
        with Synchronizations() as found:
            arm([Counted(setting, found)])
        waits[name] = None if found.count is None else found.count / setting.block
    print(f"  {model}: waits for the device a step: {waits}", flush=True)
    for measured in alternating(arms, setting):
        yield {"waits_a_step": waits, **measured}


class Moment(Callback):
    """The time and the GPU's memory before or after the callback beside it searches.

    Attributes:
        came: When the callbacks before it were done.
        went: When those after it began; between the two, what is garbage is freed and the memory counted.
        bytes: Of tensors on the GPU; None without one.
        started: When the training began.
        ended: When it ended.
    """

    def __init__(self) -> None:
        self.came = self.went = self.started = self.ended = 0.0
        self.bytes: int | None = None

    def on_fit_start(self, *_: Any) -> None:
        synchronize()
        self.came = time.perf_counter()
        gc.collect()  # a cycle that holds tensors is not left behind for long
        self.bytes = allocated()
        self.went = time.perf_counter()

    def on_train_start(self, *_: Any) -> None:
        synchronize()
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        synchronize()
        self.ended = time.perf_counter()


def finder(setting: Setting) -> Iterator[dict[str, Any]]:
    """A range test of 100 steps before an epoch: its share of the recipe's training steps, and the memory it leaves.

    Validations, of which the recipe has one an epoch, are in neither. The test does not stop where the loss has clearly
    diverged, so that all take the steps they are given; at a loss that is not finite it ends even so.
    """
    bench = Bench.of([*setting.data, *setting.recipe])
    epoch = len(bench.data.train_dataloader())
    tests, shares, left, made = [], [], [], []
    for number in range(setting.rounds + 1):
        before, after = Moment(), Moment()
        steps = 10 if setting.quick else 100
        search = LRFinder(num_steps=steps, apply=False, retry=False, budget=None, early_stop=False, progress=False)
        bench.fit(epoch, [before, search, after])
        if number == 0:
            continue  # CUDA's start and cuDNN's choice of kernels
        tests.append(after.came - before.went)
        (sweep,) = search.results[0].curves
        made.append(min(steps, len(sweep) + 1))  # the value that ended it early is not kept
        training = (after.ended - after.started) * setting.epochs
        shares.append(tests[-1] / training)
        left.append(None if before.bytes is None or after.bytes is None else after.bytes - before.bytes)
        result = {"seconds": spread(tests), "share_of_training_steps": spread(shares), "bytes_left_behind": left}
        yield {"steps_asked": steps, "steps_made": spread(made), "epochs_of_training": setting.epochs, **result}
    share = f"{show(spread(shares), '{:.1%}')} of the training steps of {setting.epochs} epochs"
    print(f"  {show(spread(tests))} s, {share}, left: {left}", flush=True)
