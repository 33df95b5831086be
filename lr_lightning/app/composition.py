"""A checked config from overrides, without Hydra's command line: how a search makes the config of each of its runs."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.checks import validate
from lr_lightning.app.config import Config, register
from lr_lightning.app.error_messages import explain
from lr_lightning.app.schemas.comments import comments_of
from lr_lightning.errors import ConfigError

__all__ = [
    "choices_help",
    "choices_of",
    "compose_config",
    "first_sentence",
    "keys_help",
    "load_config",
    "prepare",
    "wants_tracebacks",
]

_HYDRAS, _OURS = "HYDRA_FULL_ERROR", "LR_LIGHTNING_SET_HYDRA_FULL_ERROR"


def wants_tracebacks() -> bool:
    """Whether the user has set HYDRA_FULL_ERROR."""
    return _HYDRAS in os.environ and _OURS not in os.environ


def prepare(root: Path, purpose: str = "", usage: Callable[[], str] = str) -> None:
    """Make the checkout's config known to Hydra, and the user's own modules importable. Calling it again is harmless.

    Args:
        root: The checkout.
        purpose: One line for `--help`.
        usage: Gives what `--help` ends with.
    """
    if not wants_tracebacks():
        # Hydra prints and exits otherwise; here its errors are translated. The other is for the processes that this one
        # starts, which would take it for the user's wish.
        os.environ |= {_HYDRAS: "1", _OURS: "1"}
    OmegaConf.register_new_resolver("checkout", lambda: str(root), replace=True)
    OmegaConf.register_new_resolver("choices", lambda: choices_help(root), replace=True)
    OmegaConf.register_new_resolver("purpose", lambda: purpose, replace=True)
    OmegaConf.register_new_resolver("usage", lambda: usage(), replace=True)
    register()
    # A user's own module=... lies where they work; the scripts' folder, which Python has put first, would hide one that
    # is called as a script is.
    here = os.getcwd()
    sys.path[:] = [path for path in sys.path if path not in (str(root / "scripts"), here)] + [here]


def compose_config(root: Path, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """The config of a command line, and the choice of each group.

    Args:
        root: The checkout, whose `conf/` is read.
        overrides: As on the command line.

    Raises:
        ConfigError: It cannot be composed.
    """
    outer = GlobalHydra.instance().hydra  # of a caller that is a Hydra app itself
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            cfg = compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        raise ConfigError(explain(e)) from e
    finally:
        GlobalHydra.instance().hydra = outer
    HydraConfig.instance().set_config(cfg)  # the check of the rate's two names looks at what was typed
    choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def load_config(root: Path, overrides: Sequence[str]) -> Config:
    """The config of a command line, all of whose keys and values are good.

    Raises:
        ConfigError: If one is not.
    """
    try:
        return validate(compose_config(root, overrides)[0])
    except OmegaConfBaseException as e:
        raise ConfigError(explain(e)) from e


def choices_of(root: Path) -> dict[str, list[str]]:
    """The config groups of `conf/`, and their choices."""
    folders = sorted(folder for folder in (root / "conf").iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def choices_help(root: Path) -> str:
    """The same as text, a line a choice with what its file says of it first, for `--help`."""
    groups = choices_of(root)
    width = max(len(choice) for choices in groups.values() for choice in choices)
    lines: list[str] = []
    for group, choices in groups.items():
        lines.append(f"{group}=")
        files = {choice: root / "conf" / group / f"{choice}.yaml" for choice in choices}
        lines += [f"  {choice:<{width}}  {first_sentence(file)}".rstrip() for choice, file in files.items()]
    return "\n".join(lines)


def keys_help(group: str, schema: type, *, without: Sequence[str] = ()) -> str:
    """A group's keys with their comments, a line each, for `--help`; a key without one is not listed.

    Args:
        group: The group.
        schema: Its schema; keys it inherits are not listed.
        without: Keys to leave out.
    """
    found = {key: text for key, text in comments_of(schema).items() if text and key not in without}
    width = max(map(len, found))
    return "\n".join(f"  {group}.{name:<{width}}  {text}" for name, text in found.items())


def first_sentence(choice: Path) -> str:
    """The first sentence of a choice's first comment; empty where it has none."""
    comments = (line for line in choice.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    first = next((line[2:] for line in comments if not line.startswith("# @")), "")
    return re.split(r"(?<=[a-z\d)])\. ", first)[0].rstrip(".:")
