"""Param groups and the optimizer built from them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

Multipliers = Mapping[str, Mapping[str, float]]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_KEYS = ("lr", "weight_decay")
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class OptimizerFactory:
    """A recipe for an optimizer: call it with a module and it builds one over that module's parameters.

    Args:
        optimizer: Class or function called as `optimizer(groups, lr=..., weight_decay=..., **kwargs)`; torch's SGD,
            Adam, AdamW, RMSprop and Adagrad are.
        lr: Learning rate of a group without a multiplier, > 0.
        weight_decay: Weight decay of a group that is decayed, without a multiplier, >= 0.
        kwargs: Further arguments for `optimizer`, such as `{"momentum": 0.9}`.
        decay_bias_and_norm: Whether biases and norm parameters are decayed too.
        multipliers: See `param_groups`.

    Raises:
        ValueError: If `lr` or `weight_decay` is out of range.

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
        """Build the optimizer; see `make_optimizer`."""
        return make_optimizer(
            module,
            self.optimizer,
            self.lr,
            self.weight_decay,
            decay_bias_and_norm=self.decay_bias_and_norm,
            multipliers=self.multipliers,
            **self.kwargs,
        )


def make_optimizer(
    module: nn.Module,
    factory: Callable[..., Optimizer],
    lr: float,
    weight_decay: float = 0.0,
    *,
    decay_bias_and_norm: bool = False,
    multipliers: Multipliers | None = None,
    **kwargs: Any,
) -> Optimizer:
    """Build an optimizer over the groups of `param_groups`.

    Args:
        module: Where the parameters come from.
        factory: Called as `factory(groups, lr=lr, weight_decay=weight_decay, **kwargs)`.
        lr: See `param_groups`.
        weight_decay: See `param_groups`.
        decay_bias_and_norm: See `param_groups`.
        multipliers: See `param_groups`.
        **kwargs: Passed to `factory`.

    Returns:
        The optimizer; each of its groups carries its own `lr`, `weight_decay` and `name`.

    Raises:
        ValueError: As `param_groups`, and whatever `factory` refuses.
    """
    groups = param_groups(module, lr, weight_decay, decay_bias_and_norm=decay_bias_and_norm, multipliers=multipliers)
    return factory(groups, lr=lr, weight_decay=weight_decay, **kwargs)


def param_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decay_bias_and_norm: bool = False,
    multipliers: Multipliers | None = None,
) -> list[dict[str, Any]]:
    """Sort a module's trainable parameters into as few groups as their values of lr and weight decay allow.

    Norm parameters, biases and all other parameters of at most one dimension are not decayed unless
    `decay_bias_and_norm` is set. The groups, and the parameters within each, keep the order of `named_parameters()`.

    Args:
        module: Where the parameters come from. Those without `requires_grad` are left out; a shared one counts once.
        lr: Learning rate before multipliers, > 0.
        weight_decay: Weight decay before multipliers, >= 0.
        decay_bias_and_norm: Whether biases and norm parameters are decayed too.
        multipliers: Regular expression -> factors on "lr" and "weight_decay", each >= 0. An expression applies to
            each parameter in whose name it is found (`re.search`: anchor it with ^ and $ if need be). Where several
            apply their factors multiply, so their order does not matter. A factor on the weight decay of a parameter
            that is not decayed changes nothing.

    Returns:
        Dicts with the keys "params", "name", "lr" and "weight_decay". The name is "decay" or "no_decay" and then the
        factors that are not 1, as in "decay lr*2"; no two groups have the same.

    Raises:
        ValueError: If a number is out of range, an expression is invalid or found in no trainable parameter's name, or
            the module has no trainable parameter.

    Example:
        >>> groups = param_groups(nn.Linear(2, 2), 0.1, 1e-4, multipliers={"bias": {"lr": 2.0}})
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('decay', 0.1, 0.0001), ('no_decay lr*2', 0.2, 0.0)]
    """
    _check_numbers(lr, weight_decay)
    named = [(name, param) for name, param in module.named_parameters() if param.requires_grad]
    if not named:
        raise ValueError(f"{type(module).__name__} has no trainable parameter to optimize")
    patterns = _compile(multipliers or {}, [name for name, _ in named])
    undecayed = set() if decay_bias_and_norm else {id(param) for param in _undecayed(module)}
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
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be finite and > 0, got {lr}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay must be finite and >= 0, got {weight_decay}")


def _compile(multipliers: Multipliers, names: list[str]) -> list[tuple[re.Pattern[str], Mapping[str, float]]]:
    """Check the multipliers against the names of the trainable parameters."""
    compiled = []
    for pattern, factors in multipliers.items():
        for key, factor in factors.items():
            if key not in _KEYS:
                raise ValueError(f"multipliers[{pattern!r}] has the unknown key {key!r}. Known: {', '.join(_KEYS)}")
            if not (math.isfinite(factor) and factor >= 0):
                raise ValueError(f"multipliers[{pattern!r}][{key!r}] must be finite and >= 0, got {factor}")
        try:
            regex = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"multipliers[{pattern!r}] is no valid regular expression: {error}") from error
        if not any(regex.search(name) for name in names):
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            shown = ", ".join(names[:_NAMES_SHOWN])
            raise ValueError(f"multipliers[{pattern!r}] matches no trainable parameter. There are: {shown}{more}")
        compiled.append((regex, factors))
    return compiled


def _undecayed(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that are not decayed by default; a shared one may come twice."""
    for owner in module.modules():
        for param in owner.parameters(recurse=False):
            if param.ndim <= 1 or isinstance(owner, _NORMS):
                yield param


def _factors(name: str, patterns: list[tuple[re.Pattern[str], Mapping[str, float]]]) -> tuple[float, float]:
    """Return the factors on the lr and on the weight decay of one parameter."""
    matching = [factors for regex, factors in patterns if regex.search(name)]
    # prod of an empty list is the integer 1, which would make lr an integer's multiple for some and not for others.
    lr, weight_decay = (float(math.prod(factors.get(key, 1.0) for factors in matching)) for key in _KEYS)
    return lr, weight_decay


def _label(lr_factor: float, decay_factor: float) -> str:
    parts = ["decay" if decay_factor > 0 else "no_decay"]
    if lr_factor != 1:
        parts.append(f"lr*{lr_factor:.12g}")
    if decay_factor not in (0, 1):
        parts.append(f"weight_decay*{decay_factor:.12g}")
    return " ".join(parts)
