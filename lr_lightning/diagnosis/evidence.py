"""The numbers behind a verdict, in words."""

from collections.abc import Mapping

__all__ = ["in_words"]

Numbers = Mapping[str, float]


def in_words(numbers: Numbers) -> list[str]:
    """What was measured, a line for each quantity; "±" is one standard error.

    Args:
        numbers: A verdict's evidence, by name.
    """
    lines = [_validation(numbers), _probe(numbers), _gap(numbers), _chance(numbers)]
    lines += [_rate(numbers), _length(numbers)]
    return [line for line in lines if line]


def _validation(n: Numbers) -> str:
    said = [f"{n['val_loss']:.3g} at the end"] if "val_loss" in n else []
    if "best_val_loss" in n:
        at = f" (epoch {n['best_epoch']:.3g})" if "best_epoch" in n else ""
        said.append(f"{n['best_val_loss']:.3g} at its best{at}")
    if n.get("rise", 0.0) > 0:
        since = f"since epoch {n['rise_since_epoch']:.3g}" if "rise_since_epoch" in n else "since then"
        said.append(f"up by {_measured(n, 'rise')} {since}")
    if "val_fall" in n:
        said.append(f"{_moved(n, 'val_fall')} in the last quarter")
    return f"validation loss: {'; '.join(said)}" if said else ""


def _probe(n: Numbers) -> str:
    said = [f"{n['probe_loss']:.3g} at the end"] if "probe_loss" in n else []
    if "lowest_probe_loss" in n:
        said.append(f"{n['lowest_probe_loss']:.3g} at its lowest")
    if "probe_loss_at_best" in n:
        said.append(f"{n['probe_loss_at_best']:.3g} where the validation was best")
        said.append(f"{_moved(n, 'probe_fall')} since then")
    elif "probe_fall_since_epoch" in n:
        said.append(f"{_moved(n, 'probe_fall')} since epoch {n['probe_fall_since_epoch']:.3g}")
    return f"probe loss, of training images: {'; '.join(said)}" if said else ""


def _gap(n: Numbers) -> str:
    return f"gap, validation − probe loss: {n['gap']:.3g}" if "gap" in n else ""


def _chance(n: Numbers) -> str:
    return f"chance, the loss of a model that knows nothing: {n['chance_loss']:.3g}" if "chance_loss" in n else ""


def _rate(n: Numbers) -> str:
    return f"learning rate: {n['lr']:.3g} at the end; {n['peak_lr']:.3g} at its peak" if "lr" in n else ""


def _length(n: Numbers) -> str:
    if "epochs" not in n:
        return ""
    done = f", {n['planned']:.0%} of the run" if n.get("planned", 1.0) < 1 else ""
    return f"measured: {n['validations']:.0f} validations in {n['epochs']:.3g} epochs{done}"


def _moved(n: Numbers, fall: str) -> str:
    """The fall ``fall`` as a movement: down, or up."""
    return f"{'down' if n[fall] >= 0 else 'up'} by {_measured(n, fall)}"


def _measured(n: Numbers, key: str) -> str:
    return f"{abs(n[key]):.2g} ± {n[f'{key}_noise']:.2g}"
