"""A search's command line: what is understood, and the one error for what is not."""

from collections.abc import Callable

import pytest

from lr_lightning.errors import ConfigError
from lr_lightning.search.methods import SAMPLERS
from lr_lightning.search.settings import Search
from lr_lightning.search.space import range_hint

Searched = Callable[..., Search]


def test_the_textbooks_grid_is_at_least_five_rates_and_nothing_else(searched: Searched) -> None:
    search = searched("search=grid")
    points = list(search.space.grid({}))
    assert len(points) >= 5
    assert all(list(point) == ["optimizer.lr"] for point in points)
    assert not search.node.pruners


@pytest.mark.parametrize(
    ("words", "space"),
    [
        (["schedule=cosine,wsd"], {"schedule": {"choice": ["cosine", "wsd"]}}),
        (["optimizer.momentum=interval(0.5,0.9)"], {"optimizer.momentum": {"low": 0.5, "high": 0.9}}),
        (
            ["optimizer.momentum=tag(log,interval(0.5,0.9))"],
            {"optimizer.momentum": {"low": 0.5, "high": 0.9, "log": True}},
        ),
        (
            ["data.batch_size={log_int: [16, 64]}"],
            {"data.batch_size": {"low": 16.0, "high": 64.0, "log": True, "integer": True}},
        ),
        (["trainer.max_epochs=range(1,4)"], {"trainer.max_epochs": {"choice": [1, 2, 3]}}),
    ],
)
def test_a_key_with_several_values_is_searched(searched: Searched, words: list[str], space: dict[str, object]) -> None:
    found = searched("search=random", *words).space.as_dict()
    found.pop("optimizer.lr")
    assert found == space


def test_a_key_with_one_value_is_not_searched_and_several_seeds_are_seeds(searched: Searched) -> None:
    search = searched("optimizer.lr=0.05", "schedule=cosine,wsd", "seed=3,4")
    assert list(search.space.keys) == ["schedule"]
    assert search.node.seeds == [3, 4]
    assert search.composer.config({"schedule": "wsd"}).optimizer.lr == 0.05


def test_trials_that_are_compared_by_their_previews_log_them(searched: Searched) -> None:
    search = searched("search=random", "schedule=cosine", "search.pruners=[cooled]")
    assert search.compared == "val/acc_if_cooled"
    assert search.composer.config({"optimizer.lr": 0.1}).callbacks.cooldown_preview is True
    assert "callbacks.cooldown_preview=true" in search.composer.overrides({})
    assert searched("search=random", "schedule=cosine").compared == "val/acc"


def test_a_trial_has_the_config_that_its_command_line_has(searched: Searched) -> None:
    from lr_lightning.app.composition import load_config

    search = searched("search=random", "schedule=cosine,wsd", "trainer.max_epochs=3", "optimizer.weight_decay=0.001")
    point = {"optimizer.lr": 0.0123, "schedule": "wsd"}
    assert search.composer.config(point) == load_config(search.checkout, search.composer.overrides(point))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.space.optimizer.lr=null"], "search.space: is empty"),
        (["optimizer.lrr=0.1,0.2"], "search.space.optimizer.lrr: there is no such key"),
        (["search.space.optimizer.lr={log: [0, 1]}"], "search.space.optimizer.lr.log: a logarithm needs"),
        (["search.space.optimizer.lr={lg: [0.1, 1]}"], "by one of choice, int, linear, log, log_int, not by 'lg'"),
        (["optimizer.lr=abc,def"], "search.space.optimizer.lr: 'abc' is not a number"),
        (["data.batch_size=[16],32"], "is no single value"),
        (["schedule=cosine,wsdd"], "search.space.schedule: unknown choice 'wsdd'"),
        (["search.objective=test/acc"], "'test/acc': the test set must not choose. Give a value of the validation"),
        (["search.objective=test/acc"], "the test of each trial is recorded all the same"),
        (["optimizer.lrr=0.1,0.2"], "`scripts/train.py --cfg job` shows every key"),
        (
            ["search.start=[{optimizer.weight_decay: finder}]"],
            "the finder gives optimizer.lr or schedule.max_lr alone, and only if it is searched. Give a number",
        ),
        (["optimizer.lr=log:0.001..1"], "'optimizer.lr=tag(log,interval(0.001,1))'"),
        (["optimizer.lr=1e-3-1"], "'optimizer.lr=tag(log,interval(1e-3,1))'"),
        (["optimizer.lr=log(0.001,1)"], "'optimizer.lr=tag(log,interval(0.001,1))'"),
        (["n_trials=0"], "search.n_trials: must be above 0"),
        (["n_trials=null"], "would never end"),
        (["search=foo"], "search: unknown choice 'foo'. Choices: bayes, grid, hyperband, random"),
        (["search.sampler=tp"], "Did you mean 'tpe'?"),
        (["search.pruners=[medain]"], "Did you mean 'median'?"),
        (["search.pruners=[cooled,median]"], "cooled reads previews, median the objective itself. Give one of them."),
        (
            ["search.pruners=[cooled]", "callbacks=none"],
            "search.pruners: cooled needs callbacks.cooldown_preview, which is off. Give true.",
        ),
        (
            ["search.pruners=[cooled]", "search.objective=summary/last_val_acc"],
            "search.pruners: cooled cannot foretell the objective 'summary/last_val_acc', only val/loss, val/acc, sum",
        ),
        (["search.direction=up"], "must be maximize or minimize, got 'up'."),
        (
            ["optimizer=sgd,adam", "search.space.optimizer.momentum={linear: [0.5, 0.99]}"],
            "there is no such key with optimizer=adam",
        ),
        (["search.space.optimizer.momentum={linear: [0.5, 1.5]}"], "optimizer.momentum: must lie in [0, 1)"),
        (
            ["search.space.data.batch_size={linear: [16, 256]}"],
            "search.space.data.batch_size: '16.0' is not an integer",
        ),
        (["search.start=[{optimizer.lr: 5}]"], "search.start[0].optimizer.lr: 5 is not in search.space"),
        (["search.start=[{optimizer.l: 5}]"], "Did you mean 'optimizer.lr'?"),
        (["finder=range_test"], "finder: range_test would replace the learning rate"),
        (["workers=0", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], "workers: 0 trains in this"),
        (["storage=foo"], "is no address of a database"),
        (["sweep=a/b"], "sweep: must be a name"),
        (["resume=x"], "resume: the trials of a search are new runs"),
        (
            ["optimizer=sgd,adam", "search.space.optimizer.momentum={choice: [0.5], when: {optimizer: sdg}}"],
            "'sdg' is never",
        ),
        (
            ["optimizer=sgd,adam", "search.space.optimizer.eps={choice: [1e-8], when: {optimizer.name: adam}}"],
            "Name optimizer",
        ),
        (["search.direction=minimize"], "would look for the worst"),
        (["n_trials=1,2"], "search.n_trials: takes one value here"),
        (["optimizer.lr=range(0,1,0)"], "is empty"),
        (["sweep=.."], "sweep: must be a name"),
        (["hydra.run.dir=x"], "a search is not run by Hydra"),
        (["storage=sqlite://"], "has no file"),
        (["storage=sqlite:///"], "'sqlite:///' has no file"),
        (
            ["search=grid", "schedule=cosine,wsd", "search.start=[{optimizer.lr: 0.1}]"],
            "on a grid it needs a value of every",
        ),
        (["-m"], "-m: no such option"),
        (["nope=3"], "nope: there is no such key"),
        (["schedule=[cosine"], "cannot read 'schedule=[cosine'"),
    ],
)
def test_bad_input_is_one_clear_error(searched: Searched, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        searched(*words)
    assert message in str(error.value)


def test_only_what_looks_like_a_range_gets_its_hint() -> None:
    for word in ("optimizer.lr=abc", "optimizer.lr=0.1", "data.root=a/1-2/b", "nope=3"):
        assert range_hint(word) == ""


def test_every_sampler_that_the_settings_allow_is_made_by_its_own_factory(searched: Searched) -> None:
    """A name without a factory searched at random, and nobody was told."""
    with pytest.raises(ConfigError, match=f"Choices: {', '.join(SAMPLERS)}"):
        searched("search.sampler=nope")
    made = {name: type(make(1, 0)).__name__ for name, make in SAMPLERS.items()}
    assert made.pop("grid") == "RandomSampler"
    assert made == {"random": "RandomSampler", "qmc": "QMCSampler", "tpe": "TPESampler", "gp": "GPSampler"}
