"""The calls of a step are recorded, and repeated on another batch."""

from contextlib import closing
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lr_lightning.callbacks.forward_calls import ForwardRecord


class Two(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Any = None, scale: float = 1.0, **_: Any) -> Tensor:
        return self.head(self.body(x)) * scale


def batch(seed: int) -> dict[str, Any]:
    x = torch.randn(6, 2, 2, generator=torch.Generator().manual_seed(seed))
    return {"x": x.flatten(1), "image": x.clone(), "n": 3}


CALLS: dict[str, Any] = {
    "module(batch['x'])": lambda m, b: m(b["x"]),
    "module(x=batch['x'], scale=2.0)": lambda m, b: m(x=b["x"], scale=2.0),
    "module(x=batch['x'], scale=batch['n'])": lambda m, b: m(x=b["x"], scale=b["n"]),
    "module(**batch)": lambda m, b: m(**b),
    "module(batch['image'].reshape(-1, 4))": lambda m, b: m(b["image"].view(6, 4)),
    "module.head(module.body(batch['x']))": lambda m, b: m.head(m.body(b["x"])),
}


@pytest.mark.parametrize("text", CALLS)
def test_a_call_is_repeated_on_another_batch(text: str) -> None:
    module, one, other = Two(), batch(0), batch(1)
    with closing(ForwardRecord(module)) as record:
        CALLS[text](module, one)
        calls = record.passes(one)
    assert calls is not None
    assert [call.written() for call in calls] == [text]
    assert torch.equal(calls[0](module, other), CALLS[text](module, other))
    assert not module._forward_hooks


@pytest.mark.parametrize(
    "step", [lambda m, b: m(b["x"] + 0), lambda m, b: m.head(m.body(b["x"]) + 0), lambda m, b: None]
)
def test_a_call_on_what_is_no_part_of_the_batch_is_none(step: Any) -> None:
    module, one = Two(), batch(0)
    with closing(ForwardRecord(module)) as record:
        step(module, one)
        assert record.passes(one) is None
