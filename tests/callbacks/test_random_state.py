"""Random states survive a resume, and load without unpickling anything."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning.callbacks.random_state import RandomState, global_random_state, restore_random_state
from tests.callbacks.tiny import Tiny, X, Y, loader, trainer


def test_restore_gives_every_generator_its_state_back(tmp_path: Path) -> None:
    seed_everything(11, verbose=False)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second value in store
    torch.save(global_random_state(), tmp_path / "state.pt")
    before = [
        random.gauss(0, 1),
        random.random(),
        np.random.standard_normal(),
        np.random.rand(),
        torch.rand(3).tolist(),
    ]
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    after = [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.rand(3).tolist()]
    assert before == after


@pytest.mark.parametrize("at_epoch_end", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_dropout_goes_on_after_a_resume_as_it_would_have(
    tmp_path: Path, with_state: bool, shuffle: bool, at_epoch_end: bool
) -> None:
    extra = [RandomState()] if with_state else []

    def fit(seed: int, ckpt: Path | None = None) -> Tiny:
        seed_everything(seed, verbose=False)
        module = Tiny()
        keep = ModelCheckpoint(
            dirpath=tmp_path,
            filename="{epoch}",
            save_top_k=-1,
            enable_version_counter=False,
            save_on_train_epoch_end=at_epoch_end,
        )
        train = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=shuffle)
        fit = trainer(tmp_path, [*extra, keep], max_epochs=3, enable_checkpointing=True, num_sanity_val_steps=0)
        fit.fit(module, train, loader(), ckpt_path=ckpt, weights_only=True if ckpt else None)
        return module

    whole = fit(seed=0)
    resumed = fit(seed=99, ckpt=tmp_path / "epoch=0.ckpt")
    equal = all(torch.equal(whole.state_dict()[key], resumed.state_dict()[key]) for key in whole.state_dict())
    assert equal == with_state  # without the callback they differ, so this comparison can fail
