"""Where a run's time goes: milliseconds of each part of a step and of an epoch, by Lightning's own profiler."""

import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler

from lr_lightning.app.config import Config
from lr_lightning.app.run.train import train

_IN_UPDATE = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_AROUND = ("on_train_batch_start", "on_train_batch_end")
_PER_EPOCH = (
    *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end"),
    *("on_validation_epoch_end", "on_validation_end", "on_train_epoch_end"),
)
_KINDS = {
    "probe and gaps": ("OverfittingMonitor",),
    "checkpoints, on the disk": ("RunCheckpoint",),
    "the record of steps": ("StepRecorder", "RunCost"),
}


class Profiled(Callback):
    """Gives the Trainer a profiler, and has it time whole validations as well."""

    def __init__(self) -> None:
        self.profiler = SimpleProfiler()
        self.steps = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the fit."""
        if stage != "fit":
            return
        trainer.profiler = self.profiler
        loop = trainer.fit_loop.epoch_loop.val_loop
        run = loop.run

        def timed() -> Any:
            with self.profiler.profile("validation"):
                return run()

        loop.run = timed  # type: ignore[method-assign]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note how many steps there were."""
        self.steps = trainer.global_step


def profile(config: Config, epochs: int) -> dict[str, dict[str, float]]:
    """Train with the app, and split its time.

    Args:
        config: The run.
        epochs: How long.

    Returns:
        Milliseconds of each part of a ``step``, of an ``epoch`` and of what comes ``once``. The parts of a step and of
        an epoch add up to ``all``; the profiler's own cost, a microsecond or two for each part, is in them.
    """
    watch = Profiled()
    alone = {"num_sanity_val_steps": 0}  # all validations that are counted belong to an epoch
    node = replace(config.trainer, max_epochs=epochs, max_steps=-1, kwargs={**config.trainer.kwargs, **alone})
    began = time.perf_counter()
    train(replace(config, trainer=node, test=False), report=False, watching=[watch])
    seconds = time.perf_counter() - began
    taken = {name: sum(values) for name, values in watch.profiler.recorded_durations.items()}
    hooks = _hooks(taken)
    step, epoch = _step(taken, hooks), _epoch(taken, hooks)
    once = {
        "the monitor's figure and verdict": hooks["OverfittingMonitor"]["on_train_end"],
        "the rest: data, objects, the record's start and end": seconds
        - epoch["all"]
        - hooks["OverfittingMonitor"]["on_train_end"],
    }
    shares = (("step", step, watch.steps), ("epoch", epoch, epochs), ("once", once, 1))
    return {name: {part: 1000 * value / n for part, value in parts.items()} for name, parts, n in shares}


def _hooks(taken: dict[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of each hook of each callback; those of one class together."""
    hooks: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, seconds in taken.items():
        if name.startswith("[Callback]"):
            callback, _, hook = name.removeprefix("[Callback]").rpartition(".")
            hooks[callback.split("{")[0].split("(")[0]][hook] += seconds
    return hooks


def _of(taken: dict[str, float], ending: str) -> float:
    return sum(seconds for name, seconds in taken.items() if name.endswith(ending))


def _step(taken: dict[str, float], hooks: dict[str, dict[str, float]]) -> dict[str, float]:
    inside = sum(own[hook] for own in hooks.values() for hook in _IN_UPDATE)
    around = sum(own[hook] for own in hooks.values() for hook in _AROUND)
    parts = {
        "next batch": _of(taken, "train_dataloader_next"),
        "forward": _of(taken, "Strategy.training_step"),
        "backward": _of(taken, "Strategy.backward"),
    }
    passes = parts["forward"] + parts["backward"]
    parts["update"] = _of(taken, ".optimizer_step") - passes - inside
    parts |= {name: sum(own[hook] for hook in (*_AROUND, *_IN_UPDATE)) for name, own in hooks.items()}
    whole = taken["run_training_batch"] + parts["next batch"] + around
    parts["the rest: Lightning"] = whole - sum(parts.values())
    return {**parts, "all": whole}


def _epoch(taken: dict[str, float], hooks: dict[str, dict[str, float]]) -> dict[str, float]:
    steps = _step(taken, hooks)["all"]
    parts = {"steps": steps}
    for part, names in _KINDS.items():
        parts[part] = sum(hooks[name][hook] for name in names for hook in _PER_EPOCH)
    others = [name for name in hooks if not any(name in names for names in _KINDS.values())]
    parts["other callbacks"] = sum(hooks[name][hook] for name in others for hook in _PER_EPOCH)
    in_validation = sum(own[hook] for own in hooks.values() for hook in _PER_EPOCH if hook.startswith("on_validation"))
    parts["validation alone"] = taken["validation"] - in_validation
    whole = taken["run_training_epoch"] + sum(own["on_train_epoch_end"] for own in hooks.values())
    parts["the rest: Lightning"] = whole - sum(parts.values())
    return {**parts, "all": whole}


def show_parts(name: str, parts: dict[str, float]) -> None:
    """A table, the largest part first; parts of less than a hundredth together."""
    whole = parts.get("all", sum(parts.values()))
    known = {part: ms for part, ms in parts.items() if part != "all"}
    small = {part: ms for part, ms in known.items() if ms < 0.01 * whole}
    rows = sorted(((part, ms) for part, ms in known.items() if part not in small), key=lambda row: -row[1])
    rows += [(f"{len(small)} smaller ones", sum(small.values()))] if small else []
    print(f"\n{name}: {whole:.2f} ms")
    for part, ms in rows:
        print(f"  {part:<52}{ms:>10.3f} ms {ms / whole:>7.1%}")
