"""The probe measures as the validation does, and leaves the run as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset

from lr_lightning.callbacks.overfitting import OverfittingMonitor
from tests.callbacks.tiny import Memory, Tiny, X, Y, loader, trainer


def _fit(tmp_path: Path, *callbacks: Any, **options: Any) -> tuple[Tiny, Memory]:
    seed_everything(5, verbose=False)
    module, memory = Tiny(), Memory()
    trainer(tmp_path, list(callbacks), memory, **options).fit(module, loader(), loader(20))
    return module, memory


def test_the_run_is_the_same_with_and_without(tmp_path: Path) -> None:
    class Draws(OverfittingMonitor):
        """A loss that draws random numbers, as a module with sampling would."""

        def __init__(self) -> None:
            super().__init__(
                loss=lambda module, batch: cross_entropy(module(batch[0]), batch[1], reduction="none") + torch.rand(1)
            )

    plain, _ = _fit(tmp_path)
    for monitor in (OverfittingMonitor(), Draws()):
        watched, _ = _fit(tmp_path, monitor)
        assert all(torch.equal(plain.state_dict()[key], watched.state_dict()[key]) for key in plain.state_dict())
        assert plain.losses == watched.losses


def test_values_are_those_of_the_probe_in_eval_mode_with_the_same_weights(tmp_path: Path) -> None:
    probe = [(X[:7], Y[:7]), (X[7:10], Y[7:10])]
    module, memory = _fit(tmp_path, OverfittingMonitor(probe=probe))
    module.eval()
    with torch.no_grad():
        logits = module(X[:10])
    (step, loss), (_, acc) = memory.of("probe/loss")[-1], memory.of("probe/acc")[-1]
    assert step == 11
    assert loss == pytest.approx(cross_entropy(logits, Y[:10]).item(), rel=1e-6)
    assert acc == pytest.approx((logits.argmax(1) == Y[:10]).float().mean().item())
    assert memory.of("overfit/gap_loss")[-1][1] == pytest.approx(memory.of("val/loss")[-1][1] - loss, abs=1e-7)
    assert memory.of("overfit/gap_acc")[-1][1] == pytest.approx(acc - memory.of("val/acc")[-1][1], abs=1e-7)


def test_the_default_probe_is_stratified_and_as_large_as_the_validation_set(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def loss(module: Any, batch: Any) -> Tensor:
        seen.append(batch[1])
        return cross_entropy(module(batch[0]), batch[1], reduction="none")

    seed_everything(5, verbose=False)
    fit = trainer(tmp_path, [OverfittingMonitor(loss=loss)], max_epochs=1)
    fit.fit(Tiny(), loader(), DataLoader(torch.utils.data.TensorDataset(X[:20], Y[:20]), batch_size=20))
    labels = torch.cat(seen)
    assert len(labels) == 20
    assert labels.sum().item() == pytest.approx(20 * Y.float().mean().item(), abs=1)


def test_early_stopping_may_monitor_the_gap_in_any_order(tmp_path: Path) -> None:
    for order in (1, -1):
        stop = EarlyStopping("overfit/gap_loss", mode="min", patience=1, min_delta=1e9)
        _, memory = _fit(tmp_path, *[OverfittingMonitor(), stop][::order], max_epochs=10)
        assert len(memory.of("overfit/gap_loss")) == 2  # the first is the best, the second is one too many


def test_every_second_validation(tmp_path: Path) -> None:
    _, memory = _fit(tmp_path, OverfittingMonitor(every_n_validations=2), max_epochs=5)
    assert [step for step, _ in memory.of("probe/loss")] == [5, 17, 29]


def test_it_works_where_the_validation_step_logs_nothing(tmp_path: Path) -> None:
    class Silent(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    memory = Memory()
    trainer(tmp_path, [OverfittingMonitor()], memory).fit(Silent(), loader(), loader())
    assert len(memory.of("probe/loss")) == 2
    assert memory.of("overfit/gap_loss") == []


def test_a_loader_no_probe_can_be_drawn_from_gets_a_warning_that_says_what_to_do(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(X[i], Y[i]) for i in range(20)])

    memory = Memory()
    with pytest.warns(UserWarning, match=r"OverfittingMonitor\(probe=\.\.\.\)"):
        trainer(tmp_path, [OverfittingMonitor()], memory).fit(Tiny(), DataLoader(Stream(), batch_size=10), loader())
    assert memory.of("probe/loss") == []


def test_bad_argument() -> None:
    with pytest.raises(ValueError, match="every_n_validations must be >= 1, got 0"):
        OverfittingMonitor(every_n_validations=0)
