"""What can go wrong between a run and its store, as three exceptions."""


class TrackingError(ValueError):
    """The store, the run or the output directory cannot be used as asked. Trying again will not help."""


class RunningError(TrackingError):
    """Another live process holds the run or its output directory."""


class NoSuchRun(TrackingError):
    """The store knows no run of that id."""


class StoreUnavailable(RuntimeError):
    """The store does not answer, or is busy. The same call may succeed later."""


class Rejected(RuntimeError):
    """The store refuses the content of a batch; sending it again unchanged will not help."""
