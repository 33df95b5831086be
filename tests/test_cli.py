"""Every callback and every schedule from the YAML of a LightningCLI, by full and by short names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

import lr_lightning
from lr_lightning import schedules
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.schedules import (
    REX,
    WSD,
    Constant,
    Cosine,
    Custom,
    Exponential,
    InverseSqrt,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    OneMinusSqrt,
    Plateau,
    Polynomial,
    Product,
    Restarts,
    Schedule,
    Step,
    Triangular,
    Warmup,
)
from tests.callbacks.tiny import falling

jsonargparse = pytest.importorskip("jsonargparse")


SCHEDULES: list[tuple[str, Schedule]] = [
    ("{class_path: Constant, init_args: {value: 0.5}}", Constant(0.5)),
    ("{class_path: Step, init_args: {every: 2 epochs, gamma: 0.1}}", Step("2 epochs", 0.1)),
    ("{class_path: MultiStep, init_args: {at: [50%, 30, 4 epochs]}}", MultiStep(("50%", 30, "4 epochs"))),
    ("{class_path: Exponential, init_args: {end: 0.01}}", Exponential(end=0.01)),
    ("{class_path: Linear, init_args: {start: 0.0, end: 1.0}}", Linear(0.0, 1.0)),
    ("Polynomial", Polynomial()),
    ("{class_path: InverseSqrt, init_args: {timescale: 10%}}", InverseSqrt("10%")),
    ("Cosine", Cosine()),
    ("REX", REX()),
    ("OneMinusSqrt", OneMinusSqrt()),
    ("OneCycle", OneCycle()),
    ("WSD", WSD()),
    ("{class_path: Triangular, init_args: {base: 0.1, up: 25%}}", Triangular(0.1, "25%")),
    ("{class_path: Restarts, init_args: {piece: Cosine, first: 1 epochs, mult: 2}}", Restarts(Cosine(), "1 epochs", 2)),
    ("{class_path: Warmup, init_args: {duration: 5%, then: {class_path: Cosine}}}", Warmup("5%", Cosine())),
    (
        "{class_path: Join, init_args: {pieces: [[{class_path: Linear, init_args: {start: 0.0, end: 1.0}}, 500 steps], "
        "[{class_path: Constant}, null], [{class_path: OneMinusSqrt}, 20%]]}}",
        Join((Linear(0.0, 1.0), "500 steps"), (Constant(), None), (OneMinusSqrt(), "20%")),
    ),
    (
        "{class_path: Product, init_args: {schedules: [{class_path: Cosine}, {class_path: Constant}]}}",
        Product(Cosine(), Constant()),
    ),
    ("tests.callbacks.tiny.falling", Custom(falling)),
]


def parser() -> Any:
    found = jsonargparse.ArgumentParser(exit_on_error=False)
    found.add_argument("--callbacks", type=list[Callback])
    return found


def parsed(text: str) -> list[Any]:
    """Return the callbacks of a YAML text, after a round through the config file that a LightningCLI saves."""
    config = parser().parse_string(text)
    again = parser().parse_string(parser().dump(config))
    return list(parser().instantiate_classes(again).callbacks)


@pytest.mark.parametrize(("text", "schedule"), SCHEDULES, ids=lambda value: type(value).__name__)
def test_a_schedule(text: str, schedule: Schedule) -> None:
    for name in ("LRSchedule", "lr_lightning.LRSchedule"):
        (callback,) = parsed(f"callbacks: [{{class_path: {name}, init_args: {{schedule: {text}}}}}]")
        assert isinstance(callback, LRSchedule)
        assert callback.schedule == schedule


def test_no_schedule_is_left_out() -> None:
    every = {kind for kind in vars(schedules).values() if isinstance(kind, type) and issubclass(kind, Schedule)}
    assert every - {Schedule} == {type(schedule) for _, schedule in SCHEDULES}


def test_all_arguments_of_a_schedule_callback() -> None:
    (callback,) = parsed("""
callbacks:
  - class_path: LRSchedule
    init_args:
      schedule: [{class_path: Cosine}, {class_path: Constant}]
      total_steps: [10, 20]
      momentum: {class_path: Linear, init_args: {start: 0.95, end: 0.85}}
      weight_decay: Constant
      plateau: {class_path: Plateau, init_args: {monitor: val/loss}}
      groups: {0: {class_path: Constant}, head: {class_path: Cosine}}
      on_resume: keep
""")
    assert callback.schedule == (Cosine(), Constant())
    assert callback.total_steps == (10, 20)
    assert (callback.momentum, callback.weight_decay) == (Linear(0.95, 0.85), Constant())
    assert callback.plateau == Plateau("val/loss")
    assert callback.groups == {0: Constant(), "head": Cosine()}


NEEDED = {"LRSchedule": {"schedule": "Cosine"}, "BatchSizeSchedule": {"milestones": ["50%"]}}


@pytest.mark.parametrize("name", [str, "lr_lightning.{}".format], ids=["short", "full"])
def test_every_callback_in_a_lightning_cli(name: Callable[[str], str], tmp_path: Path) -> None:
    from lightning.pytorch.cli import LightningCLI

    kinds = [getattr(lr_lightning, each) for each in lr_lightning.__all__]
    own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Callback)]
    callbacks = [{"class_path": name(kind.__name__), "init_args": NEEDED.get(kind.__name__, {})} for kind in own]
    config = {"trainer": {"accelerator": "cpu", "logger": False, "callbacks": callbacks}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", str(tmp_path / "config.yaml")]
    cli = LightningCLI(BoringModel, BoringDataModule, run=False, args=arguments, save_config_callback=None)
    trainer: Trainer = cli.trainer
    assert {type(callback) for callback in trainer.callbacks} >= set(own)  # type: ignore[attr-defined]
