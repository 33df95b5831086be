"""Values of a param group are read and written as what they are: numbers or tensors."""

from typing import Any

import torch

from lr_lightning._param_groups import initial_value, peak_lr, set_value


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
