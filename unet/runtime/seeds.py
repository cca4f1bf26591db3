"""The first word of every seed."""

from enum import IntEnum


class Stream(IntEnum):
    """What random numbers are for: seeds that begin with different words never draw the same."""

    SPLIT = 1
    ORDER = 2
    AUGMENTATION = 3
    STEP = 4
