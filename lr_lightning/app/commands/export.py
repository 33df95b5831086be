"""`scripts/export.py`: write a trained run's network for programs that have torch, or an ONNX runtime, alone."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lr_lightning.app.commands.predict import Predictor, find_run
from lr_lightning.app.error_messages import BAD_INPUT, explain_path, print_error
from lr_lightning.errors import ConfigError
from lr_lightning.training.classifier import LitClassifier
from lr_lightning.training.transforms import Normalizer

__all__ = ["FORMATS", "export", "run"]

_TOLERANCE = 1e-3  # of probabilities, between the run's network and what was written
_PREPROCESSING = (
    "turn the image as its EXIF orientation says",
    "more than 8 bits: scale linearly, so that the two values of `ranges` become 0 and 255, and clip",
    "transparent: put it on white",
    "convert it to `channels`: 1 is greyscale, 3 is RGB",
    "scale it (bilinear) until it just covers height × width, and cut the centre",
    "give the values 0..255 as [batch, channels, height, width]: the network normalizes them itself",
)


class _Network(nn.Module):
    """A network that takes pixel values 0..255 and returns logits, in evaluation mode."""

    offset: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, normalizer: Normalizer) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("offset", normalizer.offset.clone())
        self.register_buffer("scale", normalizer.scale.clone())

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.net((pixels.float() - self.offset) * self.scale)
        return logits


def _torchscript(network: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    traced = torch.jit.trace(network, example)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path))
    return torch.jit.load(str(path))  # type: ignore[no-untyped-call,no-any-return]


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _torch_export(network: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(_program(network, example), path)
    return torch.export.load(path).module()


def _onnx(network: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["logits"]}
    torch.onnx.export(_program(network, example), (), str(path), external_data=False, verbose=False, **names)
    import onnx.reference

    model: Any = onnx.reference.ReferenceEvaluator(str(path))
    return lambda pixels: torch.from_numpy(model.run(None, {"pixels": pixels.numpy()})[0])


FORMATS: dict[str, tuple[str, Callable[[nn.Module, Tensor, Path], Callable[[Tensor], Tensor]]]] = {
    "torchscript": ("model.ts", _torchscript),
    "torch_export": ("model.pt2", _torch_export),
    "onnx": ("model.onnx", _onnx),
}
"""The name of the file, and what writes it and reads it back, of each format."""


def export(
    folder: Path,
    to: Path,
    formats: Sequence[str],
    checkpoint: str = "best",
    trust: Sequence[str] = (),
    *,
    averaged: bool = False,
) -> None:
    """Write the network of a run's checkpoint in each of the formats, with `model.json` beside them.

    With ``averaged``, its weights are the average that CooldownPreview kept.

    Each file is read back, and its probabilities compared with the run's own.

    Raises:
        ConfigError: The run cannot be read, a package is missing, or the network cannot be written in a format.
    """
    missing = [name for name in ("onnx", "onnxscript") if "onnx" in formats and find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx: needs `pip install {' '.join(missing)}`.")
    predictor = Predictor(folder, checkpoint, trust, averaged=averaged)
    data, module = predictor.data, predictor.module.cpu()
    network = _Network(module.net if isinstance(module, LitClassifier) else module, data.normalizer).eval()
    shape = (data.in_channels, *data.image_size)
    example, other = (torch.randint(0, 256, (batch, *shape)).float() for batch in (2, 3))
    to.mkdir(parents=True, exist_ok=True)
    for name in formats:
        path = to / FORMATS[name][0]
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # each of the writers has something to say about the next one
                written = FORMATS[name][1](network, example, path)
                off = max(float((written(x).softmax(1) - network(x).softmax(1)).abs().max()) for x in (example, other))
        except Exception as e:
            path.unlink(missing_ok=True)
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ConfigError(f"--format {name}: this format cannot hold the network ({reason}). Try another.") from e
        if not off < _TOLERANCE:
            path.unlink()
            raise ConfigError(f"--format {name}: the written network predicts otherwise (by {off:.2g}). Try another.")
        print(f"wrote {path}")
    about = {
        "classes": list(data.class_names),
        "channels": shape[0],
        "height": shape[1],
        "width": shape[2],
        "ranges": {depth: list(values) for depth, values in data.format.ranges.items()},
        "preprocessing": _PREPROCESSING,
        "run": folder.name,
        "checkpoint": checkpoint,
        "weights": "averaged" if averaged else "last",
    }
    (to / "model.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    print(f"wrote {to / 'model.json'}: class names and preprocessing")


def run(
    checkout: Path,
    name: str,
    *,
    to: Path | None = None,
    formats: Sequence[str] = (),
    checkpoint: str = "best",
    averaged: bool = False,
    trust: Sequence[str] = (),
    output_root: Path | None = None,
    store_root: Path | None = None,
    uri: str | None = None,
) -> int:
    """Export a run, by default to ``export/`` in its output folder, and return the exit status."""
    try:
        folder = find_run(checkout, name, output_root, store_root, uri)
        to = to or folder / "export"
        wanted = list(formats) or ["torchscript", "torch_export"]
        export(folder, to, wanted, checkpoint, trust, averaged=averaged)
    except OSError as e:
        print_error(explain_path(e, [("RUN", name), ("--to", to)]) or f"--to: {e}")
        return BAD_INPUT
    except ConfigError as e:
        print_error(e)
        return BAD_INPUT
    return 0
