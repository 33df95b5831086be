"""Per-example losses over ranks: every rank takes part in every collective, even one with nothing to give."""

from typing import Any

import pytest
import torch

from lr_lightning.callbacks.per_example import Examples, SampleCollector, ValidationLosses
from tests.callbacks.threads import on_ranks
from tests.callbacks.tiny import Tiny

LOGITS, LABELS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])


def examples(count: int, logits: bool = True) -> Examples:
    losses, right = torch.arange(3.0)[:count], torch.ones(count)
    return Examples(losses, right, LOGITS[:count], LABELS[:count]) if logits else Examples(losses, right)


@pytest.mark.parametrize(
    ("batches", "size", "known"),
    [
        ([[examples(3)], []], 3, True),  # a probe that is smaller than the number of ranks
        ([[], [examples(2), examples(1)]], 3, True),
        ([[examples(3)], [examples(1)]], 4, True),
        ([[examples(3)], [examples(3, logits=False)]], 6, False),
        ([[examples(1)], [examples(3), examples(3, logits=False)]], 7, False),
        ([[], []], 0, False),
    ],
    ids=["first only", "second only", "uneven", "logits of one", "logits of a part", "none"],
)
def test_all_ranks_get_one_sample(batches: list[list[Examples]], size: int, known: bool) -> None:
    def work(trainer: Any) -> Any:
        gathered = SampleCollector(keep=10)
        for batch in batches[trainer.global_rank]:
            gathered.add(batch)
        return gathered.finish(trainer, torch.device("cpu"))

    one, two = on_ranks(work)
    if not size:
        assert one is two is None
        return
    assert (one.size, one.loss, one.acc) == (two.size, two.loss, two.acc) == (size, one.losses.mean(), 1.0)
    assert (one.logits is not None) == (two.logits is not None) == known
    if known:
        assert one.logits.tolist() == two.logits.tolist()
        assert len(one.labels) == size


@pytest.mark.parametrize("logged", [[1.0, 1.0], [1.0, None], [9.0, 1.0]])
def test_ranks_agree_on_where_the_losses_come_from(logged: list[float | None]) -> None:
    def work(trainer: Any) -> str:
        if logged[trainer.global_rank] is not None:
            trainer.callback_metrics["val/loss"] = torch.tensor(logged[trainer.global_rank])
        losses = ValidationLosses(lambda module, batch: batch, keep=10)
        if trainer.global_rank == 0:  # the other had no batch that was computed otherwise
            losses.source = "own"
            losses._collector.add(examples(3))
        losses.finish(trainer, Tiny())
        return losses.source

    expected = "logged" if logged == [1.0, 1.0] else "own"
    with pytest.warns(UserWarning, match="does not call the module"):
        assert on_ranks(work) == [expected] * 2
