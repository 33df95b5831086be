"""Which of a run's metrics is which, also where another program named them."""

import re
from collections.abc import Iterable

LR, TRAIN_LOSS, VAL_LOSS, VAL_ACC = "lr/group0", "train/loss", "val/loss", "val/acc"
PROBE_LOSS, GAP, EPOCH_MEAN, EPOCH = "probe/loss", "overfit/gap_loss", "train/loss_epoch", "epoch"
BATCH_SIZE, COST_SECONDS = "batch/size", "cost/seconds"

WORLD_SIZE = "env.world_size"
"""The tag of a run that says how many processes trained it."""

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
_LONG = re.compile(r"-?\d*\.\d{12,}(e[+-]?\d+)?")  # no version, no date, no id
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


def rounded(value: str) -> str:
    """The value of a tag or param as it is shown: a number that arithmetic gave many digits, with those that count.

    Example:
        >>> rounded("0.010000000000000002"), rounded("3.0000000000000004e-05"), rounded("1.10"), rounded("cosine")
        ('0.01', '3e-05', '1.10', 'cosine')
    """
    return f"{float(value):.10g}" if _LONG.fullmatch(value) else value


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


_LOWER = frozenset(
    (
        *("loss", "losses", "nll", "ce", "bce", "xent", "crossentropy", "entropy", "hinge", "perplexity", "ppl", "bpc"),
        *("err", "errors", "error", "mse", "rmse", "mae", "mape", "msle", "deviance", "gap", "ece"),
        *("brier", "kl", "fid", "wer", "cer", "ter", "mer", "eer", "fpr", "fnr"),
    )
)
_HIGHER = frozenset(
    (
        *("acc", "accuracy", "top", "precision", "recall", "sensitivity", "specificity", "f1", "fbeta", "auc", "auroc"),
        *("auprc", "roc", "ap", "map", "iou", "miou", "dice", "jaccard", "kappa", "mcc", "r2", "ndcg", "mrr", "bleu"),
        *("rouge", "meteor", "psnr", "ssim", "tpr", "tnr"),
    )
)
# of "MulticlassF1Score", "val/top5", "AUROC" and "val_cross_entropy"
_WORD = re.compile(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*")


def direction(metric: str) -> bool | None:
    """Whether more of a metric is better, as far as the words of its name tell.

    Args:
        metric: Its name. Whole words count: ``val/recent_acc`` has no ``ce`` in it.

    Returns:
        None where no word tells, or where two say the opposite. A gap is bad, whatever it is a gap of.

    Example:
        >>> direction("val/acc"), direction("val/wer"), direction("MulticlassF1Score"), direction("val/score")
        (True, False, True, None)
    """
    words = {word.lower() for word in _WORD.findall(metric)}
    words |= {word.rstrip("0123456789") for word in words}
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    if lower == higher:
        return False if "gap" in words else None
    return higher
