"""A run logger that records nothing, for runs that are not tracked."""

from lr_lightning.tracking.base import RunLogger
from lr_lightning.tracking.local_log import History, Record


class NoLogger(RunLogger):
    """Takes everything and writes nothing, but holds the lock of the output directory against a second run."""

    def _open(self, resume: bool) -> History:
        return History()

    def _write(self, records: list[Record]) -> None:
        """Nothing is kept."""

    def _sync(self) -> None:
        """Nothing was written."""

    def _close(self) -> None:
        """Nothing is open."""

    @property
    def name(self) -> str:
        """The output directory's name."""
        return self.output_dir.name

    @property
    def version(self) -> str:
        """The output directory's name."""
        return self.output_dir.name
