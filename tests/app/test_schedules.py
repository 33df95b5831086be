"""Every choice of conf/schedule: it builds, it means what it says, and a run of it resumes bit for bit."""

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from lightning.pytorch import Callback, LightningModule
from omegaconf import DictConfig

from lr_lightning.app import build, checks
from lr_lightning.app.build import Schedules, build_schedules
from lr_lightning.app.checks import validate
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import explain
from lr_lightning.app.run.resume import stored_config
from lr_lightning.app.run.train import train
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Clock, Cosine, Linear, OneCycle, Schedule, Triangular
from lr_lightning.schedules.cyclical import ExpRange
from tests.leftovers import plain, query

Compose = Callable[..., DictConfig]
Command = Callable[..., Any]
CONF = Path(__file__).resolve().parent.parent.parent / "conf" / "schedule"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))
MOVING = ["schedule.base_momentum=0.85", "schedule.max_momentum=0.95"]


def built_schedules(config: Config) -> Schedules:
    return build_schedules(config.schedule, config.optimizer.lr)


def built(composed: Compose, *overrides: str) -> tuple[Config, Schedule]:
    config = validate(composed(*overrides))
    return config, built_schedules(config).lr


def message(composed: Compose, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        built_schedules(validate(composed(*overrides)))
    return str(caught.value)


def test_the_choices_of_the_design_are_there() -> None:
    named = """constant step multistep exponential linear polynomial inverse_sqrt cosine cosine_restarts triangular
    triangular2 exp_range one_cycle wsd rex plateau warmup_constant"""
    assert set(named.split()) <= set(CHOICES)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_file_says_what_it_is_and_from_where(choice: str) -> None:
    first = (CONF / f"{choice}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 120


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_fits_short_and_long_runs_and_reaches_the_peak(composed: Compose, choice: str) -> None:
    _, schedule = built(composed, f"schedule={choice}")
    for steps, epochs in [(60, 3), (300, 15), (11_700, 30), (7, 1), (1, 1)]:
        clock = Clock(steps, steps_per_epoch=steps / epochs)
        schedule.check(clock)
        factors = schedule.factors(steps, steps / epochs)
        assert len(factors) == steps
        assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
        # exp_range has shrunk a little when it is first at the top
        assert steps < 60 or max(factors) > 0.75
        assert schedule.describe(clock)
    assert (len(set(schedule.factors(300, 20))) > 1) == (choice not in ("batch_growth", "constant", "plateau"))


def test_linear_is_what_it_says(composed: Compose) -> None:
    assert built(composed, "schedule=linear", "schedule.warmup=0")[1] == Linear()


# -- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["triangular", "triangular2", "exp_range"])
def test_the_lower_bound_is_a_quarter_of_the_peak_or_what_is_given(composed: Compose, choice: str) -> None:
    _, schedule = built(composed, f"schedule={choice}")
    assert schedule.factors(300)[0] == 0.25
    config, schedule = built(composed, f"schedule={choice}", "optimizer.lr=0.2", "schedule.base_lr=0.02")
    assert config.optimizer.lr * schedule.factors(300)[0] == pytest.approx(0.02)


def test_one_cycle_starts_at_base_lr_and_keeps_its_end_in_proportion(composed: Compose) -> None:
    _, schedule = built(composed, "schedule=one_cycle", "schedule.base_lr=0.05")
    assert schedule == OneCycle("30%", start=0.5, end=4e-6 * 0.5 / 0.04)


def test_restarts_come_down_to_base_lr_and_their_piece_can_be_another(composed: Compose) -> None:
    _, schedule = built(composed, "schedule=cosine_restarts", "schedule.base_lr=0.05", "schedule.warmup=10")
    assert min(schedule.factors(300)[10:]) >= 0.5
    _, schedule = built(composed, "schedule=cosine_restarts", "schedule.piece._target_=lr_lightning.schedules.Linear")
    assert schedule.factors(300)[0:2] == [1.0, 1 - 1 / 43]


def test_the_third_cosine_ends_with_the_run(composed: Compose) -> None:
    _, schedule = built(composed, "schedule=cosine_restarts")
    for steps in (60, 300, 11_700):
        clock = Clock(steps)
        assert schedule(steps, clock) < 1e-3 or schedule(steps - 1, clock) < 1e-2


def test_max_lr_is_another_name_of_the_peak(composed: Compose) -> None:
    assert validate(composed("schedule=triangular", "schedule.max_lr=0.3")).optimizer.lr == 0.3
    assert validate(composed("schedule=triangular", "optimizer.lr=0.3")).optimizer.lr == 0.3
    both = composed("schedule=triangular", "schedule.max_lr=0.3", "optimizer.lr=0.3")
    assert validate(both).optimizer.lr == 0.3
    config = validate(composed("schedule=triangular", "optimizer=adam", "schedule.max_lr=0.006"))
    factory = build.build_optimizer(config.optimizer)
    assert factory(torch.nn.Linear(2, 2)).param_groups[0]["lr"] == 0.006
    # an experiment that sets the model's own default does not stand in the way
    smith = composed("experiment=smith", "schedule=triangular2", "schedule.max_lr=0.006")
    assert validate(smith).optimizer.lr == 0.006


def test_two_different_peaks_are_an_error(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    text = message(composed, "schedule=triangular", "optimizer.lr=0.2", "schedule.max_lr=0.3")
    assert "schedule.max_lr: 0.3, but optimizer.lr: 0.2" in text
    # 0.1 is the default: only the command line tells that it was asked for
    said = ["optimizer.lr=0.1", "schedule.max_lr=0.3"]
    current = SimpleNamespace(overrides=SimpleNamespace(task=said))
    monkeypatch.setattr(checks, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: current))
    text = message(composed, "schedule=triangular", *said)
    assert "schedule.max_lr: 0.3, but optimizer.lr: 0.1" in text


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["schedule=triangular", "schedule.base_lr=0.2"], ["schedule.base_lr:", "at most the peak", "0.1, got 0.2"]),
        (["schedule=triangular", "schedule.base_lr=0"], ["schedule.base_lr:", "above 0", "got 0.0"]),
        (["schedule=one_cycle", "schedule.max_lr=-1"], ["schedule.max_lr:", "above 0", "got -1.0"]),
        (["schedule=one_cycle", "schedule.max_momentum=0.9"], ["schedule.base_momentum:", "schedule.max_momentum"]),
        (["schedule=one_cycle", "schedule.max_momentum=1", "schedule.base_momentum=0"], ["schedule.max_momentum:"]),
        (
            ["schedule=one_cycle", "schedule.max_momentum=0.8", "schedule.base_momentum=0.9"],
            ["schedule.base_momentum:", "0.8, got 0.9"],
        ),
        (["schedule=one_cycle", "optimizer=adagrad", *MOVING], ["schedule.max_momentum:", "adagrad"]),
        (["schedule=one_cycle", "schedule.shape=round"], ["schedule.shape:", "'cosine', 'linear'", "'round'"]),
        (["schedule=one_cycle", "schedule.warmup_shape=cosine"], ["schedule.warmup_shape:", "'cosine'", "Leave it"]),
        (["schedule=cosine", "schedule.end=-1"], ["schedule.end:", ">= 0", "-1"]),
        (["schedule=cosine", "schedule.warmup=0.1"], ["schedule.warmup:", "0.1"]),
        (["schedule=cosine", "schedule.warmup=soon"], ["schedule.warmup:", "'soon'", "10%"]),
        (["schedule=exponential", "schedule.end=0"], ["schedule.end:", "> 0"]),
        (["schedule=step", "schedule.gamma=2"], ["schedule.gamma:", "<= 1"]),
        (["schedule=step", "schedule.every=0"], ["schedule.every:", "> 0"]),
        (["schedule=multistep", "schedule.at=[]"], ["schedule.at:", "at least one"]),
        (["schedule=multistep", "schedule.at=[0.5]"], ["schedule.at:", "0.5 of what"]),
        (["schedule=triangular", "schedule.mode=exp_range"], ["gamma", "mode='exp_range'"]),
        (["schedule=exp_range", "schedule.gamma=1.1"], ["schedule.gamma:", "<= 1"]),
        (["schedule=plateau", "schedule.factor=1"], ["schedule.factor:", "< 1"]),
        (["schedule=plateau", "schedule.mode=best"], ["schedule.mode:", "'min', 'max'", "'best'"]),
        (["schedule=wsd", "schedule.mode=max"], ["schedule.mode:", "no such key"]),
        (["schedule=constant", "schedule._target_=torch.nn.Identity"], ["schedule._target_:", "Identity", "Schedule"]),
        (["schedule=constant", "+schedule.kwargs.value=-1"], ["schedule.kwargs.value:", ">= 0"]),
        (["schedule=constant", "+schedule.kwargs.high=1"], ["schedule:", "high", "value"]),
        (
            ["schedule=one_cycle", "schedule._target_=lr_lightning.schedules.Constant", "schedule.base_lr=0.01"],
            ["schedule:", "Constant does not take", "'start'", "It takes: value"],
        ),
    ],
)
def test_bad_input_names_key_value_and_remedy(composed: Compose, overrides: list[str], parts: list[str]) -> None:
    try:
        text = message(composed, *overrides)
    except HydraException as e:  # composing itself refuses: what the command line then says is the errors module's
        text = explain(e)
    for part in parts:
        assert part in text


# -- momentum, plateau, other targets --------------------------------------------------------------------------------


def test_the_momentum_moves_against_one_cycle(composed: Compose) -> None:
    config, schedule = built(composed, "schedule=one_cycle", *MOVING)
    momentum = built_schedules(config).momentum
    assert momentum is not None
    rates, momenta = schedule.factors(300), momentum.factors(300)
    assert momenta[0] == 0.95
    assert momenta[rates.index(max(rates))] == min(momenta) == 0.85
    assert momentum(300, Clock(300)) == 0.95
    assert built_schedules(built(composed, "schedule=one_cycle")[0]).momentum is None


def test_wsd_and_one_cycle_take_the_warmup_themselves(composed: Compose) -> None:
    _, schedule = built(composed, "schedule=wsd", "schedule.warmup=10%")
    assert schedule.factors(100)[:10] == [(t + 1) / 10 for t in range(10)]
    assert schedule.factors(100)[79] == 1.0
    assert built(composed, "schedule=one_cycle", "schedule.warmup=10%")[1] == OneCycle("10%")


def test_a_plateau_multiplies_any_schedule(composed: Compose) -> None:
    overrides = ["schedule=plateau", "schedule._target_=lr_lightning.schedules.Cosine", "+schedule.kwargs.end=0.5"]
    config, schedule = built(composed, *overrides)
    assert schedule == Cosine(end=0.5)
    callback = next(
        c
        for c in build.build_callbacks(config, built_schedules(config), LightningModule())
        if isinstance(c, build.LRSchedule)
    )
    assert callback.plateau is not None
    assert (callback.plateau.monitor, callback.plateau.factor, callback.plateau.patience) == ("val/loss", 0.5, 2)


def test_another_target_gets_the_free_arguments(composed: Compose) -> None:
    target = "schedule._target_=lr_lightning.schedules.InverseSqrt"
    _, schedule = built(composed, "schedule=constant", target, "+schedule.kwargs.timescale=100", "schedule.warmup=100")
    assert schedule.factors(401)[400] == 0.5


@pytest.mark.parametrize("gamma", [None, 0.99])
def test_exp_range_is_the_triangular_one_with_a_gamma_for_the_length(gamma: float | None) -> None:
    ours = ExpRange(0.25, "10%", gamma=gamma)
    theirs = Triangular(0.25, "10%", mode="exp_range", gamma=gamma or 0.1 ** (1 / 500))
    assert ours.factors(500) == theirs.factors(500)
    assert ours.describe(Clock(500)) == theirs.describe(Clock(500))
    assert ours.with_base(0.5).factors(500) == theirs.with_base(0.5).factors(500)
    assert ExpRange(0.25, 5).needs_total
    assert not ExpRange(0.25, 5, gamma=0.9).needs_total


# -- runs ------------------------------------------------------------------------------------------------------------

STEPS, STOP = 18, 15  # in the third epoch of three
SPECIAL: dict[str, tuple[int, list[str]]] = {
    # so strict that the second validation is no better than the first: the rate falls before the stop
    "plateau": (STOP, ["schedule.patience=0", "schedule.threshold=0.99"]),
    # fewer updates: the stop is in the second epoch, where the batch has grown once
    "batch_growth": (7, ["schedule.growth.factor=2", "schedule.growth.max_batch_size=32"]),
}
TINY = [
    "test=false",
    "tracking=none",
    "model.kwargs.width=4",
    "model.kwargs.dropout=0.2",  # draws from the global generator
    "data.flip=true",
    "data.batch_size=32",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=6",
    "trainer.deterministic=false",  # a global switch; on a CPU these runs are exact without it
    "trainer.progress=none",
    "trainer=cpu",
]


class Watch(Callback):
    """Note what each step uses; save a checkpoint after the step `stop`."""

    def __init__(self, checkpoint: Path | None = None, stop: int = 0) -> None:
        self.checkpoint, self.stop = checkpoint, stop
        self.used: dict[int, list[tuple[float, Any]]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        groups = optimizer.param_groups
        self.used[trainer.global_step] = [(g["lr"], plain(g.get("momentum", g.get("betas")))) for g in groups]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.checkpoint is not None and trainer.global_step == self.stop and not self.checkpoint.exists():
            trainer.save_checkpoint(self.checkpoint)


def watched(monkeypatch: pytest.MonkeyPatch, watch: Watch, *arguments: Any) -> Path:
    """Train with a watch among the callbacks; the output folder."""
    original = build.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_callbacks", lambda *args: [watch, *original(*args)])
        folder = train(*arguments).output_dir
    assert folder is not None
    return folder


RUNS = [
    *[(choice, "sgd", []) for choice in CHOICES],
    *[("cosine", name, []) for name in ("adam", "adamw", "rmsprop", "adagrad")],
    ("one_cycle", "sgd", MOVING),
    ("one_cycle", "adam", MOVING),
    ("triangular2", "sgd", ["schedule.base_lr=0.01", "schedule.max_lr=0.05"]),
]


@pytest.mark.parametrize(("choice", "optimizer", "more"), RUNS, ids=[f"{c}-{o}-{len(m)}" for c, o, m in RUNS])
def test_a_run_stopped_in_mid_epoch_goes_on_bit_for_bit(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    optimizer: str,
    more: list[str],
) -> None:
    stop, special = SPECIAL.get(choice, (STOP, []))
    config, schedule = built(composed, f"schedule={choice}", f"optimizer={optimizer}", *TINY, *more, *special)
    middle = tmp_path / "middle.ckpt"
    watch = Watch(middle, stop)
    folder = watched(monkeypatch, watch, config)
    last = folder / "checkpoints" / "last.ckpt"
    theirs = torch.load(last, weights_only=True)

    shutil.move(middle, last)
    # by way of the stored config, as `resume=` goes: it must name nothing that is not trusted
    again, previous = stored_config(composed(f"resume={folder}", "tracking=none"), [])
    assert asdict(again) == asdict(config)
    rest = Watch()
    watched(monkeypatch, rest, again, previous)

    assert rest.used == {step: used for step, used in watch.used.items() if step >= stop}
    ours = torch.load(last, weights_only=True)
    assert ours["global_step"] == theirs["global_step"] > stop
    assert plain(ours["state_dict"]) == plain(theirs["state_dict"])
    assert plain(ours["optimizer_states"]) == plain(theirs["optimizer_states"])
    if choice == "plateau":
        assert [watch.used[step][0][0] for step in (0, STOP)] == [0.1, 0.05]
    elif choice == "batch_growth":
        assert len(watch.used) < STEPS
    else:
        assert [used[0][0] for used in watch.used.values()] == [
            config.optimizer.lr * factor for factor in schedule.factors(STEPS, 6)
        ]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["schedule=cosine", "schedule.warmup=30 epochs"], ["schedule: Warmup:", "180", "18 steps in all"]),
        (["schedule=multistep", "schedule.at=[10 epochs]"], ["schedule: MultiStep:", "10 epochs", "18 steps"]),
        (
            ["schedule=plateau", "schedule.monitor=val/los"],
            ["schedule.monitor:", "'val/los'", "Did you mean 'val/loss'"],
        ),
    ],
)
def test_what_does_not_fit_the_run_is_said_before_its_first_step(
    composed: Compose, overrides: list[str], parts: list[str]
) -> None:
    config = validate(composed(*overrides, *TINY))
    with pytest.raises(ConfigError) as caught:
        train(config)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.slow
def test_a_sweep_over_all_choices_finishes_each(tmp_path: Path, train_command: Command) -> None:
    small = ["model.kwargs.width=4", "trainer.max_epochs=3"]
    train_command(f"schedule={','.join(CHOICES)}", *small, "-m", timeout=900)
    rows = query(
        tmp_path,
        "SELECT tags.value, runs.status FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'schedule'",
    )
    assert sorted(rows) == [(choice, "FINISHED") for choice in CHOICES]
