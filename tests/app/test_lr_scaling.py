"""The batch of one process, and the learning rate for the batch that all processes make together."""

from collections.abc import Callable

import pytest

from lr_lightning.app.config import Config
from lr_lightning.app.lr_scaling import effective_batch_size, lr_factor, process_batch_size, scale_lr
from lr_lightning.errors import ConfigError

Configured = Callable[..., Config]


def _sizes(config: Config) -> tuple[int, int]:
    nodes = config.data, config.trainer
    return process_batch_size(*nodes), effective_batch_size(*nodes)


def test_a_batch_of_all_processes_is_shared_by_them(configured: Configured) -> None:
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.accumulate_grad_batches=3"]
    each = configured("data.batch_size=64", *two)
    assert _sizes(each) == (64, 384)
    shared = configured("data.batch_size=64", "data.batch_size_is=global", *two)
    assert _sizes(shared) == (32, 192)
    with pytest.raises(ConfigError, match=r"data.batch_size: 65 .* Give 64 or 66"):
        _sizes(configured("data.batch_size=65", "data.batch_size_is=global", *two))


@pytest.mark.parametrize(("rule", "expected"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rule_scales_every_absolute_lr(configured: Configured, rule: str, expected: float) -> None:
    assert lr_factor(rule, 256, 64) == expected
    own = ["schedule=triangular", "schedule.max_lr=0.4", "schedule.base_lr=0.1", "data.batch_size=256"]
    given = configured(*own, f"optimizer.lr_rule={rule}", "optimizer.lr_reference_batch=64", "trainer=cpu")
    config, said = scale_lr(given)
    assert config.optimizer.lr == pytest.approx(0.4 * expected)
    assert config.schedule.max_lr == pytest.approx(0.4 * expected)  # type: ignore[attr-defined]
    assert config.schedule.base_lr == pytest.approx(0.1 * expected)  # type: ignore[attr-defined]
    assert said == ({} if rule == "none" else {"lr_rule.given_lr": 0.4, "lr_rule.factor": expected})
    assert given.optimizer.lr == 0.4
