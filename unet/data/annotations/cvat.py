"""CVAT for images 1.1: one XML file for all images; polygons, boxes, ellipses and masks.

Source: "XML annotation format" of docs.cvat.ai; the counts of a mask run along the rows of its box.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from unet.data.annotations.regions import Ellipse, Runs, runs_of_counts
from unet.data.annotations.source import (
    OBJECT,
    SPLITS,
    Annotations,
    Entry,
    box_ring,
    counts,
    get_size,
    numbers,
    turned,
    wrong,
)
from unet.data.classes import Colour

NAME = "CVAT"
_AS_IMAGES = 'export it from CVAT as "CVAT for images 1.1"'


def read(path: Path) -> Annotations:
    """Read an XML file.

    Raises:
        ValueError: if it is none of this format, or a part of it has a wrong type.
    """
    try:
        root = ElementTree.parse(path).getroot()  # noqa: S314 (expat limits the growth of entities)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(
            f"{path}: cannot be read as XML ({error}), perhaps it is cut off; {_AS_IMAGES}"
        ) from error
    if root.tag != "annotations":
        raise ValueError(f"{path}: got XML of {root.tag}, expected annotations; {_AS_IMAGES}")
    if root.find("track") is not None:
        raise ValueError(f"{path}: got tracks of a video, expected images; {_AS_IMAGES}")
    found = Annotations()
    for label in root.iterfind("meta//labels/label"):
        if name := label.findtext("name"):
            found.classes.setdefault(name, _colour(label.findtext("color") or ""))
    for i, image in enumerate(root.iterfind("image")):
        where = f"{path}: image {i}"
        name = image.get("name")
        if name is None:
            raise wrong(where, "name", name, "the name of a file")
        size = get_size(image.attrib, "height", "width", where)
        if subset := image.get("subset"):  # of a project, whose images are in such folders
            name = f"{subset}/{name}"
            if split := SPLITS.get(subset.lower()):
                found.splits[subset] = split
        entry = Entry(name, str(path), size)
        found.entries.append(entry)
        for j, shape in enumerate(image):
            _add(found, entry, shape, f"{where} ({name}): shape {j}")
    return found


def _add(found: Annotations, entry: Entry, shape: Any, where: str) -> None:
    def values(*keys: str) -> list[float]:
        given = [shape.get(key, "0" if key == "rotation" else None) for key in keys]
        as_numbers: list[float] = numbers(given, ", ".join(keys), where).tolist()
        return as_numbers

    name = shape.get("label") or OBJECT
    group = shape.get("group_id")
    options: dict[str, Any] = {"level": values("z_order")[0] if "z_order" in shape.attrib else 0}
    if group not in (None, "0"):
        options["group"] = (name, group)
    match shape.tag:
        case "polygon":
            pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
            flat = numbers([one for pair in pairs for one in pair], "points", where)
            if {len(pair) for pair in pairs} != {2}:
                raise wrong(where, "points", shape.get("points"), "x,y;x,y;...")
            found.add_polygon(entry, name, [flat.reshape(-1, 2)], **options)
        case "box":
            left, top, right, bottom, angle = values("xtl", "ytl", "xbr", "ybr", "rotation")
            ring = box_ring(left, top, right - left, bottom - top)
            found.add_polygon(entry, name, [turned(ring, ring.mean(0), angle)], **options)
        case "ellipse":
            x, y, rx, ry, angle = values("cx", "cy", "rx", "ry", "rotation")
            if min(rx, ry) > 0:
                found.add(entry, name, Ellipse((x, y), (rx, ry), angle), **options)
            else:
                found.left_out.append((entry.image, f'an ellipse "{name}" without radius'))
        case "mask":
            box = [shape.get(key) for key in ("top", "left", "height", "width")]
            top, left, height, width = counts(box, "top, left, height, width", where).tolist()
            given = [one.strip() for one in (shape.get("rle") or "").split(",")]
            lengths = counts(given, "rle", where)
            if int(lengths.sum()) != height * width:
                raise wrong(where, "rle", int(lengths.sum()), f"a sum of {height * width} pixels")
            runs = Runs(*runs_of_counts(lengths), by_column=False, box=(top, left, height, width))
            found.add(entry, name, runs, **options)
        case kind:
            found.left_out.append((entry.image, f'a {kind} "{name}"'))


def _colour(text: str) -> Colour | None:
    digits = text.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        return None
    return red, green, blue
