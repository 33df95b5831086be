"""What a GPU is needed for: the time to an accuracy, precision, the callbacks' and the finder's cost, Smith's table.

Run: ``python -m benchmarks.gpu --cifar10 FOLDER [--only PART ...] [--seeds 3] [--epochs 30] [--scale 1.0] [--quick]``.
FOLDER holds ``train.parquet`` and ``test.parquet`` with the columns img and label; nothing else is needed, no network.
The parts, in this order:

- ``resnet9``: ResNet-9 on CIFAR-10 to 94 % test accuracy with the app (its network, one_cycle, crop and flip, bf16,
  channels_last, MLflow, checkpoints) and with a plain loop whose images lie on the GPU, alternating. Seconds and epochs
  to the target, milliseconds a step, what the app's loader needs for a batch by itself, and the GPU's utilisation
  (NVML, by ``pip install nvidia-ml-py``; null without): where the loader holds the GPU up, they show it. Both arms
  train on all training images; the test images are looked at after every epoch, as in DAWNBench, and choose nothing.
- ``precision``: milliseconds a step of 32 bits and bf16, contiguous and channels_last, and of deterministic kernels.
- ``callbacks``: a step in Lightning alone beside one with each callback, on a network that keeps the GPU busy and on
  one that does not, with a wait for the device every 50 steps and none between; and how often a step waits by itself.
- ``finder``: the seconds of a range test, as a share of those of the training steps, and the memory it leaves behind.
- ``smith_table``: ``benchmarks.smith_table``, six seeds, stored under its own name too.

What was measured is stored after every round. A part that fails is recorded with the reason, the others go on, and the
command ends with 1; after an error that leaves the GPU of no use, such as an illegal access, the others are recorded as
failed too. ``--only`` leaves the other parts of the stored result as they are; each has its own machine.

Unverified on a GPU: all of this has run on a CPU alone, in the small form on the digits. Nothing there has run
what needs CUDA: NVML's samples, the count of waits, the memory, the waits of the clock, cuDNN's settings, and whether
the recipe reaches 94 % in 30 epochs.
"""

import argparse
import gc
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, smith_table
from benchmarks.gpu_device import Setting, device, global_settings_kept, lost
from benchmarks.gpu_race import race
from benchmarks.gpu_steps import callbacks, finder, precision
from benchmarks.report import at_least_one, machine, show, store
from benchmarks.trainings import ROOT, images
from lr_lightning.app.composition import prepare
from lr_lightning.app.run.messages import quiet

NAME = "gpu"
RECIPE = (
    "model=resnet9",
    "schedule=one_cycle",
    "optimizer.lr=0.4",
    "module.label_smoothing=0.1",
    "data.batch_size=512",
    "data.crop_padding=4",
    "data.crop_fill=reflect",
    "data.flip=true",
    "trainer.devices=1",
    "trainer.precision=bf16-mixed",
    "trainer.channels_last=true",
    "trainer.deterministic=false",
    "+trainer.kwargs.benchmark=true",
    "trainer.progress=none",
    "test=false",
)
SMALL = ("data.batch_size=16", "data.train_size=48", "data.crop_padding=1", "trainer.limit_val_batches=1")


def smith(setting: Setting) -> Iterator[dict[str, Any]]:
    """The table, stored under its own name as well."""
    records: dict[str, dict[str, Any]] = {}
    for piece in smith_table.pieces(setting.data, setting.scale, setting.smith_seeds):
        records[piece.key] = {"result": smith_table.train_row(piece.settings, None)}
        found = smith_table.summary(records, setting.scale, setting.smith_seeds)
        yield found
    smith_table.show_table(found)
    store("smith_table", found, setting.quick)


PARTS: dict[str, Callable[[Setting], Iterator[dict[str, Any]]]] = {
    "resnet9": race,
    "precision": precision,
    "callbacks": callbacks,
    "finder": finder,
    "smith_table": smith,
}


def run(names: Sequence[str], setting: Setting, known: dict[str, Any]) -> dict[str, Any]:
    """Run the parts; the result of each, with its status ``done``, ``failed`` or, while it runs, ``partial``.

    Args:
        names: Of the parts.
        setting: How much.
        known: Parts that were measured before, and stay unless they are measured again.
    """
    parts = dict(known)

    def keep(name: str, status: str, found: dict[str, Any], **more: str) -> None:
        parts[name] = {"status": status, **more, "machine": machine(), **found}
        if not setting.quick:
            store(NAME, {"parts": parts}, quick=False)

    gone: str | None = None
    for name in names:
        print(f"\n== {name}", flush=True)
        found: dict[str, Any] = {}
        if gone:  # the part would fail, or begin again on the CPU
            keep(name, "failed", found, reason=f"not run: the GPU was lost in a part before ({gone})")
            continue
        try:
            with global_settings_kept():
                for found in PARTS[name](setting):
                    keep(name, "partial", found)
            keep(name, "done", found)
        except Exception as error:
            traceback.print_exc()
            keep(name, "failed", found, reason=f"{type(error).__name__}: {error}")
        gc.collect()
        gone = lost()
    return parts


def stored_parts(path: Path) -> dict[str, Any]:
    """The parts of a stored result; none where there is none.

    Raises:
        ValueError: If the file is damaged; it says what to do.
    """
    if not path.is_file():
        return {}
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
        if not all(isinstance(part, dict) and "status" in part for part in parts.values()):
            raise ValueError("a part without a status")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: the stored result is damaged ({type(error).__name__}: {error}). "
            "Bring it back (git checkout) or delete it; nothing has been measured."
        ) from error
    return dict(parts)


def spreads(found: Any, path: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Every spread of a result, with the path to it."""
    if not isinstance(found, dict):
        return
    if {"median", "min", "max", "n"} <= found.keys():
        yield path, found
        return
    for key, value in found.items():
        yield from spreads(value, f"{path} / {key}" if path else key)


def show_parts(names: Sequence[str], parts: dict[str, Any]) -> None:
    """One table of all that was measured."""
    print(f"\n{'':76}{'median (smallest to largest)':>34}{'n':>5}")
    for name in names:
        print(f"{name}: {parts[name]['status']} {parts[name].get('reason', '')}".rstrip())
        for path, values in spreads(parts[name]):
            print(f"  {path:74}{show(values, '{:.4g}'):>34}{values['n']:>5}")


def setting_of(args: argparse.Namespace) -> Setting:
    """The size of the run: the digits where no folder is given, and small with ``--quick``."""
    data = tuple(images(args.cifar10))
    if args.quick:
        size = {"epochs": 1, "seeds": 1, "rounds": 1, "warmup": 1, "block": 1, "blocks": 2}
        recipe = (*RECIPE, *SMALL)
        return Setting(tuple(data), recipe, 0.3, **size, models=("small_cnn",), scale=0.0003, smith_seeds=1, quick=True)
    return Setting(
        data=data,
        recipe=RECIPE,
        target=0.94,
        epochs=args.epochs,
        seeds=args.seeds,
        rounds=10,
        warmup=30,
        block=50,
        blocks=6,
        models=("resnet9", "small_cnn"),
        scale=args.scale,
        smith_seeds=args.smith_seeds,
        quick=False,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print, store.

    Returns:
        1 if a part failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cifar10", type=Path, help="folder with train.parquet and test.parquet; needed but by --quick"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts alone")
    parser.add_argument("--epochs", type=at_least_one, default=30, help="of resnet9, and what the finder's share is of")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="of resnet9")
    parser.add_argument(
        "--scale", type=float, help="of smith_table: shortens its lengths alike; 1.0, without a GPU 0.02"
    )
    parser.add_argument("--smith-seeds", type=at_least_one, default=6, help="of smith_table")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, on any machine; nothing stored")
    args = parser.parse_args(argv)
    if not args.quick and args.cifar10 is None:
        parser.error("--cifar10: give the folder with train.parquet and test.parquet, or --quick for the digits")
    if args.cifar10 is not None:
        args.cifar10 = args.cifar10.expanduser().absolute()
        missing = [name for name in ("train.parquet", "test.parquet") if not (args.cifar10 / name).is_file()]
        if missing:
            parser.error(f"--cifar10: {args.cifar10} has no {' and no '.join(missing)}")
    try:
        known = {} if args.quick else stored_parts(report.RESULTS / f"{NAME}.json")
    except ValueError as error:
        parser.error(str(error))
    if args.scale is None:
        args.scale = 1.0 if device().type == "cuda" else 0.02
    quiet()
    prepare(ROOT)
    print(f"on {machine()['device']}")
    parts = run(args.only, setting_of(args), known)
    show_parts(args.only, parts)
    if args.quick:
        store(NAME, {}, quick=True)
    return int(any(parts[name]["status"] == "failed" for name in args.only))


if __name__ == "__main__":
    sys.exit(main())
