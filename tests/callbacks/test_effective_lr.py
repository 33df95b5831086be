"""The rate an update uses, where the optimizer scales it itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lr_lightning._param_groups import effective_lr


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
def test_values(group: dict[str, Any], expected: float) -> None:
    assert effective_lr(group) == expected


@pytest.mark.parametrize("group", [{"lr": torch.tensor(0.5)}, {"lr": 0.5, "d": torch.tensor(1.0)}])
def test_tensors_stay_tensors_and_are_not_shared(group: dict[str, Any]) -> None:
    rate = effective_lr(group)
    assert isinstance(rate, Tensor)
    for value in group.values():
        if isinstance(value, Tensor):
            value.fill_(9.0)
    assert float(rate) == 0.5


def test_schedule_free_own_warm_up_is_what_it_uses() -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="needs `pip install schedulefree`")
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = schedulefree.SGDScheduleFree([weight], lr=0.3, warmup_steps=5)
    optimizer.train()
    for _ in range(8):
        weight.grad = torch.ones(3)
        expected = effective_lr(optimizer.param_groups[0])
        optimizer.step()
        assert optimizer.param_groups[0]["scheduled_lr"] == expected
