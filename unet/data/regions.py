"""Masks of regions that are neither trained on nor scored."""

from collections.abc import Sequence
from pathlib import Path

from unet.data.file_list import list_files
from unet.data.pairing import Pair


def add_regions(pairs: Sequence[Pair], folder: str | None) -> list[Pair]:
    """Add STEM.png of a folder to the pairs that have one; None for no folder.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if folder is None:
        return list(pairs)
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"data.ignore_regions: there is no folder {folder}; correct it, or set it to null"
        )
    files = set(list_files(folder))
    paths = [(Path(folder) / f"{pair.stem}.png").as_posix() for pair in pairs]
    return [
        pair._replace(regions=path) if path in files else pair
        for pair, path in zip(pairs, paths, strict=True)
    ]
