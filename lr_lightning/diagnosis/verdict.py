"""The verdict on a run: its label, the reason, the numbers that decided, the advice, and the text of them all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

Numbers = Mapping[str, float]

_COOLED = 0.5  # share of the peak learning rate: a last one below it has been cooled down


class Label(StrEnum):
    """The possible verdicts. The value is stored as the tag ``verdict`` of a run."""

    DIVERGED = "diverged"
    OVERFITTING = "overfitting"
    UNDERFITTING = "underfitting"
    COLLAPSED = "collapsed"
    HEALTHY = "healthy"
    INCONCLUSIVE = "inconclusive"


class Reason(Enum):
    """Why a verdict has its label, where a label has several reasons. The value is the text, with its numbers open."""

    # diverged
    NOT_FINITE = "a loss is not finite"
    FAR_ABOVE_CHANCE = "far above {reference}"
    # overfitting
    MEMORISED = "memorised"
    GAP = "gap"
    RECEDING = "receding"
    # underfitting
    UNDER_TRAINED = "under-trained"
    LIMITED = "limited"
    LR_IS_HIGH = "the learning rate is high"
    # inconclusive
    TOO_FEW = "{validations:.0f} validations are too few, {needed:.0f} are needed"
    UNSTABLE = "the probe loss rose above its own best: unstable"
    PROBE_NOT_FALLING = "the validation loss rose, but the probe loss did not keep falling"
    ACCURACY_FELL = "the validation accuracy ended {accuracy_lost:.1f} points below its best"
    RESTLESS_AT_CHANCE = "near {reference}, neither falling nor at rest"
    NO_REFERENCE = "neither chance nor the loss at the start is known"


class Reference(StrEnum):
    """The model without any learning to whose loss losses are compared. The value is its name in a sentence."""

    CHANCE = "chance"
    CONSTANT = "a constant guess"
    START = "the start"


class Advice(Enum):
    """What to try next. The value is the sentence, with its numbers open."""

    # a learning rate that is too high
    LOWER_LR_TENFOLD = "Lower the learning rate from {peak_lr:.3g} tenfold until the loss falls: {lower_lrs}, ..."
    LOWER_LR = "Lower the learning rate tenfold at a time until the loss falls."
    WARM_UP_OR_CLIP = "The run had learned before: a longer warmup or gradient clipping may allow this learning rate."
    LOWER_LR_AND_WARM_UP = (
        "Two runs to try, each with a warmup: a tenth or a hundredth of the learning rate{lower_two}. Nothing was "
        "learned, and a learning rate that is too high kills a network's units."
    )
    LOWER_OR_COOL_DOWN = (
        "Two runs to try: the learning rate {third:.3g} instead of {peak_lr:.3g}, or the schedule wsd, which lets it "
        "fall to 0 at the end. The loss swings{if_cooled}."
    )
    # a learning rate that is too low
    RAISE_LR_BY_TENS = (
        "Two runs to try: the learning rate {tenfold:.3g} or {hundredfold:.3g} instead of {peak_lr:.3g}. Almost "
        "nothing was learned, and the curve does not tell how much too low it is."
    )
    RAISE_CALM_LR = "Raise the learning rate from {peak_lr:.3g} to {triple:.3g}: the loss falls slowly and smoothly."
    # a learning rate that is still high at the end
    COOL_DOWN = "Cool down: {lr_is_high}{if_cooled}. Let it fall to 0 at the end, with the schedule wsd for instance."
    COOL_DOWN_EARLIER = "Cool down: {lr_is_high}{if_cooled_earlier}. Let it fall to 0 by about epoch {cooled_by:.0f}."
    # the length of the run
    SHORTEN_OR_REGULARISE = (
        "Two runs to try: the schedule shortened to about {useful_epochs:.0f} epochs, or more regularisation "
        "(augmented data, dropout, weight decay). The validation loss rose after epoch {onset:.0f} of {epochs:.0f}."
    )
    FINISH = "Train to the end of the planned run, of which {planned:.0%} are done."
    # the data, the network, the measurement
    CHECK_LABELS = (
        "The validation is no better than {reference}: check that the labels are right and alike in both sets."
    )
    REGULARISE = "Regularise: more or augmented data, dropout, weight decay."
    SCALE_LOGITS = "Scale the logits by one temperature, or smooth the labels: the gap is overconfidence."
    AT_ITS_LIMIT = (
        "The probe loss has stopped at {probe_level}: the network may be too small or too strongly regularised. If the "
        "labels are noisy or the classes overlap, the loss may be as low as it can get."
    )
    LARGER_OR_LONGER = (
        "Two runs to try: a network twice as wide, or {double_epochs:.0f} epochs{with_wsd}. The probe loss is high "
        "({probe_level}), and its curve does not tell which of the two it needs."
    )
    INSPECT_NETWORK = "If that changes nothing, look at the network: its size, its initialization, its last layer."
    MEASURE_MORE = "To get a verdict, validate more often, or train longer."
    GIVE_CHANCE = "Give the loss of a model that knows nothing: OverfittingMonitor(chance=...)."


@dataclass(frozen=True)
class Change:
    """What an advice changes about a run; None changes nothing.

    Attributes:
        lr: Factor of the peak learning rate.
        epochs: Length of the run.
        schedule: Name of a schedule of the app.
        warmup: Share of the run, as a duration.
        width: Factor of the network's width.
        label_smoothing: Share of the label's weight that goes to all classes.
        regularise: Whether to add dropout, or weight decay.
    """

    lr: float | None = None
    epochs: int | None = None
    schedule: str | None = None
    warmup: str | None = None
    width: int | None = None
    label_smoothing: float | None = None
    regularise: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a run's curves say.

    Attributes:
        label: The verdict.
        reason: Why, where the label has several reasons. None for underfitting means that the noise hides whether the
            run is under-trained or limited; None for overfitting is the plain rise of the validation loss.
        onset_epoch: Overfitting: the last epoch at which the validation loss was still at its best, or, for a gap, the
            first. Diverged: the first bad epoch. None otherwise.
        evidence: The numbers that decided, by name.
        advice: At most three things to try, never "stop".
        divergence: Which value was not finite, and when, if the run ended with it.
        reference: What the losses are compared with.
        near: Other labels that the run would have if its losses were a tenth higher or lower, as with another seed.
    """

    label: Label
    reason: Reason | None = None
    onset_epoch: float | None = None
    evidence: Numbers = field(default_factory=dict)
    advice: tuple[Advice, ...] = ()
    divergence: str | None = None
    reference: Reference = Reference.CHANCE
    near: tuple[Label, ...] = ()

    @property
    def detail(self) -> str:
        """The reason as text; empty if there is none."""
        if self.divergence is not None:
            return self.divergence
        return "" if self.reason is None else self.reason.value.format_map(self._open_numbers())

    @property
    def headline(self) -> str:
        """The label, with the detail in parentheses."""
        return f"{self.label} ({self.detail})" if self.detail else str(self.label)

    @property
    def title(self) -> str:
        """The headline, and the labels to whose border the run is near."""
        return f"{self.headline}, near the border of {' and '.join(self.near)}" if self.near else self.headline

    @property
    def useful_epochs(self) -> float:
        """The epochs up to the onset, at most the run's, at least 1."""
        return max(1.0, min(self._onset, self.evidence["epochs"]))

    @property
    def _cooled_by(self) -> float:
        """The epoch by which the learning rate should have fallen: where CooldownPreview was lowest, else the onset."""
        return self.evidence.get("cooled_best_epoch", self.useful_epochs)

    @property
    def _onset(self) -> float:
        return self.evidence.get("best_epoch", 0.0) if self.onset_epoch is None else self.onset_epoch

    def changes(self, advice: Advice) -> tuple[Change, ...]:
        """Return the settings of each run that an advice asks for; none if it asks for no settings of a run."""
        doubled = 2 * round(self.evidence.get("epochs", 0.0))
        schedule = "wsd" if lr_is_high(self.evidence) else None
        match advice:
            case Advice.LOWER_LR | Advice.LOWER_LR_TENFOLD:
                return (Change(lr=0.1),)
            case Advice.LOWER_LR_AND_WARM_UP:
                return Change(lr=0.1, warmup="10%"), Change(lr=0.01, warmup="10%")
            case Advice.LOWER_OR_COOL_DOWN:
                return Change(lr=1 / 3), Change(schedule="wsd")
            case Advice.RAISE_LR_BY_TENS:
                return Change(lr=10), Change(lr=100)
            case Advice.RAISE_CALM_LR:
                return (Change(lr=3),)
            case Advice.COOL_DOWN:
                return (Change(schedule="wsd"),)
            case Advice.COOL_DOWN_EARLIER:
                return (Change(schedule="wsd", epochs=max(1, round(self._cooled_by))),)
            case Advice.SHORTEN_OR_REGULARISE:
                return Change(epochs=round(self.useful_epochs)), Change(regularise=True)
            case Advice.LARGER_OR_LONGER:
                return Change(width=2, schedule=schedule), Change(epochs=doubled, schedule=schedule)
            case Advice.REGULARISE:
                return (Change(regularise=True),)
            case Advice.SCALE_LOGITS:
                return (Change(label_smoothing=0.1),)
            case _:
                return ()

    def sentences(self) -> list[str]:
        """Return the advice as sentences."""
        return [advice.value.format_map(self._open_numbers()) for advice in self.advice]

    def _open_numbers(self) -> dict[str, float | str]:
        """Return every number and phrase that a sentence of :class:`Advice` may leave open."""
        n = self.evidence
        open_now: dict[str, float | str] = {"onset": self._onset, "lower_two": "", "reference": self.reference}
        open_now |= {"if_cooled": self._if_cooled, "if_cooled_earlier": self._if_cooled_earlier}
        numbers = {"planned": 1.0, **n, **open_now}
        if "epochs" in n:
            numbers |= {"cooled_by": self._cooled_by, "double_epochs": 2 * n["epochs"]}
            numbers["useful_epochs"] = self.useful_epochs
            numbers["with_wsd"] = ", each with the schedule wsd" if lr_is_high(n) else ""
        if "peak_lr" in n:
            peak = n["peak_lr"]
            numbers |= {
                "third": peak / 3,
                "triple": 3 * peak,
                "lower_lrs": ", ".join(f"{peak / 10**k:.3g}" for k in (1, 2, 3)),
                "tenfold": 10 * peak,
                "hundredfold": 100 * peak,
                "lr_is_high": f"the learning rate is still {n['lr'] / (peak or 1.0):.0%} of its peak",
                "lower_two": f", {peak / 10:.3g} or {peak / 100:.3g}",
            }
        if "probe_loss" in n:
            share = f", {n['probe_loss'] / n['chance_loss']:.0%} of {self.reference}" if n.get("chance_loss") else ""
            numbers["probe_level"] = f"{n['probe_loss']:.3g}{share}"
        return numbers

    @property
    def _if_cooled(self) -> str:
        """What a cooldown would reach now, as a clause; empty if it is unknown or not less."""
        n = self.evidence
        if not n.get("if_cooled", math.inf) < n.get("val_loss", -math.inf):
            return ""
        return (
            f", and cooled now it would reach a validation loss of {n['if_cooled']:.3g} instead of {n['val_loss']:.3g}"
        )

    @property
    def _if_cooled_earlier(self) -> str:
        """What a cooldown would have reached where its preview was lowest, as a clause; empty if it has not risen."""
        n = self.evidence
        if not {"cooled_best", "val_loss"} <= n.keys():
            return ""
        return (
            f", and cooled by epoch {n['cooled_best_epoch']:.0f} it would have reached a validation loss of "
            f"{n['cooled_best']:.3g} instead of {n['val_loss']:.3g}"
        )

    def text(self) -> str:
        """Return the verdict in a few lines of Markdown: headline, numbers ("±" is one standard error) and advice."""
        onset = "" if self.onset_epoch is None else f", from epoch {self.onset_epoch:g}"
        lines = [f"verdict: {self.title}{onset}", "", *(f"- {line}" for line in _evidence_lines(self))]
        if self.advice:
            lines += ["", "What to try:", "", *(f"- {line}" for line in self.sentences())]
        return "\n".join(lines)


def lr_is_high(numbers: Numbers) -> bool:
    """Return whether the learning rate is known, and has not been cooled down at the end."""
    return numbers.get("peak_lr", 0.0) > 0 and numbers["lr"] / numbers["peak_lr"] > _COOLED


# -- the numbers as text ---------------------------------------------------------------------------------------------

_REFERENCE_LINES = {
    Reference.CHANCE: "chance, the loss of a model that knows nothing",
    Reference.CONSTANT: "loss of a constant guess, the mean of the targets",
    Reference.START: "loss at the start",
}


def _evidence_lines(verdict: Verdict) -> list[str]:
    """Return a line for each measured quantity."""
    n = verdict.evidence
    lines = [_validation_line(n), _probe_line(n)]
    if "gap" in n:
        lines.append(f"gap, validation − probe loss: {n['gap']:.3g}")
    if "chance_loss" in n:
        lines.append(f"{_REFERENCE_LINES[verdict.reference]}: {n['chance_loss']:.3g}")
    if "lr" in n:
        lines.append(f"learning rate: {n['lr']:.3g} at the end; {n['peak_lr']:.3g} at its peak")
    if "epochs" in n:
        done = f", {n['planned']:.0%} of the run" if n.get("planned", 1.0) < 1 else ""
        lines.append(f"measured: {n['validations']:.0f} validations in {n['epochs']:.3g} epochs{done}")
    return [line for line in lines if line]


def _validation_line(n: Numbers) -> str:
    parts = [f"{n['val_loss']:.3g} at the end"] if "val_loss" in n else []
    if "best_val_loss" in n:
        at = f" (epoch {n['best_epoch']:.3g})" if "best_epoch" in n else ""
        parts.append(f"{n['best_val_loss']:.3g} at its best{at}")
    if n.get("rise", 0.0) > 0:
        parts.append(f"up by {_with_noise(n, 'rise')} since then")
    if "val_fall" in n:
        parts.append(f"{_moved(n, 'val_fall')} since epoch {n['val_fall_since_epoch']:.3g}")
    return f"validation loss: {'; '.join(parts)}" if parts else ""


def _probe_line(n: Numbers) -> str:
    parts = [f"{n['probe_loss']:.3g} at the end"] if "probe_loss" in n else []
    if "lowest_probe_loss" in n:
        parts.append(f"{n['lowest_probe_loss']:.3g} at its lowest")
    if "probe_loss_at_best" in n:
        parts.append(f"{n['probe_loss_at_best']:.3g} where the validation was best")
        parts.append(f"{_moved(n, 'probe_fall')} since then")
    elif "probe_fall_since_epoch" in n:
        parts.append(f"{_moved(n, 'probe_fall')} since epoch {n['probe_fall_since_epoch']:.3g}")
    return f"probe loss, on training examples: {'; '.join(parts)}" if parts else ""


def _moved(n: Numbers, fall: str) -> str:
    return f"{'down' if n[fall] >= 0 else 'up'} by {_with_noise(n, fall)}"


def _with_noise(n: Numbers, key: str) -> str:
    return f"{abs(n[key]):.2g} ± {n[f'{key}_noise']:.2g}"
