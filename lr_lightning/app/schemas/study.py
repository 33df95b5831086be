"""Several runs in place of one."""

from dataclasses import dataclass, field


@dataclass
class StudyConfig:
    """A log grid of rates, each with several seeds, and one table of what the rate did."""

    low: float = 1e-4  # lowest rate
    high: float = 10.0  # highest rate
    points: int = 11  # rates from one to the other, evenly in their logarithm
    lrs: list[float] | None = None  # the rates themselves, in place of the grid
    reference: float | None = None  # the rate that the others are compared with; null: the middle one
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    level: float = 0.95  # of the confidence intervals


def rates(node: StudyConfig) -> list[float]:
    """The rates of a study, the lowest first; those of a grid to three digits."""
    if node.lrs is not None:
        return sorted(set(node.lrs))
    ratio = node.high / node.low
    return sorted({float(f"{node.low * ratio ** (i / (node.points - 1)):.3g}") for i in range(node.points)})


def reference(node: StudyConfig) -> float:
    """The rate that the others are compared with; of an even number of rates the upper one of the two in the middle."""
    every = rates(node)
    return every[len(every) // 2] if node.reference is None else node.reference
