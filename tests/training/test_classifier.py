"""LitClassifier in a real Trainer: metrics by hand, checkpoints, what it does not log."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning.training.classifier import LitClassifier
from lr_lightning.training.models import small_cnn
from lr_lightning.training.optimizers import OptimizerFactory

EXAMPLES, BATCH = 11, 4  # the last batch has 3


def data(seed: int = 0, examples: int = EXAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(examples, 1, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(0, 3, (examples,), generator=generator))


def classifier(**kwargs: Any) -> LitClassifier:
    torch.manual_seed(0)
    optimizer = OptimizerFactory(torch.optim.SGD, 0.01, 5e-4, {"momentum": 0.9})
    return LitClassifier(small_cnn(1, 3, (8, 8), width=4), optimizer, num_classes=3, **kwargs)


def trainer(tmp_path: Path, **kwargs: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    return L.Trainer(**(defaults | kwargs))


def by_hand(module: LitClassifier, dataset: TensorDataset) -> tuple[float, float]:
    """Loss and accuracy over the whole set in one pass."""
    images, labels = dataset.tensors
    module.eval()
    with torch.no_grad():
        logits = module(images)
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


class Recorder(L.Callback):
    """Gathers what the training step returns and which metrics each epoch ends with."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.epochs: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"])

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            loss, accuracy = by_hand(module, trainer.val_dataloaders.dataset)
            self.epochs.append({"val/loss": loss, "val/acc": accuracy})


class Logged(L.Callback):
    """Keeps the validation metrics of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.epochs.append({key: value.item() for key, value in trainer.callback_metrics.items()})


def test_validation_metrics_of_every_epoch_equal_a_pass_by_hand(tmp_path: Path) -> None:
    module, recorder, logged = classifier(), Recorder(), Logged()
    fit = trainer(tmp_path, max_epochs=3, callbacks=[recorder, logged])
    fit.fit(module, DataLoader(data(1), BATCH), DataLoader(data(2), BATCH))
    assert len(logged.epochs) == 3
    for found, expected in zip(logged.epochs, recorder.epochs, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_test_metrics_equal_a_pass_by_hand(tmp_path: Path) -> None:
    module = classifier(label_smoothing=0.3)  # must not reach the test loss
    (found,) = trainer(tmp_path).test(module, DataLoader(data(), BATCH), verbose=False)
    loss, accuracy = by_hand(module, data())
    assert found == pytest.approx({"test/loss": loss, "test/acc": accuracy}, rel=1e-5)


def test_class_weights_and_shares_of_classes_are_of_the_training_loss_alone(tmp_path: Path) -> None:
    module = classifier(class_weights="balanced", class_sizes=[6, 0, 2])
    assert module.class_weights is not None
    assert module.class_weights.tolist() == pytest.approx([8 / 2 / 6, 0.0, 8 / 2 / 2])  # the mean over images is 1
    assert "class_weights" not in module.state_dict()
    images, labels = data().tensors[0][:2], torch.tensor([0, 2])
    losses = F.cross_entropy(module.net(images), labels, reduction="none")
    weighted = (losses * module.class_weights[labels]).sum() / module.class_weights[labels].sum()
    assert module.training_step((images, labels), 0).item() == pytest.approx(weighted.item(), rel=1e-6)
    shares = torch.tensor([[0.7, 0.0, 0.3], [0.0, 0.0, 1.0]])
    by_class = -module.net(images).log_softmax(1) * shares * module.class_weights
    assert module.training_step((images, shares), 0).item() == pytest.approx(by_class.sum(1).mean().item(), rel=1e-6)
    (found,) = trainer(tmp_path).test(module, DataLoader(data(), BATCH), verbose=False)
    assert found["test/loss"] == pytest.approx(by_hand(module, data())[0], rel=1e-5)


def test_a_nan_in_one_batch_is_not_hidden(tmp_path: Path) -> None:
    dataset = data()
    dataset.tensors[0][5] = float("nan")
    (found,) = trainer(tmp_path).validate(classifier(), DataLoader(dataset, BATCH), verbose=False)
    assert torch.isnan(torch.tensor(found["val/loss"]))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_training_step_returns_the_loss_and_logs_nothing(tmp_path: Path, smoothing: float) -> None:
    module, recorder = classifier(label_smoothing=smoothing), Recorder()
    images, labels = data().tensors
    fit = trainer(tmp_path, max_epochs=1, callbacks=[recorder])
    expected = F.cross_entropy(classifier().net(images[:BATCH]), labels[:BATCH], label_smoothing=smoothing)
    fit.fit(module, DataLoader(data(), BATCH))
    assert len(recorder.losses) == 3
    assert recorder.losses[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert not fit.logged_metrics
    assert not fit.callback_metrics


def test_optimizer_gets_the_networks_own_names() -> None:
    seen: list[str] = []

    def factory(net: nn.Module) -> torch.optim.Optimizer:
        seen.extend(name for name, _ in net.named_parameters())
        return torch.optim.SGD(net.parameters(), lr=0.1)

    net = small_cnn(1, 3, (8, 8), width=4)
    assert isinstance(LitClassifier(net, factory, 3).configure_optimizers(), torch.optim.SGD)
    assert seen == [name for name, _ in net.named_parameters()]


def test_checkpoint_loads_under_weights_only_and_holds_the_network_alone(tmp_path: Path) -> None:
    module = classifier()
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    fit.fit(module, DataLoader(data(1), BATCH), DataLoader(data(2), BATCH))
    path = tmp_path / "made.ckpt"
    fit.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"net"}
    assert "hyper_parameters" not in checkpoint

    other = classifier()
    nn.init.zeros_(other.net.fc.weight)
    (found,) = trainer(tmp_path).validate(
        other, DataLoader(data(2), BATCH), ckpt_path=path, weights_only=True, verbose=False
    )
    assert found["val/loss"] == pytest.approx(by_hand(module, data(2))[0], rel=1e-6)


def test_resumed_fit_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    loaders = DataLoader(data(1), BATCH), DataLoader(data(2), BATCH)
    whole, half, resumed = classifier(), classifier(), classifier()
    trainer(tmp_path, max_epochs=4).fit(whole, *loaders)
    first = trainer(tmp_path, max_epochs=2)
    first.fit(half, *loaders)
    path = tmp_path / "half.ckpt"
    first.save_checkpoint(path)
    trainer(tmp_path, max_epochs=4).fit(resumed, *loaders, ckpt_path=path, weights_only=True)
    for expected, found in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(expected, found)


def test_attributes_are_set_as_in_every_module() -> None:
    module = LitClassifier(nn.Linear(4, 2), lambda net: torch.optim.SGD(net.parameters(), lr=0.1), 2)
    module.note = None
    module.note = "plain"
    module.net = nn.Linear(8, 2)
    assert (module.note, dict(module.named_parameters()).keys()) == ("plain", {"net.weight", "net.bias"})
    assert "net" not in vars(module)
    with pytest.raises(TypeError, match="cannot assign"):
        module.net = "no module"
    module.net = None
    assert list(module.parameters()) == []


def test_compile_keeps_the_names_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def fake(function: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(function)
        return lambda images: function(images) + 1

    monkeypatch.setattr(torch, "compile", fake)
    plain, module = classifier().eval(), classifier(compile=True).eval()
    images = data().tensors[0]
    assert len(compiled) == 1
    assert torch.equal(module(images), plain(images) + 1)
    assert list(module.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 1}, "num_classes must be a whole number >= 2, got 1"),
        ({"num_classes": 3, "class_weights": "rare"}, "class_weights must be 'balanced' or None, got 'rare'"),
        ({"num_classes": 3, "label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"num_classes": 3, "label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\), got -0.1"),
    ],
)
def test_refuses_arguments_out_of_range(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LitClassifier(nn.Identity(), OptimizerFactory(torch.optim.SGD, 0.1), **kwargs)


TWO_PROCESSES = """
import json, os, sys
import lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from lr_lightning.training.classifier import LitClassifier

if __name__ == "__main__":
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(13, 3, generator=generator), torch.randint(0, 3, (13,), generator=generator)
    mine = slice(0, 10) if rank == 0 else slice(10, 13)
    module = LitClassifier(nn.Identity(), lambda net: None, num_classes=3)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, logger=False,
                        enable_checkpointing=False, enable_progress_bar=False)
    loader = DataLoader(TensorDataset(logits[mine], labels[mine]), batch_size=4)
    (found,) = trainer.test(module, loader, verbose=False)
    expected = {
        "test/loss": nn.functional.cross_entropy(logits, labels).item(),
        "test/acc": (logits.argmax(1) == labels).double().mean().item(),
    }
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
        json.dump([found, expected], file)
"""


@pytest.mark.slow
def test_metrics_are_exact_over_two_processes_of_unequal_size(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    for rank in range(2):
        found, expected = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx(expected, rel=1e-5)
