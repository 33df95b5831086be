"""A grid of learning rates, without its trainings."""

from pathlib import Path

import pytest

from lr_lightning.app.commands import lr_effects
from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.run.record import RunOutcome

ROOT = Path(__file__).resolve().parents[3]


def test_each_seed_goes_through_all_rates_so_that_a_busy_minute_is_not_of_one_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lr_effects, "train", lambda *_, **__: RunOutcome())
    monkeypatch.setattr(lr_effects, "_conclude", lambda *_: None)
    prepare(ROOT)
    (tmp_path / "outputs").mkdir()
    words = [
        "experiment=lr_effects",
        "lr_effects.lrs=[0.01,0.1]",
        "lr_effects.seeds=[3,4]",
        f"output_root={tmp_path}/outputs",
    ]
    trials = lr_effects.run_grid(load_config(ROOT, words))
    assert [(trial.lr, trial.seed) for trial in trials] == [(0.01, 3), (0.1, 3), (0.01, 4), (0.1, 4)]
