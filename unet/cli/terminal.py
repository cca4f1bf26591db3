"""What a terminal shows: options by their names, and no control characters."""

import sys
from typing import TextIO

from unet.runtime.text import printable, shorten

_LONGEST_LINE = 2000  # of an error message

# Arguments of Python functions, as messages name them, and their options.
_OPTIONS = {
    "all_folds=True": "--folds all",
    "empty=background": "--empty background",
    "empty=skip": "--empty skip",
    "label_images=DIR": "--labels DIR",
    "images=DIR": "--images DIR",
    "masks=DIR": "--masks DIR",
    "max_loss=IOU": "--max-loss IOU",
    "max_missed=RATE": "--max-missed RATE",
    "objects=CLASS": "--instances CLASS",
    "objects=True": "--instances",
    "order=area": "--order area",
    "overwrite=True": "--overwrite",
    "resume=True": "--resume",
    "thresholds=True": "--threshold",
}


class Terminal:
    """A stream that shows all texts `for_terminal`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        self._stream.write(for_terminal(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def for_terminal(text: str) -> str:
    """Replace arguments by options, and escape control characters."""
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return printable(text, keep="\n")


def print_error(text: str) -> None:
    """Print to stderr, without the middle of very long lines."""
    lines = [shorten(line, _LONGEST_LINE) for line in text.splitlines()]
    print(for_terminal("\n".join(lines)), file=sys.stderr)
