"""Who started the processes of a run, which of them this is, and the batch that they share."""

from collections.abc import Callable

import pytest

from lr_lightning.app.config import Config
from lr_lightning.app.world import (
    ExternalLaunch,
    devices_and_nodes,
    effective_batch_size,
    external_launch,
    is_rank_zero,
    process_batch_size,
    world_size,
)
from lr_lightning.errors import ConfigError

Configured = Callable[..., Config]

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}

SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "5"}


def use(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (TORCHRUN, ExternalLaunch("torchrun", 2, 2)),
        (SLURM, ExternalLaunch("SLURM", 4, 2)),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "4"}, ExternalLaunch("SLURM", 4, 2)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, None),  # a child of Lightning's
    ],
)
def test_what_was_started_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, configured: Configured, env: dict[str, str], expected: ExternalLaunch | None
) -> None:
    use(monkeypatch, env)
    assert external_launch() == expected
    if expected is not None:
        trainer = configured("trainer=ddp", "trainer.accelerator=cpu").trainer
        assert devices_and_nodes(trainer) == (expected.devices, expected.num_nodes)
        assert world_size(trainer) == expected.devices * expected.num_nodes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=4", "trainer.devices: 4, but torchrun started 2 processes a node"),
        ("trainer.num_nodes=3", "trainer.num_nodes: 3, but torchrun started 2 nodes"),
    ],
)
def test_another_number_than_was_started_is_refused(
    monkeypatch: pytest.MonkeyPatch, configured: Configured, override: str, message: str
) -> None:
    use(monkeypatch, TORCHRUN)
    with pytest.raises(ConfigError, match=message):
        devices_and_nodes(configured("trainer=ddp", override).trainer)


def test_only_one_process_of_a_run_over_several_nodes_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_rank_zero()
    monkeypatch.setenv("NODE_RANK", "1")  # Lightning's launcher, which has given no ranks yet
    assert not is_rank_zero()


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
