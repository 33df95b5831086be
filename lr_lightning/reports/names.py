"""Which of a run's metrics is which, also where another program named them."""

import re
from collections.abc import Iterable

LR, TRAIN_LOSS, VAL_LOSS, VAL_ACC = "lr/group0", "train/loss", "val/loss", "val/acc"
PROBE_LOSS, GAP, EPOCH_MEAN, EPOCH = "probe/loss", "overfit/gap_loss", "train/loss_epoch", "epoch"
BATCH_SIZE, COST_SECONDS = "batch/size", "cost/seconds"

READ = (LR, TRAIN_LOSS, VAL_LOSS, VAL_ACC, PROBE_LOSS, GAP, EPOCH_MEAN, EPOCH, BATCH_SIZE, COST_SECONDS)
"""The metrics that a report draws or measures, by this project's names."""

_WORDS = {
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "accuracy": "acc",
    "acc1": "acc",
    "top1": "acc",
    "training": "train",
}
_SPLIT = re.compile(r"[/_.\- ]+")


def canonical(name: str) -> str:
    """This project's name for a metric of another program, or the name in one spelling.

    Example:
        >>> canonical("valid_accuracy"), canonical("val_loss"), canonical("lr-SGD"), canonical("train_loss_step")
        ('val/acc', 'val/loss', 'lr/group0', 'train/loss')
    """
    words = [_WORDS.get(word, word) for word in _SPLIT.split(name.lower()) if word]
    if words[:1] == ["lr"] or words[:2] == ["learning", "rate"]:
        return LR
    if words == ["loss"] or (words[:2] == ["train", "loss"] and words[2:] in ([], ["step"])):
        return TRAIN_LOSS
    if words[-1:] == ["epoch"] and words[:1] == ["val"]:
        words = words[:-1]
    return "/".join([words[0], "_".join(words[1:])]) if len(words) > 1 else "".join(words)


def find(key: str, available: Iterable[str]) -> str | None:
    """The metric of a run that is meant by ``key``: that very name, or the first that reads as it.

    Args:
        key: This project's name, or any other.
        available: What the run has.
    """
    names = sorted(available)
    if key in names:
        return key
    if key == LR:
        own = [name for name in names if name.startswith("lr/")]
        if own:
            return own[0]
    return next((name for name in names if canonical(name) == key), None)


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better: not of losses, errors, gaps and perplexities.

    Example:
        >>> higher_is_better("val/acc"), higher_is_better("val/loss")
        (True, False)
    """
    return not re.search(r"loss|err|gap|perplexity|ppl|nll|mse|mae|rmse|ece|brier", metric.lower())
