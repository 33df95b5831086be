"""The thread that sends while training goes on, and its patience with a store that does not answer."""

import logging
import threading
import time

from lr_lightning.tracking.errors import Rejected, StoreUnavailable, TrackingError
from lr_lightning.tracking.sender import Abandoned, Sender

__all__ = ["SenderThread"]

log = logging.getLogger(__name__)


class SenderThread(threading.Thread):
    """Runs a :class:`Sender` in the background, so that training never waits for the store.

    While the store does not answer it warns once, waits and tries again, ever more rarely, until it is closed.

    Args:
        sender: What sends.
        first_wait: Seconds before the first retry; doubled each time.
        longest_wait: Seconds between two retries at most.
        patience: How many attempts may fail in a row before it warns. A database file that is busy is no news.
    """

    def __init__(self, sender: Sender, first_wait: float = 1.0, longest_wait: float = 30.0, patience: int = 1) -> None:
        super().__init__(name="lr_lightning-sender", daemon=True)
        self.sender = sender
        self.contact = threading.Event()
        """Set when the store has answered, or has failed to, for the first time."""
        self.error: TrackingError | StoreUnavailable | None = None
        """Why nothing is being sent just now; None while all is well."""
        self.disk_error: OSError | None = None
        """What the run's own disk has said, where that is why, while the store is well."""
        self._first_wait, self._longest_wait = first_wait, longest_wait
        self._work = threading.Event()
        self._closing = threading.Event()
        self._drain = self._deadline = float("inf")
        self._patience = patience
        self._failures = 0
        self._warned = False

    def wake(self) -> None:
        """Say that there is something new to send."""
        self._work.set()

    def close(self, patience: float) -> bool:
        """Send what is left, then stop. A call that the store never answers is abandoned, and leaves no mark.

        Args:
            patience: Seconds that may pass without the store taking anything. While it takes rows, they are all sent.

        Returns:
            Whether the store has everything.
        """
        self._drain = patience
        self._deadline = time.monotonic() + patience
        self._work.set()  # before the other: a thread that sees it closing has seen the last work too
        self._closing.set()
        while self.is_alive() and (left := self._deadline - time.monotonic()) > 0:
            self.join(left)
        self.sender.abandon()
        return not self.is_alive() and self.sender.pending() == 0

    def run(self) -> None:
        """Send until closed and empty, or until it is certain that trying again cannot help."""
        wait = self._first_wait
        while True:
            self._work.clear()
            try:
                while self.sender.send_next():
                    self._deadline = time.monotonic() + self._drain
                self._recovered()
                wait = self._first_wait
            except Abandoned:
                return
            except StoreUnavailable as error:
                self._failed(error)
                if time.monotonic() + min(wait, self._first_wait) > self._deadline:
                    return
                self._pause(wait)
                wait = min(2 * wait, self._longest_wait)
                continue
            except (TrackingError, Rejected, OSError) as error:
                problem = error if isinstance(error, TrackingError) else TrackingError(str(error))
                self.disk_error = error if isinstance(error, OSError) else None
                if self.contact.is_set():
                    log.warning("nothing more is sent to the tracking store: %s. Rows are kept locally.", problem)
                self.error = problem
                self.contact.set()
                return
            self.contact.set()
            if self._closing.is_set() and not self._work.is_set():
                return
            self._work.wait()

    def _recovered(self) -> None:
        if self.error is not None:
            log.info("the tracking store answers again; everything was sent")
        self.error = None
        self._failures = 0

    def _failed(self, error: StoreUnavailable) -> None:
        self.error = error
        self.contact.set()
        self._failures += 1
        if not self._warned and self._failures >= self._patience:
            self._warned = True
            log.warning(
                "the tracking store does not answer (%s). Training goes on; rows are kept and sent later.", error
            )

    def _pause(self, seconds: float) -> None:
        """Wait before a retry; when closing, only the shortest time, since there is a deadline."""
        if not self._closing.wait(seconds):
            return
        threading.Event().wait(min(seconds, self._first_wait))
