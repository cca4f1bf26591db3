"""VGG Image Annotator: one JSON or CSV file for all images, a project or exported annotations.

Source: the file format of VIA 2, and of version 1, whose regions are an object instead of a list.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from unet.data.annotations.regions import Ellipse
from unet.data.annotations.source import OBJECT, Annotations, Entry, box_ring, get, numbers, wrong

NAME = "VIA"
_CLASS_ATTRIBUTES = ("class", "classes", "label", "labels", "category", "type", "name", "object")


def matches(data: Any) -> bool:
    """Whether a JSON value has this format."""
    if not isinstance(data, dict) or not data:
        return False
    if "_via_img_metadata" in data:
        return True
    return all(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in data.values()
    )


def read(data: Any, path: Path) -> Annotations:
    """Read a JSON value of this format.

    Raises:
        ValueError: if a part of it has a wrong type.
    """
    found, where = Annotations(), str(path)
    files = data.get("_via_img_metadata", data)
    if not isinstance(files, dict):
        raise wrong(where, "_via_img_metadata", files, "an object")
    parsed: list[tuple[Entry, dict[str, Any], str]] = []
    for key, file in files.items():
        entry = Entry(get(file, "filename", str, f"{where}: {key}"), where)
        found.entries.append(entry)
        regions = file.get("regions")
        regions = list(regions.values()) if isinstance(regions, dict) else regions
        if not isinstance(regions, list):
            raise wrong(f"{where}: {key}", "regions", regions, "a list")
        for i, region in enumerate(regions):
            parsed.append((entry, region, f"{where}: {key}: regions[{i}]"))
    attribute = _choose_attribute(found, parsed)
    for entry, region, place in parsed:
        shape = get(region, "shape_attributes", dict, place)
        _add(found, entry, _class_name(region, attribute), shape, place)
    return found


def is_csv(path: Path) -> bool:
    """Whether a CSV file has this format."""
    with path.open("rb") as file:
        return b"region_shape_attributes" in file.readline()


def read_csv(path: Path) -> Annotations:
    """Read annotations that were exported as CSV, a row for each region.

    Raises:
        ValueError: if a part of it has a wrong type.
    """
    files: dict[str, Any] = {}
    with path.open(newline="", encoding="utf-8-sig") as lines:
        try:
            for row in csv.DictReader(lines):
                name = row["filename"]
                regions = files.setdefault(name, {"filename": name, "regions": []})["regions"]
                shape = json.loads(row["region_shape_attributes"])
                if shape:  # an image without regions has a row, too
                    attributes = json.loads(row["region_attributes"])
                    regions.append({"shape_attributes": shape, "region_attributes": attributes})
        except (csv.Error, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: cannot be read as CSV of VIA ({error}); export the annotations again"
            ) from error
    return read(files, path)


def _choose_attribute(found: Annotations, parsed: list[tuple[Entry, dict[str, Any], str]]) -> str:
    """Return the region attribute that is the class, and note it; empty if there is none."""
    names = [name for _, region, place in parsed for name in _attributes(region, place)]
    names = list(dict.fromkeys(names))
    usual = [name for name in names if name.lower() in _CLASS_ATTRIBUTES]
    chosen = (usual or names or [""])[0]
    if chosen:
        others = f", not {', '.join(name for name in names if name != chosen)}"
        found.notes[f"the class is the attribute {chosen}{others if len(names) > 1 else ''}"] = None
    else:
        found.notes[f"the regions have no attribute: their class is {OBJECT}"] = None
    return chosen


def _attributes(region: Any, place: str) -> dict[str, Any]:
    return get(region, "region_attributes", dict, place)


def _class_name(region: dict[str, Any], attribute: str) -> str:
    value = region["region_attributes"].get(attribute)
    if isinstance(value, dict):  # checkboxes
        value = " ".join(name for name, is_set in value.items() if is_set)
    return str(value).strip() if value not in (None, "") else OBJECT


def _add(found: Annotations, entry: Entry, name: str, shape: dict[str, Any], place: str) -> None:
    def values(*keys: str) -> list[float]:
        given: list[float] = numbers(
            [shape.get(key) for key in keys], ", ".join(keys), place
        ).tolist()
        return given

    match kind := shape.get("name"):
        case "polygon" | "polyline":
            columns = [
                numbers(shape.get(key), key, place) for key in ("all_points_x", "all_points_y")
            ]
            if len(columns[0]) != len(columns[1]):
                raise wrong(place, "all_points_x", len(columns[0]), "as many as all_points_y")
            ring = np.stack(columns, 1)
            if kind == "polyline" and not _is_closed(ring):
                found.left_out.append((entry.image, f'an open polyline "{name}"'))
                return
            found.add_polygon(entry, name, [ring])
        case "rect":
            found.add_polygon(entry, name, [box_ring(*values("x", "y", "width", "height"))])
        case "circle" | "ellipse":
            keys = ("r", "r") if kind == "circle" else ("rx", "ry")
            x, y, *radii = values("cx", "cy", *keys)
            if min(radii) <= 0:
                found.left_out.append((entry.image, f'a {kind} "{name}" without radius'))
            else:
                angle = values("theta")[0] if "theta" in shape else 0.0  # radians
                region = Ellipse((x, y), (radii[0], radii[1]), float(np.rad2deg(angle)))
                found.add(entry, name, region)
        case _:
            found.left_out.append((entry.image, f'a {kind} "{name}"'))


def _is_closed(ring: np.ndarray) -> bool:
    """Whether a line goes around a region: its ends are nearer than 5 % of its length."""
    sides = np.hypot(*(ring - np.roll(ring, 1, axis=0)).T)
    return bool(sides[:1].sum() <= 0.05 * sides[1:].sum())
