"""ResNet-9 to an accuracy: the app as a user starts it, and a hand-written loop with the same network and recipe."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.gpu_device import Setting, Utilisation, device, synchronize
from benchmarks.report import spread
from benchmarks.trainings import ROOT, quoted
from lr_lightning import RunCost
from lr_lightning._lightning import callbacks_of
from lr_lightning.app import build
from lr_lightning.app.composition import load_config
from lr_lightning.app.config import Config
from lr_lightning.app.run.train import train
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.loader import BatchLoader, TrainBatch
from lr_lightning.training.transforms import Draws

_SHORT = 3  # steps of the run before the first round: CUDA's start and cuDNN's choice of kernels are not the race


@dataclass(frozen=True)
class Raced:
    """One training.

    Attributes:
        accuracy: At the end, 0..1.
        seconds: From the first step to the end of the last validation. The app's figure, verdict and last checkpoint
            come after it.
        validation_seconds: Of these, those in validations; the app's hold its training probe, which is as large.
        ms_a_step: The others, over the steps; earlier checkpoints and the start of an epoch are among them.
        seconds_to_target: To the end of the first validation that reached it; None if none did.
        epochs_to_target: Likewise.
        utilisation_percent: Of the GPU during the training; None where NVML does not tell.
    """

    accuracy: float
    seconds: float
    validation_seconds: float
    ms_a_step: float
    seconds_to_target: float | None
    epochs_to_target: float | None
    utilisation_percent: float | None


class Watch(Callback):
    """The seconds of a fit of the app, those in validations, and the GPU's utilisation.

    Attributes:
        seconds: From the first step to the end of the last validation.
        validations: Of these, those in validations.
        utilisation: Until the training ends, or fails.
    """

    def __init__(self) -> None:
        self.seconds = self.validations = 0.0
        self.utilisation = Utilisation()
        self._began = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.utilisation.__enter__()

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:  # before the first step
            return
        synchronize()
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        synchronize()
        self.validations += time.perf_counter() - self._began
        # its clock, which the seconds to the target are from as well
        self.seconds = callbacks_of(trainer, RunCost)[0].seconds

    def on_train_end(self, *_: Any) -> None:
        self.utilisation.__exit__()

    def on_exception(self, *_: Any) -> None:
        self.utilisation.__exit__()  # its thread would go on beside the next part


def app(words: list[str], target: float) -> Raced:
    """The app's ``train``: callbacks, checkpoints, MLflow on SQLite."""
    config = load_config(ROOT, [*words, f"callbacks.cost.target='val/acc>={target}'"])
    watch = Watch()
    summary = train(config, report=False, watching=[watch]).summary
    steps = summary["steps"]
    to_target = summary.get("steps_to_target")
    return Raced(
        accuracy=summary["last_val_acc"],
        seconds=watch.seconds,
        validation_seconds=watch.validations,
        ms_a_step=1000 * (watch.seconds - watch.validations) / steps,
        seconds_to_target=summary.get("seconds_to_target"),
        epochs_to_target=None if to_target is None else to_target * config.trainer.max_epochs / steps,
        utilisation_percent=watch.utilisation.percent,
    )


@dataclass(frozen=True)
class OnDevice:
    """A split in the GPU's memory: uint8 images [N, C, H, W], and labels."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, loader: BatchLoader) -> "OnDevice":
        images = loader.images.take(loader.indices).to(device())
        return cls(images, torch.from_numpy(loader.labels[loader.indices]).to(device()))

    @classmethod
    def seen(cls, loader: BatchLoader, limit: int | float) -> "OnDevice":
        """What a Trainer with this limit_val_batches looks at."""
        images, labels = zip(*itertools.islice(loader, limited(len(loader), limit)), strict=True)
        return cls(torch.cat(images).to(device()), torch.cat(labels).to(device()))


def limited(count: int, limit: int | float) -> int:
    """Batches of an epoch under one of the Trainer's limits, a number of them or a share.

    >>> limited(10, 3), limited(2, 3), limited(10, 1.0), limited(10, 0.25)
    (3, 2, 10, 2)
    """
    return min(count, limit) if isinstance(limit, int) else int(count * limit)


def batches(data: ImageDataModule, split: OnDevice) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch in random order, cropped and flipped on the device, random numbers included."""
    size, pad = data.batch_size, data.crop_padding
    order = torch.randperm(len(split.labels), device=device())
    for at in range(0, len(order) - size + 1, size):
        rows = order[at : at + size]
        offsets = torch.randint(0, 2 * pad + 1, (size, 2), device=device())
        flips = (torch.rand(size, device=device()) < 0.5) & data.flip
        nothing = torch.zeros(size, 4, device=device())  # erased, mixed, pasted or otherwise changed
        unused = nothing, nothing[:, 0], nothing, offsets[:, 0], nothing[:, 0]
        batch = TrainBatch(split.images[rows], split.labels[rows], Draws(offsets, flips, *unused))
        yield data.on_after_batch_transfer(batch, 0)


def precision_of(config: Config) -> Any:
    """The autocast that the recipe asks for."""
    return torch.autocast(device().type, torch.bfloat16, enabled=config.trainer.precision == "bf16-mixed")


@torch.no_grad()
def accuracy(net: nn.Module, data: ImageDataModule, split: OnDevice, config: Config) -> float:
    """Share of right answers; one wait for the device."""
    net.eval()
    right = torch.zeros((), dtype=torch.int64, device=device())
    for images, labels in zip(split.images.split(1000), split.labels.split(1000), strict=True):
        pixels, _ = data.on_after_batch_transfer((images, labels), 0)
        with precision_of(config):
            right += (net(pixels).argmax(1) == labels).sum()
    net.train()
    return right.item() / len(split.labels)


def loop(words: list[str], target: float) -> Raced:
    """Plain torch: all images in the GPU's memory, no logging but the accuracy of an epoch."""
    config = load_config(ROOT, words)
    data = build.build_data(config)
    data.prepare()
    seed_everything(config.seed, verbose=False)
    net = build.build_net(config.model, data)
    net = net.to(device(), memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    train_split = OnDevice.of(data.train_dataloader())
    val_split = OnDevice.seen(data.val_dataloader(), config.trainer.limit_val_batches)
    per_epoch = limited(len(data.train_dataloader()), config.trainer.limit_train_batches)
    total = per_epoch * config.trainer.max_epochs
    factors = build.build_schedules(config.schedule, config.optimizer.lr).lr.factors(total, steps_per_epoch=per_epoch)
    optimizer = build.build_optimizer(config.optimizer)(net)
    peaks = [group["lr"] for group in optimizer.param_groups]
    smoothing = getattr(config.module, "label_smoothing", 0.0)
    validating, step, found = 0.0, 0, (None, None)
    value = 0.0
    synchronize()
    began = time.perf_counter()
    with Utilisation() as utilisation:
        for epoch in range(config.trainer.max_epochs):
            for images, labels in itertools.islice(batches(data, train_split), per_epoch):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factors[step]
                with precision_of(config):
                    loss = cross_entropy(net(images), labels, label_smoothing=smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
            synchronize()
            at = time.perf_counter()
            value = accuracy(net, data, val_split, config)
            validating += time.perf_counter() - at
            if value >= target and found[0] is None:
                found = (time.perf_counter() - began, epoch + 1.0)
        seconds = time.perf_counter() - began
    return Raced(value, seconds, validating, 1000 * (seconds - validating) / step, *found, utilisation.percent)


ARMS = {"app": app, "loop": loop}


def loader_ms(words: list[str], most: int) -> dict[str, float]:
    """Milliseconds that the app's loader needs for a batch, to the device and augmented there, with no training."""
    data = build.build_data(load_config(ROOT, words))
    data.prepare()
    taken: list[float] = []
    for _ in range(3):
        synchronize()
        began, count = time.perf_counter(), 0
        for batch in itertools.islice(data.train_dataloader(), most):
            data.on_after_batch_transfer(move_data_to_device(batch, device()), 0)
            count += 1
        synchronize()
        taken.append(1000 * (time.perf_counter() - began) / count)
    return spread(taken)


def race(setting: Setting) -> Iterator[dict[str, Any]]:
    """Both arms with every seed, in changing order; the result so far after every seed."""
    recipe = [*setting.data, *setting.recipe, f"trainer.max_epochs={setting.epochs}"]
    torch.backends.cudnn.benchmark = True  # the recipe sets it for the app's Trainer
    raced: dict[str, list[Raced]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        words = [*recipe, f"output_root={quoted(Path(folder))}"]
        words.append(f"tracking.root={quoted(Path(folder) / 'mlruns')}")
        for arm in ARMS.values():
            arm([*words, "trainer.max_epochs=1", f"trainer.limit_train_batches={_SHORT}"], 1.0)
        loader = loader_ms(words, 100)
        for seed in range(setting.seeds):
            for name in ARMS if seed % 2 == 0 else reversed(ARMS):
                raced[name].append(ARMS[name]([*words, f"seed={seed}"], setting.target))
                print(f"  seed {seed} {name:<5} {asdict(raced[name][-1])}", flush=True)
            known = [
                *setting.recipe,
                f"trainer.max_epochs={setting.epochs}",
            ]  # not where the images lie
            yield {"recipe": known, "target": setting.target, "loader_ms_a_batch": loader, **_summed_up(raced)}


def _summed_up(raced: dict[str, list[Raced]]) -> dict[str, Any]:
    """Spreads over seeds, and the ratios of the app to the loop by seed."""

    def values(name: str, key: str) -> list[Any]:
        return [getattr(run, key) for run in raced[name]]

    def known(name: str, key: str) -> dict[str, float] | None:
        found = [value for value in values(name, key) if value is not None]
        return spread(found) if found else None

    keys = list(asdict(raced["app"][0]))
    return {
        "runs": {name: [asdict(run) for run in runs] for name, runs in raced.items()},
        "arms": {name: {key: known(name, key) for key in keys} for name in raced},
        "reached": {name: sum(at is not None for at in values(name, "seconds_to_target")) for name in raced},
        "app_to_loop": {
            key: spread([a / b for a, b in zip(values("app", key), values("loop", key), strict=True)])
            for key in ("seconds", "ms_a_step")
        },
    }
