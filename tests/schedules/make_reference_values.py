"""Writes reference_values.json: what transformers' and optax' own formulas give.

Run it where both are installed, away from this project's environment (transformers' formulas are pure functions of
``math``, read from its source, so torch is not needed):

    python -m venv /tmp/refs && /tmp/refs/bin/pip install optax && /tmp/refs/bin/pip install --no-deps transformers
    /tmp/refs/bin/python tests/schedules/make_reference_values.py
"""

import ast
import importlib.metadata
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import optax  # noqa: E402  (double precision has to be chosen first)

TOTAL, WARMUP = 48, 6  # three cycles of 14 after the warmup


def transformers_formulas() -> dict[str, Callable[..., float]]:
    """The functions ``_get_*`` of transformers.optimization that are factors of a step."""
    package = importlib.util.find_spec("transformers")
    source = (Path(package.origin).parent / "optimization.py").read_text()
    wanted = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_get_") and "current_step" in ast.dump(node.args)
    ]
    scope: dict[str, Any] = {"math": math}
    exec(compile(ast.Module(wanted, []), "optimization.py", "exec"), scope)
    return {node.name: scope[node.name] for node in wanted}


def transformers_cases() -> dict[str, list[float]]:
    formulas = transformers_formulas()
    length = {"num_warmup_steps": WARMUP, "num_training_steps": TOTAL}
    wsd = {"num_warmup_steps": WARMUP, "num_stable_steps": 30, "num_decay_steps": TOTAL - 30 - WARMUP}
    wsd |= {"warmup_type": "linear", "num_cycles": 0.5}
    # the formula for cosine is the one with a floor: the second of two functions of the same name
    chosen: dict[str, tuple[str, dict[str, Any]]] = {
        "linear": ("linear_schedule_with_warmup_lr_lambda", length),
        "hard_restarts": ("cosine_with_hard_restarts_schedule_with_warmup_lr_lambda", {**length, "num_cycles": 3}),
        "polynomial": (
            "polynomial_decay_schedule_with_warmup_lr_lambda",
            {**length, "lr_end": 1e-7, "power": 2.5, "lr_init": 1.0},
        ),
        "inverse_sqrt": ("inverse_sqrt_schedule_lr_lambda", {"num_warmup_steps": WARMUP, "timescale": 11}),
        "cosine": (
            "cosine_schedule_with_warmup_lr_lambda",
            {**length, "num_cycles": 0.5, "min_lr_rate": 0.1},
        ),
    }
    for shape in ("1-sqrt", "linear", "cosine"):
        chosen[f"wsd_{shape}"] = ("wsd_scheduler_lambda", {**wsd, "decay_type": shape, "min_lr_ratio": 0.05})
    return {
        f"transformers/{name}": [formulas[f"_get_{function}"](step, **arguments) for step in range(TOTAL + 1)]
        for name, (function, arguments) in chosen.items()
    }


def optax_cases() -> dict[str, list[float]]:
    chosen = {
        "linear": optax.linear_schedule(1.0, 0.25, TOTAL),
        "polynomial": optax.polynomial_schedule(1.0, 0.1, 3.0, TOTAL),
        "cosine": optax.cosine_decay_schedule(1.0, TOTAL, alpha=0.1),
        "exponential": optax.exponential_decay(1.0, TOTAL, 0.02),
        "warmup_cosine": optax.warmup_cosine_decay_schedule(0.1, 1.0, WARMUP, TOTAL, end_value=0.05),
        "piecewise": optax.piecewise_constant_schedule(1.0, {10: 0.3, 30: 0.3}),
        "join": optax.join_schedules(
            [optax.linear_schedule(0.0, 1.0, 5), optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, 8)],
            [5, 40],
        ),
        "sgdr": optax.sgdr_schedule(
            [
                {"init_value": 1.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": steps, "end_value": 0.1}
                for steps in (6, 12, 24)
            ]
        ),
    }
    return {f"optax/{name}": [float(rule(step)) for step in range(TOTAL + 1)] for name, rule in chosen.items()}


def main() -> None:
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "optax", "jax")}
    content = {"versions": versions, "total": TOTAL, "warmup": WARMUP}
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in content.items()]
    cases = transformers_cases() | optax_cases()
    rows = [f'    "{name}": {json.dumps(values)}' for name, values in cases.items()]
    text = "{\n" + ",\n".join(lines) + ',\n  "values": {\n' + ",\n".join(rows) + "\n  }\n}\n"
    Path(__file__).with_name("reference_values.json").write_text(text)


if __name__ == "__main__":
    main()
