"""Every choice of conf/schedule builds the schedule that it promises; every bad key is named."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf

from lr_lightning.app import build
from lr_lightning.app.build import Schedules, build_schedules
from lr_lightning.app.composition import validate
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import explain
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.cooldown_preview import CooldownPreview
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Clock, Constant, Cosine, Join, Linear, OneCycle, OneMinusSqrt, Schedule, Triangular
from lr_lightning.schedules.cyclical import ExpRange
from tests.callbacks.tiny import Tiny

Compose = Callable[..., DictConfig]

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
        (["schedule=cosine_restarts", "schedule.mult=0"], ["schedule.mult:", ">= 1", "got 0"]),
        (["schedule=cosine_restarts", "schedule.piece.end=-1"], ["schedule:", "Cosine", "end must be >= 0, got -1"]),
        (
            ["schedule=cosine_restarts", "schedule.piece._target_=no.Piece"],
            ["schedule:", "no.Piece", "No module named"],
        ),
        (
            [
                *("schedule=cosine_restarts", "schedule.base_lr=0.01", "~schedule.piece.start", "~schedule.piece.end"),
                "schedule.piece._target_=lr_lightning.schedules.Constant",
            ],
            ["schedule.base_lr: 0.01, but", "has no lower bound. Leave it out."],
        ),
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


PACKAGES = {
    "schedule_free_sgd": "schedulefree",
    "schedule_free_adamw": "schedulefree",
    "prodigy": "prodigyopt",
    "dadapt_adam": "dadaptation",
}

OWN = ["schedule_free_sgd", "schedule_free_adamw", "prodigy", "dadapt_adam"]


@pytest.mark.parametrize("optimizer", OWN)
def test_an_absent_package_is_named(composed: Compose, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    package = PACKAGES[optimizer]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"^optimizer\._target_: needs `pip install {package}`, for '{package}\."):
        build.build_optimizer(validate(composed(f"optimizer={optimizer}")).optimizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.growth.lr=sqrt"], "schedule.growth.lr: must be one of 'constant', 'inverse_sqrt', got 'sqrt'"),
        (["schedule.growth.factor=1"], "schedule.growth.factor: must be > 1, got 1"),
        (["schedule.growth.milestones=[60%,30%]"], "schedule.growth.milestones: must rise, got '60%' before '30%'"),
        (
            ["schedule.growth.milestones=[60]"],
            "schedule.growth.milestones: must be epochs, since a batch grows",
        ),
        (["data.batch_size=1024"], "schedule.growth.max_batch_size: 512 is below data.batch_size, 1024. Give 1024"),
        (["schedule.growth.max_batch_size=0", "data.batch_size=1"], "schedule.growth.max_batch_size: 0 is below"),
    ],
)
def test_bad_keys_of_a_growing_batch_are_named(composed: Compose, overrides: list[str], message: str) -> None:
    config = validate(composed("schedule=batch_growth", *overrides))
    with pytest.raises(ConfigError) as caught:
        build.build_callbacks(config, build.build_schedules(config.schedule, config.optimizer.lr), LightningModule())
    assert message in str(caught.value)


def test_no_growth_no_callback(composed: Compose) -> None:
    config = validate(composed("schedule=batch_growth", "schedule.growth=null"))
    callbacks: list[Any] = build.build_callbacks(
        config, build.build_schedules(config.schedule, config.optimizer.lr), LightningModule()
    )
    assert not any(isinstance(callback, BatchSizeSchedule) for callback in callbacks)


def test_the_yaml_of_the_docs_makes_the_schedule_with_hydra() -> None:
    text = (CONF.parent.parent / "docs" / "schedules.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    made = instantiate(OmegaConf.create(text))
    assert made == Join((Linear(0, 1), "500 steps"), (Constant(), None), (OneMinusSqrt(), "20%"))


@pytest.mark.parametrize(
    ("overrides", "previewed"),
    [
        (["schedule=constant"], True),
        (["schedule=wsd"], True),
        (["schedule=triangular2"], True),
        (["schedule=plateau"], True),
        (["schedule=cosine"], False),
        (["schedule=one_cycle"], False),
        (["schedule=constant", "optimizer=schedule_free_sgd"], False),
        (["schedule=cosine", "callbacks.cooldown_preview=true"], True),
        (["schedule=constant", "callbacks.cooldown_preview=false"], False),
        (["schedule=constant", "callbacks=none"], False),
    ],
)
def test_a_cooldown_is_previewed_where_the_learning_rate_stays_high(
    composed: Compose, overrides: list[str], previewed: bool
) -> None:
    config = validate(composed(*overrides))
    callbacks = build.build_callbacks(config, built_schedules(config), Tiny())
    assert any(isinstance(callback, CooldownPreview) for callback in callbacks) is previewed
