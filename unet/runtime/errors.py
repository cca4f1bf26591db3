"""Errors that the command line tells apart by class. Imports no torch."""

import re

# Messages of torch on CUDA, of its CPU allocator, and of NumPy.
_OUT_OF_MEMORY = re.compile("out of memory|allocate memory|not enough memory|Unable to allocate")


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's RuntimeErrors are told apart by their messages."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
