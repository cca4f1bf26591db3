"""Label Studio: one JSON file for all tasks, or one for each; polygons, boxes, ellipses, brushes.

Sources: "BrushLabels" and "Label Studio JSON format" of labelstud.io: coordinates are percent; a
brush is an RGBA image in run lengths of @thi.ng/rle-pack, whose alpha is the mask.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from unet.data.annotations.regions import Bitmap, Ellipse, Filled, Size
from unet.data.annotations.source import (
    Annotations,
    Entry,
    box_ring,
    counts,
    get,
    get_size,
    numbers,
    points,
    turned,
    wrong,
)

NAME = "Label Studio"
_SHAPES = ("polygon", "brush", "rectangle", "ellipse")
_HALF = 128  # of alpha: brushes have soft edges


def matches(data: Any) -> bool:
    """Whether a JSON value has this format."""
    tasks = data if isinstance(data, list) else [data]
    return bool(tasks) and all(
        isinstance(task, dict) and {"annotations", "data"} <= task.keys() for task in tasks
    )


def read(data: Any, path: Path) -> Annotations:
    """Read a JSON value of this format.

    Raises:
        ValueError: if a part of it has a wrong type.
    """
    found = Annotations()
    for i, task in enumerate(data if isinstance(data, list) else [data]):
        where = f"{path}: task {task.get('id', i)}"
        entry = Entry(_find_image(task, where), str(path))
        found.entries.append(entry)
        made = get(task, "annotations", list, where)
        if any(not isinstance(one, dict) for one in made):
            raise wrong(where, "annotations", made, "a list of objects")
        kept = [one for one in made if not one.get("was_cancelled")]
        if len(kept) > 1:
            found.notes["of tasks with several annotations, the last is used"] = None
        if not kept and task.get("predictions"):
            found.left_out.append((entry.image, "predictions without annotation"))
        for result in get(kept[-1], "result", list, where) if kept else []:
            _read_result(found, entry, result, where)
    return found


def _find_image(task: dict[str, Any], where: str) -> str:
    """Return the name of a task's image: that of the uploaded file, or the first of its data."""
    if isinstance(uploaded := task.get("file_upload"), str) and uploaded:
        return uploaded
    values = get(task, "data", dict, where)
    texts = [one for one in (values.get("image"), *values.values()) if isinstance(one, str)]
    if not texts:
        raise wrong(where, "data", values, "the path of an image")
    address = urlsplit(texts[0])
    # Local files are served as /data/local-files/?d=PATH.
    text = address.query.partition("d=")[2] or address.path
    return unquote(text) or texts[0]


def _read_result(found: Annotations, entry: Entry, result: Any, where: str) -> None:
    kind = get(result, "type", str, where)
    shape = kind.removesuffix("labels")
    if shape not in _SHAPES:
        found.left_out.append((entry.image, f"a result of type {kind}"))
        return
    value = get(result, "value", dict, where)
    names = value.get(kind) or value.get("labels") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise wrong(where, kind, names, "a list of labels")
    if not names:
        found.left_out.append((entry.image, f"a {shape} without label"))
        return
    if len(names) > 1:
        found.notes["of regions with several labels, the first is used"] = None
    size = get_size(result, "original_height", "original_width", where)
    if size is None:
        raise wrong(where, "original_height", None, "the size of the image in pixels")
    if result.get("image_rotation") not in (None, 0):
        found.left_out.append((entry.image, f"a {shape} of {names[0]} on a turned image"))
        return
    entry.size = size
    _add(found, entry, names[0], shape, value, where)


def _add(
    found: Annotations, entry: Entry, name: str, shape: str, value: dict[str, Any], where: str
) -> None:
    assert entry.size is not None
    height, width = entry.size
    percent = np.array([width, height]) / 100

    def values(*keys: str) -> list[float]:
        given: list[float] = numbers([value.get(key, 0) for key in keys], "value", where).tolist()
        return given

    match shape:
        case "polygon":
            found.add_polygon(entry, name, [points(value.get("points"), where) * percent])
        case "rectangle":
            x, y, *size, angle = values("x", "y", "width", "height", "rotation")
            ring = box_ring(x, y, size[0], size[1]) * percent
            found.add_polygon(entry, name, [turned(ring, ring[0], angle)])
        case "ellipse":
            x, y, rx, ry, angle = values("x", "y", "radiusX", "radiusY", "rotation")
            centre, radii = (x * percent[0], y * percent[1]), (rx * percent[0], ry * percent[1])
            if min(radii) > 0:
                found.add(entry, name, Ellipse(centre, radii, angle))
            else:
                found.left_out.append((entry.image, f'an ellipse "{name}" without radius'))
        case "brush":
            packed = counts(value.get("rle"), "rle", where)
            if packed.max(initial=0) > 255:
                raise wrong(where, "rle", int(packed.max()), "bytes")
            found.add(entry, name, _Brush(packed.astype(np.uint8).tobytes(), where))


@dataclass(frozen=True)
class _Brush:
    """An RGBA image in run lengths."""

    packed: bytes
    where: str

    def fill(self, size: Size) -> Filled:
        """Return the pixels that are not transparent; see `Region`."""
        alpha = _unpack(self.packed, size, self.where)
        return Bitmap(0, 0, alpha >= _HALF).fill(size)


def _unpack(packed: bytes, size: Size, where: str) -> np.ndarray:
    """Decode alpha (H, W) of RGBA in run lengths of rle-pack.

    A head has the number of values (32 bits), their bits less one (5 bits), and four widths less
    one (4 bits each). Each run has a bit that says whether it repeats one value, 2 bits that choose
    a width, its length less one in so many bits, and then that value, or all values.
    """
    bits = "".join(f"{byte:08b}" for byte in packed)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    values = np.zeros(size[0] * size[1] * 4, np.uint8)
    try:
        total, depth, widths = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
        done = 0
        if total != values.size or depth != 8:
            raise ValueError
        while done < total:
            repeats = read(1)
            length = read(widths[read(2)]) + 1
            if place + (8 if repeats else 8 * length) > len(bits) or done + length > total:
                raise ValueError
            if repeats:
                values[done : done + length] = read(8)
            else:
                values[done : done + length] = [read(8) for _ in range(length)]
            done += length
    except ValueError:
        shown = f"{len(packed)} bytes"
        raise wrong(where, "rle", shown, f"RGBA of {size[0]} x {size[1]} pixels") from None
    return values.reshape(*size, 4)[:, :, 3]


def without_upload_number(image: str) -> str:
    """Return a name without the eight digits and dash that precede uploaded files."""
    path = PurePosixPath(image)
    head, _, rest = path.name.partition("-")
    is_number = len(head) == 8 and set(head) <= set("0123456789abcdef")
    return str(path.with_name(rest)) if is_number and rest else image
