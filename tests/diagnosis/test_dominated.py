"""When a run is clearly worse than its peers."""

import pytest

from lr_lightning.diagnosis.early_stopping import dominated

PEERS = [[0.3, 0.5, 0.90], [0.3, 0.5, 0.88], [0.3, 0.5, 0.91], [0.1, 0.1, 0.86]]


@pytest.mark.parametrize(
    ("own", "peers", "ends"),
    [
        ([0.1, 0.1, 0.1], PEERS, True),
        ([0.3, 0.5, 0.885], PEERS, False),  # a little below the median
        ([0.95, 0.1, 0.1], PEERS, False),  # its best so far counts
        ([0.1, 0.1, 0.1], PEERS[:3], False),  # too few to tell
        ([0.1], [[0.9]] * 4, True),
        ([], PEERS, False),
        ([0.1, 0.1, 0.1, 0.1], PEERS, False),  # no peer has come as far
        ([float("nan")] * 3, PEERS, True),
        ([0.2, 0.7, 0.2, 0.7, 0.2, 0.7], [[0.9] * 6] * 4, False),  # jitters more than it is behind
    ],
)
def test_dominated(own: list[float], peers: list[list[float]], ends: bool) -> None:
    assert (dominated(own, peers, higher=True) is not None) is ends
    flipped = [[-v for v in peer] for peer in peers]
    assert (dominated([-v for v in own], flipped, higher=False) is not None) is ends
