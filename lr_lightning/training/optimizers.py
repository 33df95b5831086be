"""Param groups with their own lr and weight decay, and the optimizer over them; the schemas list the optimizers."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from lr_lightning._checks import check_number
from lr_lightning.errors import ArgumentError

Multipliers = Mapping[str, Mapping[str, float]]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_KEYS = ("lr", "weight_decay")
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class OptimizerFactory:
    """A recipe for an optimizer: call it with a module to build one over that module's parameters.

    Each param group has its own `lr`, `weight_decay` and `name`; see `param_groups`, also for `multipliers`.

    Args:
        optimizer: Class or function called as `optimizer(groups, lr=..., weight_decay=..., **kwargs)`.
        lr: Learning rate of a group without a multiplier, > 0.
        weight_decay: Weight decay of a decayed group without a multiplier, >= 0.
        kwargs: Further arguments for `optimizer`, such as `{"momentum": 0.9}`.
        decay_bias_and_norm: Whether biases and norm parameters are decayed too.
        multipliers: Factors on both numbers, by regular expression.

    Raises:
        ArgumentError: `lr` or `weight_decay` is out of range.

    Example:
        >>> import torch
        >>> factory = OptimizerFactory(torch.optim.SGD, lr=0.1, weight_decay=5e-4, kwargs={"momentum": 0.9})
        >>> [group["name"] for group in factory(torch.nn.Linear(2, 2)).param_groups]
        ['decay', 'no_decay']
    """

    optimizer: Callable[..., Optimizer]
    lr: float
    weight_decay: float = 0.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    decay_bias_and_norm: bool = False
    multipliers: Multipliers | None = None

    def __post_init__(self) -> None:
        """Check the numbers at once rather than when training starts."""
        _check_numbers(self.lr, self.weight_decay)

    def __call__(self, module: nn.Module) -> Optimizer:
        """Build the optimizer."""
        decay_all, multipliers = self.decay_bias_and_norm, self.multipliers
        groups = param_groups(
            module, self.lr, self.weight_decay, decay_bias_and_norm=decay_all, multipliers=multipliers
        )
        return self.optimizer(groups, lr=self.lr, weight_decay=self.weight_decay, **self.kwargs)


def param_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decay_bias_and_norm: bool = False,
    multipliers: Multipliers | None = None,
) -> list[dict[str, Any]]:
    """Sort a module's trainable parameters into one group for each pair of learning rate and weight decay.

    Norm parameters, biases and all other parameters of at most one dimension are not decayed unless
    `decay_bias_and_norm` is set. The groups, and the parameters within each, keep the order of `named_parameters()`. A
    shared parameter counts once. A group's name is "decay" or "no_decay", followed by the factors other than 1, as in
    "decay lr*2"; names are unique.

    `multipliers` map a regular expression to factors on "lr" and "weight_decay", each >= 0. An expression applies to
    each parameter in whose name `re.search` finds it; anchor it with ^ and $ if necessary. The factors of several
    matching expressions multiply. A factor on the weight decay of a parameter that is not decayed changes nothing.

    Raises:
        ArgumentError: A number is out of range, an expression is invalid or matches no trainable parameter, or the
            module has no trainable parameter.

    Example:
        >>> groups = param_groups(nn.Linear(2, 2), 0.1, 1e-4, multipliers={"bias": {"lr": 2.0}})
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('decay', 0.1, 0.0001), ('no_decay lr*2', 0.2, 0.0)]
    """
    _check_numbers(lr, weight_decay)
    named = [(name, param) for name, param in module.named_parameters() if param.requires_grad]
    if not named:
        raise ArgumentError(f"{type(module).__name__} has no trainable parameter to optimize")
    patterns = _compile(multipliers or {}, [name for name, _ in named])
    undecayed = (
        set()
        if decay_bias_and_norm
        else {
            id(param)
            for owner in module.modules()
            for param in owner.parameters(recurse=False)
            if param.ndim <= 1 or isinstance(owner, _NORMS)
        }
    )
    groups: dict[str, dict[str, Any]] = {}
    for name, param in named:
        lr_factor, decay_factor = _factors(name, patterns)
        if weight_decay == 0 or id(param) in undecayed:
            decay_factor = 0.0
        label = _label(lr_factor, decay_factor)
        values = {"name": label, "lr": lr * lr_factor, "weight_decay": weight_decay * decay_factor}
        groups.setdefault(label, {"params": [], **values})["params"].append(param)
    return list(groups.values())


def _check_numbers(lr: float, weight_decay: float) -> None:
    check_number("lr", lr, above=True)
    check_number("weight_decay", weight_decay)


def _compile(multipliers: Multipliers, names: list[str]) -> list[tuple[re.Pattern[str], Mapping[str, float]]]:
    """Check the multipliers against the names of the trainable parameters."""
    compiled = []
    for pattern, factors in multipliers.items():
        key_path = f"multipliers[{pattern!r}]"
        for key, factor in factors.items():
            if key not in _KEYS:
                raise ArgumentError(f"has the unknown key {key!r}. Known: {', '.join(_KEYS)}", key_path)
            check_number(f"{key_path}[{key!r}]", factor)
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise ArgumentError(f"is not a valid regular expression: {error}", key_path) from error
        if not any(regex.search(name) for name in names):
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            raise ArgumentError(f"matches no trainable parameter. There are: {shown}{more}", key_path)
        compiled.append((regex, factors))
    return compiled


def _factors(name: str, patterns: list[tuple[re.Pattern[str], Mapping[str, float]]]) -> tuple[float, float]:
    """Return the factors on the learning rate and on the weight decay of one parameter."""
    matching = [factors for regex, factors in patterns if regex.search(name)]
    # The product of an empty list is the integer 1, which would make some learning rates integers.
    lr, weight_decay = (float(math.prod(factors.get(key, 1.0) for factors in matching)) for key in _KEYS)
    return lr, weight_decay


def _label(lr_factor: float, decay_factor: float) -> str:
    parts = ["decay" if decay_factor > 0 else "no_decay"]
    if lr_factor != 1:
        parts.append(f"lr*{lr_factor:.12g}")
    if decay_factor not in (0, 1):
        parts.append(f"weight_decay*{decay_factor:.12g}")
    return " ".join(parts)
