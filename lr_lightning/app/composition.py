"""From overrides to a checked config: refuses bad and unknown keys, guesses what was meant, and has the help texts."""

import ast
import difflib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lr_lightning._commands import override, shell_quote
from lr_lightning.app.config import PLACES_OF_DATA, SCHEMAS, Config, register, takes_text
from lr_lightning.app.error_messages import explain, no_such_key
from lr_lightning.app.schemas import Problem
from lr_lightning.app.schemas.schedule import CyclicalConfig
from lr_lightning.errors import ConfigError, StoreUnavailable, TrackingError

_HYDRAS, _OURS = "HYDRA_FULL_ERROR", "LR_LIGHTNING_SET_HYDRA_FULL_ERROR"
_MOST_PROBLEMS = 5
URI_VARIABLE, _RUN_CONTEXT = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_CONTEXT"
_HOME = re.compile(r"~[\w.-]*(/|$)")
_OTHER_NAMES = {
    "optimizer.lr": "lr learning_rate base_learning_rate peak_lr init_lr initial_lr eta0",
    "optimizer.weight_decay": "wd decay l2",
    "optimizer.momentum": "mom",
    "optimizer": "optim opt",
    "trainer.max_epochs": "epoch epochs num_epochs n_epochs num_train_epochs",
    "trainer.max_steps": "steps num_steps n_steps iters iterations updates",
    "trainer.devices": "gpus num_gpus n_gpus ngpus num_devices",
    "trainer.accelerator": "device cuda",
    "trainer.precision": "amp fp16 bf16 dtype",
    "trainer.gradient_clip_val": "clip clip_grad grad_clip gradient_clip clip_norm max_grad_norm",
    "trainer.accumulate_grad_batches": "accumulate accum grad_accum accumulation_steps gradient_accumulation_steps",
    "data.batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size",
    "data.num_workers": "workers nworkers n_workers",
    "data.val_fraction": "val_split validation_split valid_pct val_size",
    "data.image_size": "img_size imgsz resolution size",
    "data.crop_padding": "crop random_crop padding",
    "data.flip": "hflip horizontal_flip",
    "data.root": "data_dir data_path data_root dir folder path",
    "data": "dataset datasets",
    "model": "net network arch architecture",
    "module.label_smoothing": "smoothing ls",
    "data.trivial_augment": "trivialaugment randaugment rand_augment autoaugment auto_augment augment ra policy",
    "data.random_erasing": "erasing reprob random_erase",
    "data.mixup": "mixup_alpha",
    "data.cutmix": "cutmix_alpha",
    "callbacks.confusion_matrix": "confusion confmat",
    "callbacks.class_accuracy": "per_class per_class_accuracy",
    "callbacks.mistakes": "worst_mistakes",
    "callbacks.ema": "ema_decay model_ema weight_averaging swa",
    "schedule": "sched scheduler lr_scheduler lr_schedule",
    "schedule.warmup": "warm_up warmup_steps warmup_epochs num_warmup_steps warmup_ratio",
    "callbacks.early_stopping.patience": "patience",
    "tracking": "logger log",
    "tracking.experiment": "experiment_name project",
    "tracking.run_name": "run_name name",
    "output_root": "out output output_dir outdir save_dir",
    "seed": "random_seed random_state manual_seed seeds",
    "ckpt": "checkpoint weights pretrained load",
    "resume": "resume_from resume_from_checkpoint ckpt_path",
}
_FULL_KEYS = {other: key for key, others in _OTHER_NAMES.items() for other in others.split()}
"""Names that other programs use, each with the key that is meant here."""
_HYDRA_OPTIONS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info"),
    *("-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i"),
)


def wants_tracebacks() -> bool:
    """Tell whether the user has set HYDRA_FULL_ERROR."""
    return _HYDRAS in os.environ and _OURS not in os.environ


def prepare(checkout: Path) -> None:
    """Register the checkout's config with Hydra, and make the user's modules importable. It can be repeated."""
    if not wants_tracebacks():
        # Without the first variable Hydra would print its errors and exit; here they are translated. The second one
        # tells child processes that the first was not set by the user.
        os.environ |= {_HYDRAS: "1", _OURS: "1"}
    OmegaConf.register_new_resolver("checkout", lambda: str(checkout), replace=True)
    register()
    # A user's module=... lies in the working directory. Python has put the scripts' folder first, where a script of the
    # same name would hide it.
    here = os.getcwd()
    sys.path[:] = [path for path in sys.path if path not in (str(checkout / "scripts"), here)] + [here]


def compose_config(checkout: Path, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose a config from the checkout's `conf/` and a command line's overrides, without Hydra's command line.

    Returns:
        The config, not yet checked, and the choice of each group.

    Raises:
        ConfigError: The overrides cannot be composed.
    """
    try:
        cfg = _composed(checkout, overrides)
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        raise ConfigError(explain_overrides(checkout, overrides, e)) from e
    HydraConfig.instance().set_config(cfg)  # a check looks for optimizer.lr among the overrides
    choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def _composed(checkout: Path, overrides: Sequence[str]) -> DictConfig:
    outer = GlobalHydra.instance().hydra  # of a caller that is a Hydra app itself
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(checkout / "conf"), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer


def load_config(checkout: Path, overrides: Sequence[str]) -> Config:
    """Compose and check a config without Hydra's command line; a ConfigError tells what is bad."""
    try:
        return validate(compose_config(checkout, overrides)[0])
    except OmegaConfBaseException as e:
        raise ConfigError(explain(e)) from e


def readable(words: Sequence[str]) -> list[str]:
    """Quote the text values of a command line that Hydra's grammar cannot read or would change, and expand ``~``."""
    several = any(word in ("-m", "--multirun") for word in words)
    read = [word if word.startswith("-") else _readable(word, several=several) for word in words]
    places = tuple(f"data.{key}=" for key in PLACES_OF_DATA)  # the default data may lack the key that the run's has
    if any(word.startswith("fork=") for word in read):
        places += ("schedule.",)
    elif not any(word.startswith("resume=") for word in read):
        return read
    return [f"++{word}" if word.startswith(places) else word for word in read]


def _readable(word: str, *, several: bool) -> str:
    key, equals, value = word.partition("=")
    if not equals or not takes_text(key.lstrip("+")):
        return word
    if "${" in value and Path(value).expanduser().exists():  # what is stored or passed on would be read once more
        why = "in a value ${...} stands for another key. Give a link to it without these characters: ln -s"
        raise ConfigError(f"{key}: '{value}' exists, but {why} {shell_quote(value)} LINK")
    if _HOME.match(value):
        try:
            word = f"{key}={(value := str(Path(value).expanduser()))}"
        except RuntimeError as e:
            why = "HOME, which is not set" if value.startswith("~/") or value == "~" else "a user of that name"
            raise ConfigError(f"{key}: {value} needs {why}. Give the whole path.") from e
    try:
        given = OverridesParser.create().parse_override(word)
    except HydraException:
        if several and key == "fork":  # RUN@step=500,RUN@step=600
            return f"{key}={','.join(override('', each)[1:] for each in value.split(','))}"
        return override(key, value)
    read = given.value()
    if given.value_type == ValueType.SIMPLE_CHOICE_SWEEP:  # a path with a comma, or several values
        is_path = "/" in value and (not several or Path(value).exists())
        return override(key, value) if is_path else word
    is_plain = isinstance(read, str | int | float) and not re.match(r"""['"]|\w+\(""", value) and "\\" not in value
    return override(key, value) if is_plain and read != value else word


def refuse_options(checkout: Path, words: Sequence[str]) -> None:
    """Refuse options that Hydra does not have, such as ``--lr 0.1``, with the key to type."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        is_hydras = any(option.startswith(name) for option in _HYDRA_OPTIONS) and len(name) > 1
        if not name.startswith("-") or is_hydras or re.match(r"-[\d.]", name):
            continue
        if not equals and following and "=" not in following and not following.startswith("-"):
            value = following
        meant = _remedy(_composed(checkout, []), f"{name.strip('-').replace('-', '_')}={value or 'VALUE'}")
        raise ConfigError(f"{name}: there is no such option. {meant or 'A key is set with key=value; see `--help`.'}")


def explain_overrides(checkout: Path, words: Sequence[str], error: Exception) -> str:
    """Return the message for a command line that Hydra cannot compose: for keys that do not exist, the ones to type."""
    groups = choices_of(checkout)
    overrides = [word for word in words if not word.startswith(("-", "~"))]
    chosen = [word.split(",")[0] for word in overrides if word.lstrip("+").partition("=")[0] in groups]
    try:
        cfg = _composed(checkout, chosen)
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError):
        return explain(error)
    problems = []
    for word in overrides:
        key = word.lstrip("+").partition("=")[0]
        if key not in groups and "@" not in key and not _has(cfg, key) and (remedy := _remedy(cfg, word.lstrip("+"))):
            problems.append(str(Problem(key, no_such_key(remedy))))
    return "\n".join(problems[:_MOST_PROBLEMS]) or explain(error)


def _has(cfg: DictConfig, key: str) -> bool:
    """Tell whether a composed config has a key; also if a group above it is off (null)."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none():
            return True
        if part not in list(node):  # without list, a value that is still missing is not found
            return False
        node = node._get_node(part)
    return True


def _remedy(cfg: DictConfig, word: str) -> str:
    """Return what to type for an override whose key does not exist; empty if nothing is like it."""
    key, _, value = word.partition("=")
    group, _, name = key.rpartition(".")
    keys = [full for full in _keys(cfg) if full != key]  # +key=value has put it there
    if meant := _meant(key.lower(), keys):
        return f"Type {' or '.join(shell_quote(f'{full}={value}') for full in meant)}"
    for owner, schemas in SCHEMAS.items():
        having = [choice for choice, schema in schemas.items() if name in {f.name for f in fields(schema)}]
        if having and group in ("", owner) and OmegaConf.select(cfg, owner) is not None:
            others = f" (or {owner}={','.join(having[1:])})" if having[1:] else ""
            typed = f"{owner}={having[0]} {shell_quote(f'{owner}.{name}={value}')}"
            return f"{owner}={cfg[owner].name} has none. Type {typed}{others}"
    if close := _alike(key.lower(), keys):
        return f"Type {shell_quote(f'{close}={value}')}"
    return ""


def _meant(key: str, keys: Sequence[str]) -> list[str]:
    """Return the existing keys that an unknown key may mean: those with its last part, or with it as an alias."""
    group, _, name = key.rpartition(".")
    if (full := _FULL_KEYS.get(name, "")) in keys:
        return [full]
    same = [full for full in keys if full.rpartition(".")[2] == name]
    return [full for full in same if full.split(".")[0] == group.split(".")[0]] or same[:2]


def _alike(key: str, keys: Sequence[str]) -> str | None:
    """Return the existing key whose spelling is closest to a dotted key; keys of the same group come first."""
    group, _, name = key.rpartition(".")
    beside = [full for full in keys if full.rpartition(".")[0] == group]
    below = [full for full in keys if full.startswith(f"{group.split('.')[0]}.")]
    for among, cutoff in ((beside, 0.6), (below, 0.6), (keys, 0.75)):
        names = {full.rpartition(".")[2]: full for full in reversed(among)}
        names |= {other: full for other, full in _FULL_KEYS.items() if full in among}
        if close := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return names[close[0]]
    return None


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a composed config that a run may be given, with the groups themselves."""
    for key in map(str, node):
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing()):
                yield from _keys(child, f"{prefix}{key}.")


def validate(cfg: DictConfig) -> Config:
    """Check the composed config, and return it as plain dataclasses, with ``optimizer.lr`` as the peak learning rate.

    Raises:
        ConfigError: A key or a value is bad. The first few problems are shown, a line each: key, value and remedy.
    """
    _raise_for(_bad_keys(cfg, cfg))
    try:
        config = cast(Config, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as e:
        raise ConfigError(explain(e, getattr(e, "full_key", None))) from e
    _raise_for(config.problems())
    take_peak_from_schedule(config)
    if config.tracking.name == "mlflow":
        take_places_from_environment(config, root_given=not OmegaConf.is_interpolation(cfg.tracking, "root"))
    return config


def _can_be_written(folder: Path) -> bool:
    """Check whether this user may write to a folder, or make it."""
    return os.access(next(path for path in (folder, *folder.parents) if os.path.exists(path)), os.W_OK)


def take_peak_from_schedule(config: Config) -> None:
    """Set ``optimizer.lr`` to ``schedule.max_lr``, its other name in a cyclical schedule, if that is given."""
    if isinstance(config.schedule, CyclicalConfig) and config.schedule.max_lr is not None:
        config.optimizer.lr = float(config.schedule.max_lr)


def take_places_from_environment(config: Config, *, root_given: bool) -> None:
    """Take store, experiment and tags from MLflow's variables where the config, or a given root, names none."""
    node, key = config.tracking, "tracking.uri"
    if node.uri is None and not root_given and (uri := os.environ.get(URI_VARIABLE)):
        node.uri, key = uri, URI_VARIABLE
    if node.uri and not root_given and not _can_be_written(Path(node.root)):
        # It only holds locks, and the artifacts of a database, and the checkout may be another user's.
        node.root = str(Path(config.output_root, "mlruns"))
    if not {_RUN_CONTEXT, URI_VARIABLE, "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
        return
    from lr_lightning.tracking import open_store
    from lr_lightning.tracking.query import EXPERIMENT_ID, EXPERIMENT_NAME, experiment_of_environment

    try:
        store = open_store(node.root, node.uri)
        node.experiment = node.experiment or experiment_of_environment(store)
    except TrackingError as e:
        raise ConfigError(str(e).replace("tracking.uri", key, 1)) from e
    except StoreUnavailable as e:
        raise ConfigError(f"{EXPERIMENT_ID}: {e}. Try again when the server answers, or give {EXPERIMENT_NAME}.") from e
    if context := os.environ.get(_RUN_CONTEXT):
        try:
            node.tags = {**{str(name): str(value) for name, value in json.loads(context).items()}, **node.tags}
        except (ValueError, AttributeError):
            raise ConfigError(f"{_RUN_CONTEXT}: {context!r} is no JSON object of tags. Correct or unset it.") from None


def _raise_for(problems: Iterator[Problem]) -> None:
    if lines := list(map(str, problems)):
        raise ConfigError("\n".join(lines[:_MOST_PROBLEMS]))


def _bad_keys(cfg: DictConfig, node: DictConfig, prefix: str = "") -> Iterator[Problem]:
    """Find keys that the schema lacks (``+sede=3`` passes Hydra), and keys of the schema that are gone (``~seed``)."""
    schema = OmegaConf.get_type(node)
    known = [f.name for f in fields(schema)] if is_dataclass(schema) else None
    for key in map(str, node):
        name = f"{prefix}{key}"
        if known is not None and key not in known:
            yield Problem(name, no_such_key(_remedy(cfg, f"{name}={node._get_node(key)}")))
        elif not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            child = node[key]
            if isinstance(child, DictConfig) and not child._is_none():
                yield from _bad_keys(cfg, child, f"{name}.")
    present = set(map(str, node))
    for key in known or ():
        if key not in present:
            yield Problem(f"{prefix}{key}", f"was deleted, but is needed; leave ~{prefix}{key} out.")
    if not prefix:
        yield from (Problem(key, f"needs a value; give {key}=...") for key in sorted(OmegaConf.missing_keys(node)))


def choices_of(checkout: Path) -> dict[str, list[str]]:
    """Return the choices of each config group in `conf/`."""
    folders = sorted(folder for folder in (checkout / "conf").iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def choices_help(checkout: Path) -> str:
    """Return the part of `--help` that lists the choices of each group, a line and a sentence for each."""
    groups = choices_of(checkout)
    width = max(len(choice) for choices in groups.values() for choice in choices)
    lines: list[str] = []
    for group, choices in groups.items():
        texts = {choice: first_sentence(checkout / "conf" / group / f"{choice}.yaml") for choice in choices}
        lines += [f"{group}=", *(f"  {choice:<{width}}  {text}".rstrip() for choice, text in texts.items())]
    return "\n".join(lines)


def keys_help(group: str, schema: type, *, without: Sequence[str] = ()) -> str:
    """Return a part of `--help` that lists the keys that a schema adds and comments, a line and a comment for each."""
    found = {key: text for key, text in comments_of(schema).items() if text and key not in without}
    width = max(map(len, found))
    return "\n".join(f"  {group}.{name:<{width}}  {text}" for name, text in found.items())


def first_sentence(choice: Path) -> str:
    """Return the first sentence of a choice's first comment; empty without a comment."""
    comments = (line for line in choice.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    first = next((line[2:] for line in comments if not line.startswith("# @")), "")
    return re.split(r"(?<=[a-z\d)])\. ", first)[0].rstrip(".:")


def comments_of(schema: type) -> dict[str, str]:
    """Return the comment of each key that a schema adds, from its source; empty for a key without a comment."""
    source = inspect.getsource(schema)
    (tree,) = ast.parse(source).body
    nodes = [node for node in getattr(tree, "body", []) if isinstance(node, ast.AnnAssign)]
    lines = source.splitlines()
    return {node.target.id: _comment_of(lines, node) for node in nodes if isinstance(node.target, ast.Name)}


def _comment_of(lines: list[str], node: ast.AnnAssign) -> str:
    """Return the comment on the field's last line, or else the lines of comment right above it."""
    beside = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset or 0 :].partition("#")[2].strip()
    if beside:
        return beside
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)
