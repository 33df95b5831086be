"""CPU time of a range test beside a bare torch loop of the same steps: ours, Lightning's and torch-lr-finder's.

Run: ``python -m benchmarks.finder_cost [--quick]``. smith_cnn, batch 100, images of 3 x 32 x 32 from one and the same
DataLoader, SGD with momentum, 100 steps, one thread (threads that wait for each other on a busy machine burn CPU time).
The arms take turns in one process, in changing order; a round's ratio is an arm's CPU time over the bare loop's of the
same round. An arm's time begins before it keeps the state
of the model and ends after it is restored. Lightning's is measured without a validation set, which it would run
through. The range ends where the loss is still finite, so that all arms make all steps, and ours makes no second test.
"""

import argparse
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.report import show, spread, store
from lr_lightning import LRFinder
from lr_lightning.training.models import smith_cnn

STEPS, MIN_LR, MAX_LR = 100, 1e-6, 1e-2
BATCH, IMAGES = 100, 5000


class Module(LightningModule):
    """smith_cnn as a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = smith_cnn(3, 10, (32, 32))
        self.lr = 1e-3

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def loader() -> DataLoader[Any]:
    """Random images: only their shape matters here."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (IMAGES,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)


def bare(data: DataLoader[Any], steps: int) -> float:
    """The hand-written loop: nothing kept, nothing restored."""
    module = Module()
    optimizer = module.configure_optimizers()
    start = time.process_time()
    losses: list[float] = []
    while len(losses) < steps:
        for images, labels in data:
            optimizer.param_groups[0]["lr"] = MIN_LR * (MAX_LR / MIN_LR) ** (len(losses) / (steps - 1))
            loss = cross_entropy(module.net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
    return time.process_time() - start


def _timed(callback: Callback, data: DataLoader[Any]) -> float:
    """CPU time of a callback's ``on_fit_start``, in a fit without a step of its own."""
    taken: list[float] = []
    test = callback.on_fit_start

    def measured(trainer: Trainer, module: LightningModule) -> None:
        start = time.process_time()
        test(trainer, module)
        taken.append(time.process_time() - start)

    callback.on_fit_start = measured  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=1,
            logger=False,
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Module(), data)
    return taken[0]


def ours(data: DataLoader[Any], steps: int) -> float:
    """LRFinder."""
    finder = LRFinder(
        MIN_LR, MAX_LR, steps, early_stop=False, retry=False, budget=None
    )  # one test, as in the other arms
    taken = _timed(finder, data)
    _all_made(len(finder.result.values) if finder.result else 0, steps)
    return taken


def lightning(data: DataLoader[Any], steps: int) -> float:
    """Lightning's own."""
    finder = LearningRateFinder(MIN_LR, MAX_LR, steps, early_stop_threshold=None)
    # it makes no more steps than the fit has batches, so the limit is lifted where it cannot matter
    taken = _timed_whole(finder, data)
    _all_made(len(finder.optimal_lr.results["loss"]) if finder.optimal_lr else 0, steps)
    return taken


def _timed_whole(callback: Callback, data: DataLoader[Any]) -> float:
    test = callback.on_fit_start

    def unlimited(trainer: Trainer, module: LightningModule) -> None:
        trainer.limit_train_batches, limit = 1.0, trainer.limit_train_batches
        trainer.fit_loop.max_epochs, epochs = 1000, trainer.fit_loop.max_epochs
        test(trainer, module)
        trainer.limit_train_batches, trainer.fit_loop.max_epochs = limit, epochs

    callback.on_fit_start = unlimited  # type: ignore[method-assign]
    return _timed(callback, data)


def torch_lr_finder(data: DataLoader[Any], steps: int) -> float:
    """The package torch-lr-finder."""
    from torch_lr_finder import LRFinder as Theirs

    module = Module()
    optimizer = torch.optim.SGD(module.net.parameters(), lr=MIN_LR, momentum=0.9)
    start = time.process_time()
    finder = Theirs(module.net, optimizer, nn.CrossEntropyLoss(), device="cpu")
    finder.range_test(data, end_lr=MAX_LR, num_iter=steps, diverge_th=float("inf"))
    finder.reset()
    taken = time.process_time() - start
    _all_made(len(finder.history["loss"]), steps)
    return taken


def _all_made(made: int, steps: int) -> None:
    if made != steps:
        raise RuntimeError(f"only {made} of {steps} steps were made: the ratio would mean nothing")


ARMS: dict[str, Callable[[DataLoader[Any], int], float]] = {
    "bare loop": bare,
    "LRFinder": ours,
    "Lightning": lightning,
    "torch-lr-finder": torch_lr_finder,
}


def main() -> None:
    """Measure, print the table, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one round, nothing stored")
    quick = parser.parse_args().quick
    steps, rounds = (20, 1) if quick else (STEPS, 10)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    arms = dict(ARMS)
    if find_spec("torch_lr_finder") is None:
        del arms["torch-lr-finder"]
        print("torch-lr-finder is not installed: left out (pip install torch-lr-finder)")
    data = loader()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in arms if number % 2 == 0 else reversed(arms):
            with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):  # the peers' progress bars
                seconds[name].append(arms[name](data, steps))
        taken = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"  round {number + 1}: {taken}", flush=True)
    ratios = {
        name: {
            **spread([a / b for a, b in zip(values, seconds["bare loop"], strict=True)]),
            "of_means": sum(values) / sum(seconds["bare loop"]),
        }
        for name, values in seconds.items()
    }
    print(f"\n{'arm':18}{'CPU seconds':>24}{'ratio to the loop':>26}{'of means':>10}")
    for name, values in seconds.items():
        print(f"{name:18}{show(spread(values)):>24}{show(ratios[name]):>26}{ratios[name]['of_means']:>10.3f}")
    result = {"steps": steps, "cpu_seconds": {name: spread(values) for name, values in seconds.items()}}
    store("finder_cost", {**result, "ratio_to_loop": ratios}, quick)


if __name__ == "__main__":
    main()
