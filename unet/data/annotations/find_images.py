"""Which image file is meant by the name that an annotation gives it."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unet.data.annotations.label_studio import without_upload_number
from unet.data.annotations.source import Entry
from unet.data.file_list import list_files
from unet.data.image_types import SUFFIXES
from unet.data.pairing import natural_key
from unet.runtime.text import join_some


@dataclass(kw_only=True)
class Matches:
    """Image files and their annotations.

    Args:
        entries: for each image file, by its path in the folder, its entries, perhaps none.
        missing: entries without image.
        errors: names that several files have.
    """

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    missing: list[Entry] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def list_images(folder: Path, is_excluded: Callable[[Path], bool]) -> list[str]:
    """List the paths of the images in a folder, relative to it, without those excluded.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of images; check the path")
    files = [path for path in map(Path, list_files(folder)) if not is_excluded(path)]
    images = [
        path.relative_to(folder).as_posix() for path in files if path.suffix.lower() in SUFFIXES
    ]
    if not images:
        raise ValueError(
            f"{folder}: contains no images (files that end in {', '.join(sorted(SUFFIXES))}); "
            "give the folder of the annotated images"
        )
    return sorted(images, key=lambda path: (natural_key(path), path))


def match_images(entries: Sequence[Entry], images: Sequence[str], folder: Path) -> Matches:
    """Find the file of each entry.

    The name that an annotation gives may be a path or an address of another machine, and may lack
    the ending: the file that has most of its last parts is meant.
    """
    found = Matches(entries={image: [] for image in images})
    ends: dict[str, list[str]] = defaultdict(list)
    for image in images:
        parts = _normal(image).split("/")
        stem = parts[-1].rpartition(".")[0]
        for i in range(len(parts)):
            head = parts[i:-1]
            for name in dict.fromkeys((parts[-1], stem)):
                ends["/".join([*head, name])].append(image)
    for entry in entries:
        names = (entry.image, without_upload_number(entry.image), entry.other)
        candidates = next(filter(None, (_find(name, ends) for name in names)), [])
        if not candidates:
            found.missing.append(entry)
        elif len(candidates) > 1:
            found.errors.append(
                f"{entry.place}: the image {entry.image} may be any of {join_some(candidates)} in "
                f"{folder}; rename all but one, or import the folders one by one"
            )
        else:
            found.entries[candidates[0]].append(entry)
    return found


def _find(name: str, ends: dict[str, list[str]]) -> list[str]:
    parts = [part for part in _normal(name).split("/") if part not in ("", ".", "..")]
    for i in range(len(parts)):
        if candidates := ends.get("/".join(parts[i:])):
            whole = [one for one in candidates if _normal(one) == "/".join(parts[i:])]
            return whole if len(whole) == 1 else candidates
    return []


def _normal(path: str) -> str:
    """Letters with accents have several codes; Windows separates folders by a backslash."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))
