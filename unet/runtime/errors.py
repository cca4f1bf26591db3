"""Errors that the command line tells apart by class. Imports no torch."""


class SampleError(ValueError):
    """A training sample could not be made of a file, for an unexpected reason."""


class WorkerError(ValueError):
    """A worker process of the data loader was killed."""


class LostProcessError(ValueError):
    """Another process of a distributed run has ended."""


class UnpredictedError(ValueError):
    """Some images were not predicted; the message lists them with reasons."""


class OutOfMemoryError(MemoryError):
    """Memory ran out; the message says which settings to change."""
