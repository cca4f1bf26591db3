"""LabelMe: a JSON file for each image; polygons, rectangles, circles and masks.

Source: the files that labelme 5 and 6 write; a mask is a PNG in base64, in the box of its points.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unet.data.annotations.outlines import Outline
from unet.data.annotations.regions import Bitmap, Ellipse, Size
from unet.data.annotations.source import (
    CLASSES,
    OBJECT,
    Annotations,
    Entry,
    get,
    get_size,
    listed_classes,
    points,
    wrong,
)

NAME = "LabelMe"


def matches(data: Any) -> bool:
    """Whether a JSON value has this format."""
    return isinstance(data, dict) and "shapes" in data and "imagePath" in data


def read(data: Any, path: Path) -> Annotations:
    """Read a JSON value of this format.

    Raises:
        ValueError: if a part of it has a wrong type.
    """
    found, where = Annotations(classes=listed_classes(data)), str(path)
    size = get_size(data, "imageHeight", "imageWidth", where)
    # Renamed together, image and annotation still belong to each other.
    entry = Entry(get(data, "imagePath", str, where), where, size, other=path.stem)
    found.entries.append(entry)
    for i, shape in enumerate(get(data, "shapes", list, where)):
        _read_shape(found, entry, shape, f"{where}: shapes[{i}]")
    return found


def _read_shape(found: Annotations, entry: Entry, shape: Any, where: str) -> None:
    name = get(shape, "label", str, where) or OBJECT
    corners = points(shape.get("points"), where)
    group = shape.get("group_id")
    options = {} if group is None else {"group": (name, repr(group))}
    match shape.get("shape_type") or "polygon", len(corners):
        case "polygon", _:
            found.add_polygon(entry, name, [corners], **options)
        case "rectangle", 2:
            (left, top), (right, bottom) = corners
            ring = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            found.add_polygon(entry, name, [ring], **options)
        case "oriented_rectangle", 4:
            found.add_polygon(entry, name, [corners], **options)
        case "circle", 2:
            radius = float(np.hypot(*(corners[1] - corners[0])))
            if radius > 0:
                x, y = corners[0].tolist()
                found.add(entry, name, Ellipse((x, y), (radius, radius)), **options)
            else:
                found.left_out.append((entry.image, f'a circle "{name}" without radius'))
        case "mask", 2:
            mask = _read_mask(get(shape, "mask", str, where), where)
            left, top = corners[0].astype(int).tolist()
            found.add(entry, name, Bitmap(top, left, mask), **options)
        case kind, number:
            found.left_out.append((entry.image, f'a {kind} "{name}" ({number} points)'))


def _read_mask(text: str, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            return np.asarray(image.convert("L")) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise wrong(where, "mask", text, "a PNG in base64") from error


def write(
    image_path: str, size: Size, outlines: Sequence[Outline], names: Sequence[str]
) -> dict[str, Any]:
    """Return the file of an image; `names` are those of all classes but 0.

    LabelMe's polygons have no holes: objects with holes are masks.
    """
    shapes = []
    for one in outlines:
        left, top = one.corner
        height, width = one.pixels.mask.shape
        corners, mask = one.rings[0].tolist(), None
        if len(one.rings) > 1:
            corners = [[left, top], [left + width - 1, top + height - 1]]
            stream = io.BytesIO()
            Image.fromarray(one.pixels.mask.astype(np.uint8) * np.uint8(255)).save(stream, "PNG")
            mask = base64.b64encode(stream.getvalue()).decode()
        shape = {
            "label": names[one.class_id - 1],
            "points": corners,
            "group_id": None,
            "description": "",
            "shape_type": "polygon" if mask is None else "mask",
            "flags": {},
            "mask": mask,
        }
        shapes.append(shape)
    return {
        "version": "5.5.0",  # of labelme, whose files have this form since
        "flags": {},
        CLASSES: [*names],
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }
