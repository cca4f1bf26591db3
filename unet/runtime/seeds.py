"""Streams of random numbers."""

from enum import IntEnum


class Stream(IntEnum):
    """First word of every seed, so that different uses draw different random numbers."""

    SPLIT = 1
    ORDER = 2
    AUGMENTATION = 3
    STEP = 4
    TRANSFORM = 5
