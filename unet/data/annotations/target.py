"""The folder of an imported data set, written completely or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unet.data.classes import Colour
from unet.runtime.files import check_writable
from unet.runtime.signals import stop_request

MARK = "imported.json"
VALIDATION = "val.txt"
_OWN = ("images", "masks", "instances", VALIDATION, MARK)
_BESIDE = ("", ".msk", ".aux.xml")  # files that belong to an image: itself, and GDAL's


class Target:
    """A folder `out` to write, which has its files when the context ends without error.

    Args:
        out: the folder.
        images: the folder of the images.
        overwrite: whether to replace an earlier import.

    Raises:
        FileExistsError: if `out` holds other files with these names.
    """

    def __init__(self, out: Path, images: Path, overwrite: bool) -> None:
        self.out, self.images = out, images
        self.in_place = images.resolve() == (out / "images").resolve()
        self._own = [name for name in _OWN if name != "images" or not self.in_place]
        check_writable(out)
        if taken := [out / name for name in self._own if (out / name).exists()]:
            if not _is_ours(out, self.in_place):
                raise FileExistsError(
                    f"{taken[0]}: exists, and no import has written it; choose another folder"
                )
            if not overwrite:
                raise FileExistsError(f"{taken[0]}: exists; pass overwrite=True to replace it")
        # In the same folder, so that files only have to be renamed.
        name = f".{out.name[:50]}.{secrets.token_hex(8)}.tmp"
        self._folder = out.resolve().parent / name

    def owns(self, path: Path) -> bool:
        """Whether a file is one of an import into this folder."""
        path, out = path.resolve(), self.out.resolve()
        return path.is_relative_to(out) and path.relative_to(out).parts[0] in self._own

    def __enter__(self) -> "Target":
        return self

    def __exit__(self, *_: object) -> None:
        with stop_request():  # a signal waits
            shutil.rmtree(self._folder, ignore_errors=True)

    def write_mask(self, image: str, ids: np.ndarray, palette: Sequence[Colour]) -> None:
        """Write the class ids (H, W) of an image as a PNG of indices, 255 for ignored pixels."""
        mask = Image.fromarray(ids)
        mask.putpalette([band for colour in palette for band in colour])
        mask.save(self._place("masks", image, ".png"))

    def write_label_image(self, image: str, numbers: np.ndarray) -> None:
        """Write numbered objects (H, W), int32, with 16 bits if that is enough."""
        if numbers.max(initial=0) < 65536:
            label_image = Image.fromarray(numbers.astype(np.uint16))
            label_image.save(self._place("instances", image, ".png"))
        else:
            Image.fromarray(numbers).save(self._place("instances", image, ".tif"))

    def add_image(self, image: str) -> None:
        """Link an image, or copy it where links are not possible, unless it is in its place."""
        for ending in () if self.in_place else _BESIDE:
            source = self.images / f"{image}{ending}"
            if source.exists():
                copy = self._place("images", f"{image}{ending}.", "")
                try:
                    copy.hardlink_to(source.resolve())
                except OSError:  # on another disk, or of another user
                    shutil.copyfile(source, copy)

    def write_validation(self, images: Sequence[str]) -> str | None:
        """Write the stems of validation images; return the name of the file, None for no images."""
        if not images:
            return None
        lines = "".join(f"{image.rpartition('.')[0]}\n" for image in images)
        path = self._folder / VALIDATION
        path.write_text(lines, encoding="utf-8", errors="surrogateescape")
        return VALIDATION

    def finish(self, mark: Mapping[str, Any]) -> None:
        """Move all files into their place; `mark` says what they are."""
        mark = {**mark, "images_in_place": self.in_place}
        text = json.dumps(mark, indent=2)
        (self._folder / MARK).write_text(f"{text}\n", encoding="utf-8")
        self.out.mkdir(parents=True, exist_ok=True)
        old = self._folder / "old"
        old.mkdir()
        with stop_request():  # a signal waits
            for name in self._own:
                if (self.out / name).exists():
                    (self.out / name).rename(old / name)
            for name in self._own:
                if (self._folder / name).exists():
                    (self._folder / name).rename(self.out / name)

    def _place(self, folder: str, image: str, ending: str) -> Path:
        path = self._folder / folder / f"{image.rpartition('.')[0]}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _is_ours(out: Path, in_place: bool) -> bool:
    """Whether an earlier import wrote all of its files, so that they may be replaced."""
    try:
        mark = json.loads((out / MARK).read_text(encoding="utf-8"))
        return in_place or not mark["images_in_place"]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def source_folder(source: Path) -> Path:
    """Return the folder of annotations, where images are looked for if no other is given."""
    return source if source.is_dir() else Path(os.path.dirname(source) or ".")  # noqa: PTH120
