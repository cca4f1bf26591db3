"""Pictures in a notebook."""

import sys

from PIL.Image import Image

_shown: set[str] = set()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return "ipykernel" in sys.modules


def show_picture(picture: Image, key: str) -> None:
    """Show a picture below the cell, in place of the last one with the same key."""
    from IPython.display import display  # a notebook has it

    display(picture, display_id=key, update=key in _shown)  # type: ignore[no-untyped-call]
    _shown.add(key)
