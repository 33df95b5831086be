"""Every key of the app: one dataclass a group, a subclass for each choice that has keys of its own.

Only omegaconf and hydra's store are imported here, so that `--help` and `--cfg job` answer at once.
The comment above or beside a field is its documentation.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

# -- data ------------------------------------------------------------------------------------------------------------


@dataclass
class DataConfig:
    """Where the images come from and how they are cut into batches."""

    name: str = MISSING
    _target_: str = MISSING  # a callable that returns the raw splits; its arguments are the choice's own keys
    kwargs: dict[str, Any] = field(default_factory=dict)  # more arguments for an outside _target_
    batch_size: int = 64  # examples a step and process
    eval_batch_size: int | None = None  # default: four times batch_size, at most 1000
    val_fraction: float = 0.1  # of the training data, stratified; not used where the data has a validation split
    split_seed: int = 0  # of the validation split and the probe; apart from the training seed
    crop_padding: int = 0  # random crops after padding by so many pixels; 0: none
    crop_fill: str = "zero"  # what the padding holds: zero | reflect
    flip: bool = False  # random horizontal flips
    image_size: int | None = None  # resize to a square; default: as they are, or 64 where sizes differ
    in_memory_limit: str = "2 GB"  # larger sets are decoded by DataLoader workers
    num_workers: int | None = None  # of those; default: one less than the cores
    drop_last: bool = True  # leave out an epoch's last, smaller batch


@dataclass
class DigitsConfig(DataConfig):
    """scikit-learn's 1,797 embedded 8×8 digits: no network."""

    name: str = "digits"
    _target_: str = "lr_lightning.training.sources.digits"


@dataclass
class HubConfig(DataConfig):
    """A data set of the Hugging Face hub, or a local copy of one."""

    name: str = "hub"
    _target_: str = "lr_lightning.training.sources.hub"
    path: str = MISSING  # the hub's id, such as uoft-cs/cifar10, or a local folder
    subset: str | None = None  # the data set's configuration, where it has several
    revision: str | None = None  # branch, tag or commit
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label, fine_label or labels
    cache_dir: str | None = None  # default: the library's own


@dataclass
class ParquetConfig(DataConfig):
    """Parquet files; the image and label columns are found by themselves."""

    name: str = "parquet"
    _target_: str = "lr_lightning.training.sources.parquet"
    train: str = MISSING
    val: str | None = None  # default: a part of the training data
    test: str | None = None
    image_column: str | None = None  # default: image or img
    label_column: str | None = None  # default: label


@dataclass
class ImageFolderConfig(DataConfig):
    """One folder a class, or train/ val/ test/ of those."""

    name: str = "image_folder"
    _target_: str = "lr_lightning.training.sources.image_folder"
    root: str = MISSING


# -- model, module, optimizer ----------------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """A network: `_target_(in_channels, num_classes, image_size, **kwargs)`, as far as it names these arguments."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    # what an outside _target_ calls the three, where its signature does not say: {in_channels: in_chans}
    data_arguments: dict[str, str] = field(default_factory=dict)
    inputs: str = "standard"  # how pixels reach it: standard (mean 0, std 1) | unit (0..1) | mean_image (0..255 - mean)
    lr: float = 0.1  # a peak rate that works with SGD and momentum; optimizer=sgd takes it as its default


@dataclass
class ModuleConfig:
    """A LightningModule: `_target_` gets those of net, optimizer, num_classes that it names, and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class ClassifierConfig(ModuleConfig):
    """Cross-entropy and accuracy."""

    name: str = "classifier"
    _target_: str = "lr_lightning.training.classifier.LitClassifier"


@dataclass
class OptimizerConfig:
    """`_target_` is a torch.optim.Optimizer class; its arguments are the choice's own keys and kwargs."""

    name: str = MISSING
    _target_: str = MISSING
    lr: float = MISSING  # the peak rate
    weight_decay: float = 0.0
    decay_bias_and_norm: bool = False  # biases and normalisation layers are not decayed unless asked for
    # a pattern of parameter names -> {lr: factor, weight_decay: factor} on the group's own values
    multipliers: dict[str, dict[str, float]] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with (Nesterov) momentum."""

    name: str = "sgd"
    _target_: str = "torch.optim.SGD"
    lr: float = "${model.lr}"  # type: ignore[assignment]  # an interpolation; the schema checks what it resolves to
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4


@dataclass
class AdamConfig(OptimizerConfig):
    """Kingma & Ba 2014."""

    name: str = "adam"
    _target_: str = "torch.optim.Adam"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8


@dataclass
class AdamWConfig(AdamConfig):
    """Loshchilov & Hutter 2017: Adam with decoupled weight decay."""

    name: str = "adamw"
    _target_: str = "torch.optim.AdamW"
    weight_decay: float = 0.01


@dataclass
class RMSpropConfig(OptimizerConfig):
    """Tieleman & Hinton 2012."""

    name: str = "rmsprop"
    _target_: str = "torch.optim.RMSprop"
    lr: float = 1e-3
    alpha: float = 0.99
    momentum: float = 0.0
    eps: float = 1e-8


@dataclass
class AdagradConfig(OptimizerConfig):
    """Duchi, Hazan & Singer 2011."""

    name: str = "adagrad"
    _target_: str = "torch.optim.Adagrad"
    lr: float = 1e-2
    eps: float = 1e-10


# -- schedule, finder ------------------------------------------------------------------------------------------------


@dataclass
class ScheduleConfig:
    """A shape over the whole run, as a factor on the peak rate; any of them may begin with a warm-up."""

    name: str = MISSING
    _target_: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    warmup: int | str = 0  # a duration: 500, "500 steps", "2 epochs", "5%"
    warmup_shape: str = "linear"
    total_steps: int | None = None  # only where Lightning cannot know it


@dataclass
class ConstantConfig(ScheduleConfig):
    """The peak rate throughout."""

    name: str = "constant"
    _target_: str = "lr_lightning.schedules.Constant"


@dataclass
class CosineConfig(ScheduleConfig):
    """Half a cosine from start to end."""

    name: str = "cosine"
    _target_: str = "lr_lightning.schedules.Cosine"
    warmup: int | str = "5%"
    start: float = 1.0
    end: float = 0.0


@dataclass
class FinderConfig:
    """A search for the rate before training."""

    name: str = "none"
    _target_: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


# -- trainer, callbacks, tracking ------------------------------------------------------------------------------------


@dataclass
class TrainerConfig:
    """Lightning's Trainer, as far as a run here needs it; the rest goes through kwargs."""

    name: str = "auto"
    max_epochs: int = 15
    max_steps: int = -1  # -1: no limit
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool = False
    channels_last: bool = True  # halves the step of a CNN on a CPU
    compile: bool = False
    deterministic: bool = True  # the same seed gives the same weights, bit for bit, on the same machine
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int = 1
    limit_train_batches: int | float = 1.0
    limit_val_batches: int | float = 1.0
    limit_test_batches: int | float = 1.0
    progress: str = "auto"  # auto: a bar on a terminal, a line an epoch elsewhere | bar | lines | none
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckpointConfig:
    """`last` after every validation, `best` by the monitored metric; both in the run's output folder."""

    monitor: str = "val/acc"
    mode: str = "max"
    every_n_steps: int | None = None  # `last` also every so many optimizer steps


@dataclass
class OverfittingConfig:
    """The frozen training probe and its gap to the validation set."""

    every_n_validations: int = 1


@dataclass
class CallbacksConfig:
    """What watches the run; null turns one off."""

    name: str = "default"
    checkpoint: CheckpointConfig | None = field(default_factory=CheckpointConfig)
    overfitting: OverfittingConfig | None = field(default_factory=OverfittingConfig)
    extra: dict[str, Any] = field(default_factory=dict)  # own ones: +callbacks.extra.mine._target_=package.MyCallback


@dataclass
class TrackingConfig:
    """Where the run is recorded."""

    name: str = MISSING  # mlflow | csv | none
    uri: str | None = None  # default: sqlite in mlruns/; or http://..., postgresql://...
    root: str = "${checkout:}/mlruns"  # the default store, and the locks of live runs
    experiment: str = "lr_lightning"
    run_name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


# -- the whole -------------------------------------------------------------------------------------------------------


@dataclass
class Config:
    """One run."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    module: ModuleConfig = field(default_factory=ModuleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    finder: FinderConfig = field(default_factory=FinderConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    test: bool = True  # evaluate the best checkpoint on the test set, once, at the end
    output_root: str = "${checkout:}/outputs"  # every run gets a folder of its own below it
    ckpt: str | None = None  # start from this checkpoint's weights
    resume: str | None = None  # go on with this run: its output folder or its MLflow run id
    trust: list[str] = field(default_factory=list)  # outside _target_s that a resumed run's stored config may name


SCHEMAS: dict[str, dict[str, type]] = {
    "data": {"digits": DigitsConfig, "hub": HubConfig, "parquet": ParquetConfig, "image_folder": ImageFolderConfig},
    "model": {"base": ModelConfig},
    "module": {"classifier": ClassifierConfig, "base": ModuleConfig},
    "optimizer": {
        "sgd": SGDConfig,
        "adam": AdamConfig,
        "adamw": AdamWConfig,
        "rmsprop": RMSpropConfig,
        "adagrad": AdagradConfig,
    },
    "schedule": {"constant": ConstantConfig, "cosine": CosineConfig},
    "finder": {"base": FinderConfig},
    "trainer": {"base": TrainerConfig},
    "callbacks": {"base": CallbacksConfig},
    "tracking": {"base": TrackingConfig},
}
"""The schema of each choice, by group: `/schema/<group>/<choice>@_here_` in conf/<group>/*.yaml."""

GROUP_BASES: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "module": ModuleConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "finder": FinderConfig,
    "trainer": TrainerConfig,
    "callbacks": CallbacksConfig,
    "tracking": TrackingConfig,
}
"""The keys that every choice of a group has; what a choice adds to them are its `_target_`'s arguments."""


def register() -> None:
    """Put the schemas into Hydra's store. Calling it again changes nothing."""
    store = ConfigStore.instance()
    store.store(name="config", node=Config, group="schema")
    for group, choices in SCHEMAS.items():
        for name, node in choices.items():
            store.store(name=name, node=node, group=f"schema/{group}")
