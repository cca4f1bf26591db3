"""All files in a folder."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from unet.data.image_types import SUFFIXES

_SUFFIXES = tuple(SUFFIXES)


def list_files(folder: str | Path, above: tuple[str | Path, ...] = ()) -> Iterator[str]:
    """List all files in a folder and its subfolders, in no particular order.

    Hidden files and the folder `__MACOSX` of archives are left out.

    Subfolders that cannot be listed, or are named as an image and hold none, and links that lead
    nowhere are in the list, too: reading them says what is wrong.
    """
    above = (*above, folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = entry.path.replace(os.sep, "/").removeprefix("./")
            if not _is_folder(entry):
                yield path
            # A link may lead back to a folder that contains it.
            elif not entry.is_symlink() or not _leads_back(entry.path, above):
                try:
                    within = list_files(entry.path, above)
                    if not is_named_as_image(path):
                        yield from within
                        continue
                    files = list(within)
                    yield from files
                    if not any(map(is_named_as_image, files)):
                        yield path
                except PermissionError:
                    yield path


def is_named_as_image(path: str) -> bool:
    """Whether a name ends as those of images do."""
    return path.lower().endswith(_SUFFIXES)


def _leads_back(link: str, above: Iterable[str | Path]) -> bool:
    return os.path.realpath(link) in map(os.path.realpath, above)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
