"""ImageJ and Fiji: a ZIP file for each image, as the ROI Manager saves it, or a single .roi file.

Sources: RoiDecoder and ShapeRoi of ImageJ. A composite ROI is a path of rings; what an odd number
of them goes around is inside. Corners are those of pixels.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from unet.data.annotations.outlines import Outline
from unet.data.annotations.regions import Ellipse, Filled, Size, fill_ring, is_outside
from unet.data.annotations.source import (
    CLASSES,
    OBJECT,
    Annotations,
    Entry,
    box_ring,
    listed_classes,
)
from unet.data.classes import Colour
from unet.runtime.optional import import_extra

NAME = "ImageJ"
SUFFIXES = (".zip", ".roi")
_CLASS = "class"  # a property of a ROI
LARGEST = 32767  # pixels: coordinates have 16 bits
_MOVE, _LINE, _CLOSE = 0, 1, 4  # of a path


def read(path: Path) -> Annotations:
    """Read a ZIP file of ROIs, or a single one.

    Raises:
        ValueError: if it is none, or roifile is not installed.
    """
    tools = import_extra("roifile", f"{path}, ImageJ ROIs")
    found, entry = Annotations(), Entry(path.stem, str(path))
    found.entries.append(entry)
    files = {path.name: path.read_bytes()}
    try:
        if path.suffix.lower() == ".zip":
            with ZipFile(path) as file:
                names = [name for name in file.namelist() if not name.startswith("__MACOSX")]
                if not all(name.lower().endswith((".roi", "/")) for name in names):
                    raise ValueError(f"{path}: is a ZIP file of other files; unpack it first")
                files = {name: file.read(name) for name in names if not name.endswith("/")}
                found.classes = listed_classes(_load(file.comment))
    except (BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as ZIP ({error}); save the ROIs again") from error
    slices = set()
    for name, data in files.items():
        try:
            roi = tools.ImagejRoi.frombytes(data)
            _add(found, entry, roi, tools.ROI_TYPE)
        except (ValueError, struct.error, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path}: {name}: cannot be read as an ImageJ ROI ({error}); save it again"
            ) from error
        slices.add((roi.position, roi.c_position, roi.z_position, roi.t_position))
    if len(slices) > 1:
        found.notes[f"{path}: ROIs of {len(slices)} slices of a stack are drawn together"] = None
    return found


def _load(comment: bytes) -> Any:
    try:
        return json.loads(comment)
    except ValueError:
        return None


def _add(found: Annotations, entry: Entry, roi: Any, types: Any) -> None:
    given = roi.properties.get(_CLASS)
    name = OBJECT if given is None and not roi.group else str(given or f"group {roi.group}")
    if name != OBJECT and (colour := roi.hexcolor(roi.stroke_color)):
        found.classes[name] = found.classes.get(name) or _colour(colour)
    left, top = (roi.xd, roi.yd) if roi.subpixelrect else (roi.left, roi.top)
    width, height = roi.right - roi.left, roi.bottom - roi.top
    if roi.subpixelrect:
        width, height = roi.widthd, roi.heightd
    match roi.roitype:
        case types.RECT if roi.composite:
            rings = [np.asarray(ring, float) for ring in roi.coordinates(multi=True)]
            found.add(entry, name, _Composite(tuple(ring for ring in rings if len(ring) > 2)))
        case types.RECT:
            found.add_polygon(entry, name, [box_ring(left, top, width, height)])
        case types.OVAL if width > 0 and height > 0:
            centre = (left + width / 2, top + height / 2)
            found.add(entry, name, Ellipse(centre, (width / 2, height / 2)))
        case types.POLYGON | types.FREEHAND | types.TRACED:
            found.add_polygon(entry, name, [np.asarray(roi.coordinates(), float)])
        case kind:
            found.left_out.append((entry.image, f'a {kind.name.lower()} "{name}"'))


def _colour(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


@dataclass(frozen=True)
class _Composite:
    """Rings, each (N, 2) of x, y, in any order."""

    rings: tuple[np.ndarray, ...]

    def fill(self, size: Size) -> Filled:
        """Return the pixels that an odd number of rings goes around; see `Region`."""
        inside = np.zeros(size, bool)
        for ring in self.rings:
            inside ^= fill_ring(ring, size)
        corners = np.concatenate([np.zeros((1, 2)), *self.rings])
        return Filled(0, 0, inside, is_outside(corners, size))


def write(outlines: Sequence[Outline], names: Sequence[str], colours: Sequence[Colour]) -> bytes:
    """Return the ZIP file of an image; names and colours are those of all classes but 0.

    Objects with holes are composite ROIs. The group of a ROI is its class.
    """
    tools = import_extra("roifile", "ImageJ ROIs")
    stream = BytesIO()
    with ZipFile(stream, "w") as file:
        file.comment = json.dumps({CLASSES: [*names]}).encode()
        for number, one in enumerate(outlines, 1):
            name = names[one.class_id - 1]
            roi = tools.ImagejRoi.frompoints(one.rings[0].astype(int), name=f"{name} {number}")
            roi.roitype = tools.ROI_TYPE.TRACED
            if len(one.rings) > 1:
                path = [step for ring in one.rings for step in _steps(ring)]
                roi.roitype, roi.n_coordinates = tools.ROI_TYPE.RECT, 0
                roi.multi_coordinates = np.array(path, np.float32)
                roi.shape_roi_size = len(path)
            roi.group, roi.stroke_color = one.class_id, bytes([255, *colours[one.class_id - 1]])
            roi.properties = {_CLASS: name}
            file.writestr(f"{number:05d}.roi", roi.tobytes())
    return stream.getvalue()


def _steps(ring: np.ndarray) -> list[float]:
    """Return a ring as a part of a path."""
    moves = [[_LINE if i else _MOVE, *point] for i, point in enumerate(ring.tolist())]
    return [*(number for move in moves for number in move), _CLOSE]
