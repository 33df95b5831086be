"""Opening a run's record: its config, parameters, tags and environment, in whichever tracking was chosen."""

from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import LightningModule

from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError
from lr_lightning.app.output import LAST, write_config
from lr_lightning.app.resume import Previous
from lr_lightning.app.validate import flatten
from lr_lightning.tracking import CSVLogger, MLflowLogger, NoLogger, RunLogger
from lr_lightning.tracking.colours import COLOUR_TAG, style
from lr_lightning.tracking.environment import environment_tags
from lr_lightning.tracking.keys import hide_password
from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.store import open_store
from lr_lightning.tracking.view import keep_view
from lr_lightning.training.data import ImageDataModule


def open_logger(
    config: Config, folder: Path, previous: Previous | None, data: ImageDataModule, module: LightningModule
) -> RunLogger:
    """Open the run's record, which takes the lock of its output folder, and store the config there.

    Raises:
        ConfigError: If the store cannot be used, or the run to go on with is still running.
    """
    container = asdict(config)
    container["tracking"]["uri"] = hide_password(config.tracking.uri) if config.tracking.uri else None
    node = config.tracking
    tags = _tags(config, folder, data)
    logger: RunLogger
    try:
        if node.name == "none":
            logger = NoLogger(folder, end_on_finalize=False)
        elif node.name == "csv":
            logger = CSVLogger(folder, tags=tags, resume=previous is not None, end_on_finalize=False)
        else:
            store = open_store(Path(node.root), node.uri)
            mark_dead_runs(store)
            logger = MLflowLogger(
                store,
                experiment=node.experiment,
                output_dir=folder,
                run_name=node.run_name or f"{config.schedule.name} lr={config.optimizer.lr:g} seed={config.seed}",
                tags=tags,
                resume=previous is not None,
                end_on_finalize=False,
            )
        logger.start()
        if isinstance(logger, MLflowLogger) and logger.experiment_id is not None:
            keep_view(logger.store, logger.experiment_id)
    except ValueError as e:
        raise ConfigError(f"tracking: {e}") from e
    artifact = write_config(folder, container)  # only now: until the lock is held the folder may be a live run's
    logger.log_hyperparams({key: value for key, value in flatten(container).items() if value not in (None, {}, [])})
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    logger.log_hyperparams({"model.parameters": parameters, **{f"dataset.{k}": v for k, v in data.describe().items()}})
    logger.log_artifact(artifact)
    return logger


def run_id_of(logger: RunLogger | None) -> str | None:
    """The MLflow id of a run, where it has one."""
    return logger.run_id if isinstance(logger, MLflowLogger) else None


def _tags(config: Config, folder: Path, data: ImageDataModule) -> dict[str, str]:
    """What runs are grouped by, where this one lies, and what it ran on."""
    return {
        "schedule": config.schedule.name,
        "optimizer": config.optimizer.name,
        "model": config.model.name,
        "data": config.data.name,
        "seed": str(config.seed),
        "output_dir": str(folder),
        "checkpoint.last": str(folder / "checkpoints" / LAST),
        "checkpoint.best": str(folder / "checkpoints" / "best.ckpt"),
        "data.fingerprint": data.fingerprint,
        COLOUR_TAG: style(config.schedule.name).colour,
        **environment_tags(),
        **config.tracking.tags,
    }
