"""The processes of a run, the batch that they share, and the learning rate for that batch.

How many processes there are, and who started them, is known before there is a Trainer: from the config, and from the
environment that torchrun or SLURM sets.
"""

import math
import os
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from lr_lightning.app.config import Config
from lr_lightning.app.schemas.data import DataConfig
from lr_lightning.app.schemas.schedule import CyclicalConfig
from lr_lightning.app.schemas.trainer import TrainerConfig
from lr_lightning.errors import ConfigError

_BATCH_JOB = {  # variables in the jobs of SLURM, PBS, LSF, Grid Engine, Flux, OAR, HTCondor, Cobalt and AWS Batch
    *("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID", "FLUX_JOB_ID", "OAR_JOB_ID", "_CONDOR_JOB_AD"),
    *("COBALT_JOBID", "AWS_BATCH_JOB_ID"),
}
_INTERACTIVE_JOBS = ("bash", "interactive")  # names of SLURM jobs in which Lightning starts the processes


@dataclass(frozen=True)
class ExternalLaunch:
    """A launch of processes by ``torchrun`` or ``SLURM``: a process for each of the devices of each node."""

    launcher: str
    devices: int
    num_nodes: int


def in_batch_job() -> bool:
    """Tell whether a batch system has started this process, and may warn it by a signal before it ends the job."""
    return not _BATCH_JOB.isdisjoint(os.environ)


def external_launch() -> ExternalLaunch | None:
    """Read what torchrun or SLURM has started; None if Lightning starts the processes, or there is only one."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:  # only tells that it is torchrun: the id is "none" for every job without one
        local = int(env["LOCAL_WORLD_SIZE"])
        return ExternalLaunch("torchrun", local, int(env["WORLD_SIZE"]) // local)
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in _INTERACTIVE_JOBS and "LOCAL_RANK" not in env:
        machines = int(env.get("SLURM_NNODES", "1"))
        per_node = int(env.get("SLURM_NTASKS_PER_NODE") or int(env["SLURM_NTASKS"]) // machines)
        return ExternalLaunch("SLURM", per_node, machines)
    return None


def devices_and_nodes(node: TrainerConfig) -> tuple[int | str, int]:
    """Return the devices and nodes for Lightning's Trainer: from an external launch, or else from the config."""
    launch = external_launch()
    if launch is None:
        return node.devices, node.num_nodes
    for key, given, started, unit in (
        ("devices", _device_count(node), launch.devices, "processes a node"),
        ("num_nodes", node.num_nodes if node.num_nodes > 1 else None, launch.num_nodes, "nodes"),
    ):
        if given not in (None, started):
            raise ConfigError(
                f"trainer.{key}: {given}, but {launch.launcher} started {started} {unit}. Leave it out, with "
                "trainer=ddp (and trainer.accelerator=cpu without a GPU)."
            )
    return launch.devices, launch.num_nodes


def world_size(node: TrainerConfig) -> int:
    """Return the number of processes of the run."""
    devices, machines = devices_and_nodes(node)
    if external_launch() is not None:
        return int(devices) * machines
    count = _device_count(node)
    if count is None:
        import torch

        count = 1 if node.accelerator == "cpu" else max(1, torch.cuda.device_count())
    return count * machines


def local_processes(node: TrainerConfig) -> int:
    """Return the number of processes of the run on this machine."""
    return max(1, world_size(node) // devices_and_nodes(node)[1])


def process_batch_size(data: DataConfig, node: TrainerConfig) -> int:
    """Return the number of training examples in a batch of one process, which the config may give for all together."""
    size = data.batch_size
    if data.batch_size_is == "per_process":
        return size
    world = world_size(node)
    if size % world:
        wrong = (
            f"{size} is the batch of all processes (data.batch_size_is=global) and cannot be shared equally by {world}"
        )
        fitting = f"{max(1, size // world) * world} or {(size // world + 1) * world}"
        raise ConfigError(f"data.batch_size: {wrong}. Give {fitting}.")
    return size // world


def effective_batch_size(data: DataConfig, node: TrainerConfig) -> int:
    """Return the number of training examples in an update: of all processes, over all accumulated batches."""
    return process_batch_size(data, node) * world_size(node) * node.accumulate_grad_batches


def _device_count(node: TrainerConfig) -> int | None:
    """Return the number of devices that the config asks for; None for all that there are."""
    devices = str(node.devices)
    if devices in ("auto", "-1"):
        return None
    return sum(bool(part.strip()) for part in devices.split(",")) if "," in devices else int(devices)


def is_rank_zero() -> bool:
    """Tell whether this process is the one that records the run."""
    if "RANK" not in os.environ and int(os.environ.get("NODE_RANK", "0")) > 0:
        return False  # Lightning's launcher on another node, which has not assigned ranks yet
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return bool(getattr(rank_zero_only, "rank", 0) == 0)


# -- the learning rate for that batch ----------------------------------------------------------------------------------


def lr_rule_factor(rule: str, batch: int, reference: int) -> float:
    """Return the factor that adapts a learning rate for updates of ``reference`` examples to those of ``batch``.

    The rule is ``linear`` (Goyal et al. 2017, for SGD), ``sqrt`` (Krizhevsky 2014; Malladi et al. 2022, for Adam) or
    ``none``.

    >>> lr_rule_factor("linear", 512, 128), lr_rule_factor("sqrt", 512, 128), lr_rule_factor("none", 512, 128)
    (4.0, 2.0, 1.0)
    """
    ratio = batch / reference
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


def scale_lr(config: Config) -> tuple[Config, dict[str, Any]]:
    """Apply ``optimizer.lr_rule`` to the peak learning rate and the bounds of a cycle.

    Returns:
        The config with the scaled learning rates, and a record of the change: the given learning rate and the factor.
        Without a rule, the same config and an empty record.
    """
    node = config.optimizer
    if node.lr_rule == "none" or node.lr_reference_batch is None:
        return config, {}
    factor = lr_rule_factor(node.lr_rule, effective_batch_size(config.data, config.trainer), node.lr_reference_batch)
    scaled = deepcopy(config)
    scaled.optimizer.lr = node.lr * factor
    if isinstance(scaled.schedule, CyclicalConfig):
        for name in ("max_lr", "base_lr"):
            if (lr := getattr(scaled.schedule, name)) is not None:
                setattr(scaled.schedule, name, lr * factor)
    return scaled, {"lr_rule.given_lr": node.lr, "lr_rule.factor": factor}
