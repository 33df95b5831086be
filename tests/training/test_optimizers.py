"""Param groups: who is decayed, who is multiplied, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from lr_lightning.training.models import smith_cnn
from lr_lightning.training.optimizers import OptimizerFactory, param_groups


class Mixed(nn.Module):
    """Parameters of every kind: weights, biases, norms (one of two dimensions), a scalar, a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.ln = nn.LayerNorm([2, 2])
        self.temperature = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.head = nn.Linear(2, 2)


def table(module: nn.Module, **kwargs: Any) -> dict[str, tuple[float, float, list[str]]]:
    """Group name -> (lr, weight decay, names of its parameters)."""
    names = {id(param): name for name, param in module.named_parameters()}
    groups = param_groups(module, kwargs.pop("lr", 0.1), kwargs.pop("weight_decay", 0.01), **kwargs)
    return {
        group["name"]: (
            pytest.approx(group["lr"]),
            pytest.approx(group["weight_decay"]),
            [names[id(param)] for param in group["params"]],
        )
        for group in groups
    }


NORMS_AND_BIASES = ["temperature", "conv.bias", "bn.weight", "bn.bias", "ln.weight", "ln.bias", "head.bias"]
WEIGHTS = ["conv.weight", "head.weight"]
ALL = ["temperature", "conv.weight", *NORMS_AND_BIASES[1:6], "head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({}, {"no_decay": (0.1, 0.0, NORMS_AND_BIASES), "decay": (0.1, 0.01, WEIGHTS)}, id="plain"),
        pytest.param({"decay_bias_and_norm": True}, {"decay": (0.1, 0.01, ALL)}, id="decay all"),
        pytest.param({"weight_decay": 0.0}, {"no_decay": (0.1, 0.0, ALL)}, id="no decay: one group"),
        pytest.param(
            {"multipliers": {r"^head\.": {"lr": 2.0, "weight_decay": 250.0}}},
            {
                "no_decay": (0.1, 0.0, NORMS_AND_BIASES[:-1]),
                "decay": (0.1, 0.01, ["conv.weight"]),
                "decay lr*2 weight_decay*250": (0.2, 2.5, ["head.weight"]),
                "no_decay lr*2": (0.2, 0.0, ["head.bias"]),
            },
            id="one pattern",
        ),
        pytest.param(
            {"multipliers": {"head": {"lr": 2.0}, "weight$": {"lr": 3.0, "weight_decay": 0.5}}},
            {
                "no_decay": (0.1, 0.0, ["temperature", "conv.bias", "bn.bias", "ln.bias"]),
                "decay lr*3 weight_decay*0.5": (0.3, 0.005, ["conv.weight"]),
                "no_decay lr*3": (0.3, 0.0, ["bn.weight", "ln.weight"]),
                "decay lr*6 weight_decay*0.5": (0.6, 0.005, ["head.weight"]),
                "no_decay lr*2": (0.2, 0.0, ["head.bias"]),
            },
            id="patterns that meet multiply",
        ),
        pytest.param(
            {"multipliers": {"weight": {"weight_decay": 0.0}}}, {"no_decay": (0.1, 0.0, ALL)}, id="undecayed by factor"
        ),
        pytest.param(
            {"multipliers": {"conv": {"lr": 2.0}, "conv.weight": {"lr": 0.5}, "conv.bias": {"lr": 0.5}}},
            {"no_decay": (0.1, 0.0, NORMS_AND_BIASES), "decay": (0.1, 0.01, WEIGHTS)},
            id="factors that cancel make no group",
        ),
    ],
)
def test_groups(kwargs: dict[str, Any], expected: dict[str, tuple[float, float, list[str]]]) -> None:
    groups = table(Mixed(), **kwargs)
    assert list(groups) == list(expected)
    assert groups == expected


def test_order_of_patterns_does_not_matter() -> None:
    first, second = {"head": {"lr": 2.0}}, {"weight": {"lr": 3.0, "weight_decay": 7.0}}
    module = Mixed()
    assert table(module, multipliers=first | second) == table(module, multipliers=second | first)


def test_caffes_recipe_for_smith_cnn() -> None:
    multipliers = {
        r"^conv[12]\.bias$": {"lr": 2.0},
        r"^fc\.weight$": {"weight_decay": 250.0},
        r"^fc\.bias$": {"lr": 2.0, "weight_decay": 0.0},
    }
    groups = table(
        smith_cnn(3, 10, (32, 32)), lr=0.001, weight_decay=0.004, decay_bias_and_norm=True, multipliers=multipliers
    )
    assert groups == {
        "decay": (0.001, 0.004, ["conv1.weight", "conv2.weight", "conv3.weight", "conv3.bias"]),
        "decay lr*2": (0.002, 0.004, ["conv1.bias", "conv2.bias"]),
        "decay weight_decay*250": (0.001, 1.0, ["fc.weight"]),
        "no_decay lr*2": (0.002, 0.0, ["fc.bias"]),
    }


def test_a_shared_parameter_is_in_one_group_and_undecayed_if_any_owner_is_a_norm() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm([2, 2], bias=False))
    module[1].weight = module[0].weight
    assert table(module) == {"no_decay": (0.1, 0.0, ["0.weight"])}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"lr": float("nan")}, "lr must be > 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
        ({"weight_decay": float("inf")}, "weight_decay must be >= 0, got inf"),
        (
            {"multipliers": {"frozen": {"lr": 2.0}}},
            r"multipliers\['frozen'\] matches no trainable parameter. There are: temperature, conv.weight, .*, \.\.\.",
        ),
        ({"multipliers": {"(": {"lr": 2.0}}}, r"multipliers\['\('\] is not a valid regular expression"),
        (
            {"multipliers": {"head": {"momentum": 2.0}}},
            r"multipliers\['head'\] has the unknown key 'momentum'. Known: lr, weight_decay",
        ),
        ({"multipliers": {"head": {"lr": -1.0}}}, r"multipliers\['head'\]\['lr'\] must be >= 0, got -1.0"),
    ],
)
def test_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(Mixed(), **kwargs)


def test_refuses_a_module_without_trainable_parameters() -> None:
    with pytest.raises(ValueError, match="Linear has no trainable parameter to optimize"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1, 0.0)


@pytest.mark.parametrize(
    ("optimizer", "kwargs"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.Adam, {"betas": (0.8, 0.99)}),
        (torch.optim.AdamW, {}),
        (torch.optim.RMSprop, {"alpha": 0.9}),
        (torch.optim.Adagrad, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_optimizer_takes_the_groups_and_steps(
    optimizer: type[torch.optim.Optimizer], kwargs: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module = Mixed()
    before = {name: param.clone() for name, param in module.named_parameters()}
    built = OptimizerFactory(optimizer, 0.1, 0.01, kwargs, multipliers={"head": {"lr": 2.0}})(module)
    assert type(built) is optimizer
    assert built.defaults["lr"] == 0.1
    assert built.defaults["weight_decay"] == 0.01
    for key, value in kwargs.items():
        assert all(group[key] == value for group in built.param_groups)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in built.param_groups} == {
        "no_decay": (0.1, 0.0),
        "decay": (0.1, 0.01),
        "decay lr*2": (0.2, 0.01),
        "no_decay lr*2": (0.2, 0.0),
    }
    sum(param.square().sum() + param.sum() for param in module.parameters()).backward()
    built.step()
    moved = {name for name, param in module.named_parameters() if not torch.equal(param, before[name])}
    assert moved == set(ALL)


def test_the_factory_passes_all_its_settings_on_and_builds_anew_each_time() -> None:
    module = Mixed()
    multipliers = {"head": {"lr": 2.0}}
    factory = OptimizerFactory(
        torch.optim.SGD, 0.1, 0.01, {"momentum": 0.9}, decay_bias_and_norm=True, multipliers=multipliers
    )
    groups = param_groups(module, 0.1, 0.01, decay_bias_and_norm=True, multipliers=multipliers)
    expected = torch.optim.SGD(groups, lr=0.1, weight_decay=0.01, momentum=0.9)
    assert factory(module).state_dict() == expected.state_dict()
    assert factory(module) is not factory(module)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"lr": -0.1}, "lr must be > 0, got -0.1"), ({"lr": 1, "weight_decay": -1}, "weight_decay must be")],
)
def test_factory_refuses_numbers_when_made(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerFactory(torch.optim.SGD, **kwargs)
