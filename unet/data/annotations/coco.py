"""COCO: one JSON file for all images; polygons or run lengths, both as pycocotools reads them.

Source: "Data format" of cocodataset.org; the masks are those of pycocotools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unet.data.annotations.outlines import Outline
from unet.data.annotations.regions import Filled, Size, is_outside
from unet.data.annotations.source import Annotations, Entry, counts, get, get_size, numbers, wrong
from unet.data.classes import Colour
from unet.runtime.optional import import_extra

NAME = "COCO"
PREFIX = "instances_"  # of the files of COCO itself, next to captions and keypoints
_CROWDS = (
    "crowds (iscrowd) are drawn below single objects, as their class, and each is numbered as one "
    "object"
)


def matches(data: Any) -> bool:
    """Whether a JSON value has this format; captions and panoptic masks are others."""
    if not isinstance(data, dict) or not {"images", "annotations", "categories"} <= data.keys():
        return False
    first = data["annotations"][:1] if isinstance(data["annotations"], list) else []
    return not any(
        {"caption", "segments_info"} & one.keys() for one in first if isinstance(one, dict)
    )


def read(data: Any, path: Path) -> Annotations:
    """Read a JSON value of this format.

    Raises:
        ValueError: if a part of it has a wrong type, or pycocotools is not installed.
    """
    import_extra("pycocotools", f"{path}, COCO annotations")
    found, entries = Annotations(), dict[Any, Entry]()
    names: dict[Any, str] = {}
    for i, category in enumerate(get(data, "categories", list, str(path))):
        where = f"{path}: categories[{i}]"
        name = get(category, "name", str, where)
        found.classes.setdefault(name, _colour(category.get("color")))
        names[get(category, "id", int, where)] = name
    for i, image in enumerate(get(data, "images", list, str(path))):
        where = f"{path}: images[{i}]"
        size = get_size(image, "height", "width", where) if isinstance(image, dict) else None
        entry = Entry(get(image, "file_name", str, where), str(path), size)
        entries[_id(image, "id", where)] = entry
    for i, annotation in enumerate(get(data, "annotations", list, str(path))):
        where = f"{path}: annotations[{i}]"
        number, category = (_id(annotation, key, where) for key in ("image_id", "category_id"))
        if number not in entries:
            found.left_out.append((f"image {number}", "an annotation of an image without entry"))
        elif category not in names:
            raise wrong(where, "category_id", category, "one of categories")
        else:
            _read_one(found, entries[number], names[category], annotation, where)
    found.entries = list(entries.values())
    return found


def _read_one(
    found: Annotations, entry: Entry, name: str, annotation: dict[str, Any], where: str
) -> None:
    segmentation = annotation.get("segmentation")
    is_crowd = annotation.get("iscrowd") == 1
    if not segmentation:
        found.left_out.append((entry.image, f'a box "{name}" without segmentation'))
        return
    if is_crowd:
        found.notes[_CROWDS] = None
    if isinstance(segmentation, list):
        polygons = [numbers(one, "segmentation", where) for one in segmentation]
        if any(len(one) % 2 for one in polygons):
            raise wrong(where, "segmentation", segmentation, "lists of x, y, x, y, ...")
        good = [one.tolist() for one in polygons if len(one) >= 6]
        if len(good) < len(polygons):
            found.left_out.append((entry.image, f'a polygon "{name}" with fewer than 3 points'))
        if not good:
            return
        segmentation = good
    else:
        segmentation = _check_runs(segmentation, where)
    found.add(entry, name, _Segmentation(segmentation, where), level=-1 if is_crowd else 0)


def _check_runs(segmentation: Any, where: str) -> dict[str, Any]:
    size = counts(get(segmentation, "size", list, where), "size", where).tolist()
    runs = segmentation.get("counts")
    if len(size) != 2:
        raise wrong(where, "size", size, "[height, width]")
    if isinstance(runs, str):
        return {"size": size, "counts": runs.encode("ascii", "replace")}
    if int(counts(runs, "counts", where).sum()) != size[0] * size[1]:
        raise wrong(where, "counts", runs, f"a sum of {size[0] * size[1]}, the pixels of size")
    return {"size": size, "counts": runs}


@dataclass(frozen=True)
class _Segmentation:
    """Polygons, each [x, y, x, y, ...], or run lengths."""

    values: Any
    where: str

    def fill(self, size: Size) -> Filled:
        """Return the pixels as pycocotools does; see `Region`."""
        tools = import_extra("pycocotools.mask", "COCO annotations")
        if isinstance(self.values, dict) and tuple(self.values["size"]) != size:
            height, width = self.values["size"]
            raise ValueError(
                f"{self.where}: got run lengths of {height} x {width} pixels, expected "
                f"{size[0]} x {size[1]} as the image; correct the image or the annotation"
            )
        try:
            if isinstance(self.values, dict) and isinstance(self.values["counts"], bytes):
                runs = self.values
                _check_compressed(runs["counts"], size)
            else:
                parts = tools.frPyObjects(self.values, *size)
                runs = tools.merge(parts) if isinstance(parts, list) else parts
            left, top, width, height = map(int, tools.toBbox(runs))
            mask = tools.decode(runs)[top : top + height, left : left + width]
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{self.where}: cannot be decoded ({error})") from error
        polygons = self.values if isinstance(self.values, list) else []
        is_cut = any(is_outside(np.reshape(one, (-1, 2)), size) for one in polygons)
        return Filled(top, left, mask.astype(bool), is_cut)


def _check_compressed(text: bytes, size: Size) -> None:
    """Raise ValueError unless compressed counts add up to the pixels, as pycocotools trusts them.

    Each count is a number of 5 bits in a character from 48, with a sign and a bit for "continued";
    from the fourth on it is the difference to the one before the last.
    """
    values: list[int] = []
    number = shift = 0
    for byte in text:
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError("the counts hold a wrong character")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (1 << shift) if bits & 16 else 0
            values.append(number + (values[-2] if len(values) > 2 else 0))
            number = shift = 0
    if shift or min(values, default=-1) < 0 or sum(values) != size[0] * size[1]:
        raise ValueError("the counts are not those of the size")


def _id(data: Any, key: str, where: str) -> Any:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, int | str):
        raise wrong(where, key, value, "a number")
    return value


def _colour(value: Any) -> Colour | None:
    is_colour = isinstance(value, list) and len(value) == 3
    if is_colour and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return value[0], value[1], value[2]
    return None


def write(
    images: Sequence[tuple[str, Size, Sequence[Outline]]], names: Sequence[str]
) -> dict[str, Any]:
    """Return the file of images (name, size, outlines); `names` are those of all classes but 0.

    COCO's polygons have no holes: objects with holes are run lengths.
    """
    annotations: list[dict[str, Any]] = []
    for number, (_, size, outlines) in enumerate(images, 1):
        for one in outlines:
            left, top = one.corner
            height, width = one.pixels.mask.shape
            rings = [[int(n) for point in ring for n in point] for ring in one.rings]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": one.class_id,
                "segmentation": rings if len(rings) == 1 else _to_runs(one, size),
                "area": int(one.pixels.mask.sum()),
                "bbox": [left, top, width, height],
                "iscrowd": 0,
            }
            annotations.append(annotation)
    return {
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            for number, (name, size, _) in enumerate(images, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def _to_runs(outline: Outline, size: Size) -> dict[str, Any]:
    mask = np.zeros(size, bool)
    outline.pixels.of(mask)[:] = outline.pixels.mask
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return {"size": [*size], "counts": [0, *lengths] if flat[0] else lengths}
