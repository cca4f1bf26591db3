"""Errors that the command line tells apart; no torch."""


class SampleError(ValueError):
    """No training sample could be made of a file, for a reason that its reader does not know."""


class WorkerError(ValueError):
    """A process that loads samples was killed."""


class LostProcessError(ValueError):
    """Another process of a distributed run is gone."""


class UnpredictedError(ValueError):
    """Some images were not predicted, for the reasons listed; all others were."""


class OutOfMemoryError(MemoryError):
    """Memory ran out; the message says what to change."""
