"""Values of a param group, as numbers or tensors, and the lr that an update really uses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lr_lightning._param_groups import effective_lr, initial_value, peak_lr, set_value


def test_group_values() -> None:
    group: dict[str, Any] = {"lr": torch.tensor(0.5)}
    assert peak_lr(group) == 0.5
    assert "initial_lr" not in group
    assert initial_value(group, "lr") == 0.5
    assert type(group["initial_lr"]) is float
    tensor = group["lr"]
    set_value(group, "lr", 0.25)
    assert group["lr"] is tensor
    assert tensor.item() == 0.25
    plain = {"lr": 1}
    set_value(plain, "lr", 0.25)
    assert plain == {"lr": 0.25}


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({"lr": 0.1}, 0.1),
        ({"lr": 0.5, "d": 1e-4}, 5e-5),
        ({"lr": 0.5, "d": 1e-4, "k": 7}, 5e-5),
        ({"lr": 1.0, "warmup_steps": 4, "k": 0}, 0.25),
        ({"lr": 1.0, "warmup_steps": 4, "k": 3}, 1.0),
        ({"lr": 1.0, "warmup_steps": 4, "k": 9}, 1.0),
        ({"lr": 1.0, "warmup_steps": 0, "k": 0}, 1.0),
    ],
)
def test_the_lr_that_an_optimizer_scales_itself(group: dict[str, Any], expected: float) -> None:
    assert effective_lr(group) == expected


@pytest.mark.parametrize("group", [{"lr": torch.tensor(0.5)}, {"lr": 0.5, "d": torch.tensor(1.0)}])
def test_an_effective_lr_of_tensors_is_a_new_tensor(group: dict[str, Any]) -> None:
    lr = effective_lr(group)
    assert isinstance(lr, Tensor)
    for value in group.values():
        if isinstance(value, Tensor):
            value.fill_(9.0)
    assert float(lr) == 0.5


def test_the_effective_lr_includes_a_schedule_free_warmup() -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="needs `pip install schedulefree`")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = schedulefree.SGDScheduleFree([weight], lr=0.3, warmup_steps=5)
    optimizer.train()
    for _ in range(8):
        weight.grad = torch.ones(3)
        expected = effective_lr(optimizer.param_groups[0])
        optimizer.step()
        assert optimizer.param_groups[0]["scheduled_lr"] == expected
