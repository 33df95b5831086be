"""Several runs in place of one."""

from dataclasses import dataclass, field


@dataclass
class StudyConfig:
    """A log grid of rates, each with several seeds, and one table of what the rate did."""

    low: float = 1e-4  # lowest rate
    high: float = 10.0  # highest rate
    points: int = 11  # rates from one to the other, evenly in their logarithm
    lrs: list[float] | None = None  # the rates themselves, in place of the grid
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    level: float = 0.95  # of the confidence intervals
