"""What single schedules mean, beyond what test_torch.py and test_properties.py compare."""

from lr_lightning.schedules import (
    Clock,
    Step,
)


def test_step_in_epochs_of_changing_length() -> None:
    schedule, clock = Step("1 epoch", 0.5), Clock(40, epoch_starts=(0, 20, 30, 40))
    assert [schedule(step, clock) for step in (0, 19, 20, 29, 30, 39)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
