"""How many processes a run has, who started them, and which of them this is.

All of it is read before there is a Trainer: from the config, and from what torchrun or SLURM put into the environment.
"""

import os
from dataclasses import dataclass

from lr_lightning.app.schemas.trainer import TrainerConfig
from lr_lightning.errors import ConfigError

_SLURM_BY_HAND = ("bash", "interactive")


@dataclass(frozen=True)
class ExternalLaunch:
    """Processes that somebody else has started.

    Attributes:
        by: ``torchrun`` or ``SLURM``.
        devices: Processes on each node.
        num_nodes: Nodes.
    """

    by: str
    devices: int
    num_nodes: int


def external_launch() -> ExternalLaunch | None:
    """What torchrun or SLURM has started; None where Lightning starts the processes, or there is only one.

    ``TORCHELASTIC_RUN_ID`` says that it was torchrun and no more: unless it is given, all jobs have the id "none".
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return ExternalLaunch("torchrun", local, int(env["WORLD_SIZE"]) // local)
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in _SLURM_BY_HAND and "LOCAL_RANK" not in env:
        nodes = int(env.get("SLURM_NNODES", "1"))
        a_node = int(env.get("SLURM_NTASKS_PER_NODE") or int(env["SLURM_NTASKS"]) // nodes)
        return ExternalLaunch("SLURM", a_node, nodes)
    return None


def devices_and_nodes(trainer: TrainerConfig) -> tuple[int | str, int]:
    """The devices and nodes for Lightning's Trainer: as given, or as many as were started.

    Raises:
        ConfigError: If others were given than were started.
    """
    started = external_launch()
    if started is None:
        return trainer.devices, trainer.num_nodes
    for key, given, have in (
        ("devices", _count(trainer), started.devices),
        ("num_nodes", trainer.num_nodes if trainer.num_nodes > 1 else None, started.num_nodes),
    ):
        if given not in (None, have):
            what = "processes a node" if key == "devices" else "nodes"
            raise ConfigError(
                f"trainer.{key}: {given}, but {started.by} started {have} {what}. Leave it out, with trainer=ddp "
                "(and trainer.accelerator=cpu without a GPU)."
            )
    return started.devices, started.num_nodes


def world_size(trainer: TrainerConfig) -> int:
    """How many processes the run has."""
    devices, nodes = devices_and_nodes(trainer)
    if external_launch() is not None:
        return int(devices) * nodes
    count = _count(trainer)
    if count is None:
        import torch

        count = 1 if trainer.accelerator == "cpu" else max(1, torch.cuda.device_count())
    return count * nodes


def _count(trainer: TrainerConfig) -> int | None:
    """The number of devices that was given; None for as many as there are."""
    devices = str(trainer.devices)
    if devices in ("auto", "-1"):
        return None
    return len([part for part in devices.split(",") if part.strip()]) if "," in devices else int(devices)


def is_rank_zero() -> bool:
    """Whether this process is the one that records the run."""
    if "RANK" not in os.environ and int(os.environ.get("NODE_RANK", "0")) > 0:
        return False  # Lightning's launcher on another node: it has given no ranks yet
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return bool(getattr(rank_zero_only, "rank", 0) == 0)
