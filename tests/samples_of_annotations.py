"""The same scene in the files of every annotation tool: two cells and a nucleus on one of them."""

import base64
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from PIL import Image

SIZE = (24, 32)
BOXES = [("cell", (2, 3, 10, 9)), ("nucleus", (4, 5, 7, 8)), ("cell", (20, 2, 30, 8))]


def expected_ids(order: tuple[str, ...] = ("cell", "nucleus")) -> np.ndarray:
    ids = np.zeros(SIZE, np.uint8)
    for name, (left, top, right, bottom) in BOXES:
        ids[top:bottom, left:right] = order.index(name) + 1
    return ids


def ring(box: tuple[int, int, int, int]) -> list[list[float]]:
    left, top, right, bottom = box
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def box_mask(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def write_image(folder: Path, name: str = "a.png", size: tuple[int, int] = SIZE) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([*name.encode()]).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def write_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def counts_of(mask: np.ndarray) -> list[int]:
    """Counts of pixels outside and inside in turn, row by row."""
    flat = mask.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def coco(annotations: list[dict[str, Any]], name: str = "a.png") -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": name, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "cell"}, {"id": 5, "name": "nucleus"}],
        "annotations": [{"id": i, "image_id": 7, **one} for i, one in enumerate(annotations, 1)],
    }


def coco_polygons(folder: Path) -> Path:
    ids = {"cell": 3, "nucleus": 5}
    annotations = [
        {"category_id": ids[name], "segmentation": [np.ravel(ring(box)).tolist()], "iscrowd": 0}
        for name, box in BOXES
    ]
    return write_json(folder / "coco.json", coco(annotations))


def coco_run_lengths(folder: Path) -> Path:
    ids = {"cell": 3, "nucleus": 5}
    annotations = [
        {
            "category_id": ids[name],
            "segmentation": {"size": [*SIZE], "counts": counts_of(box_mask(box).T)},
            "iscrowd": 0,
        }
        for name, box in BOXES
    ]
    return write_json(folder / "coco.json", coco(annotations))


def labelme_shape(name: str, points: Any, kind: str = "polygon", **more: Any) -> dict[str, Any]:
    shape = {"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
    return {**shape, **more}


def labelme(shapes: list[dict[str, Any]], name: str = "a.png") -> dict[str, Any]:
    size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    return {"version": "5.5.0", "shapes": shapes, "imagePath": name, "imageData": None, **size}


def labelme_polygons(folder: Path) -> Path:
    shapes = [labelme_shape(name, ring(box)) for name, box in BOXES]
    return write_json(folder / "a.json", labelme(shapes))


def labelme_rectangles_and_masks(folder: Path) -> Path:
    shapes = []
    for i, (name, box) in enumerate(BOXES):
        left, top, right, bottom = box
        if i == 1:
            stream = io.BytesIO()
            Image.new("L", (right - left, bottom - top), 255).save(stream, "PNG")
            png = base64.b64encode(stream.getvalue()).decode()
            corners = [[left, top], [right - 1, bottom - 1]]
            shapes.append(labelme_shape(name, corners, "mask", mask=png))
        else:
            shapes.append(labelme_shape(name, [[right, bottom], [left, top]], "rectangle"))
    return write_json(folder / "a.json", labelme(shapes))


def via_file(shapes: list[dict[str, Any]], names: list[str], name: str = "a.png") -> dict[str, Any]:
    regions = [
        {"shape_attributes": shape, "region_attributes": {"comment": "", "class": kind}}
        for shape, kind in zip(shapes, names, strict=True)
    ]
    return {f"{name}123": {"filename": name, "size": 123, "regions": regions}}


def via(folder: Path) -> Path:
    shapes: list[dict[str, Any]] = []
    for i, (_, box) in enumerate(BOXES):
        left, top, right, bottom = box
        x, y = zip(*ring(box), strict=True)
        size = {"width": right - left, "height": bottom - top}
        shapes.append(
            {"name": "rect", "x": left, "y": top, **size}
            if i
            else {"name": "polygon", "all_points_x": [*x], "all_points_y": [*y]}
        )
    files = via_file(shapes, [name for name, _ in BOXES])
    return write_json(folder / "via.json", {"_via_settings": {}, "_via_img_metadata": files})


def via_csv(folder: Path) -> Path:
    lines = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,"
             "region_attributes"]  # fmt: skip
    for i, (name, box) in enumerate(BOXES):
        x, y = zip(*ring(box), ring(box)[0], strict=True)
        shape = {"name": "polyline", "all_points_x": [*x], "all_points_y": [*y]}  # closed
        cells = (json.dumps(one).replace('"', '""') for one in (shape, {"class": name}))
        lines.append(f'a.png,123,"{{}}",3,{i},' + ",".join(f'"{cell}"' for cell in cells))
    path = folder / "via.csv"
    path.write_text("\n".join(lines))
    return path


def imagej(folder: Path) -> Path:
    import roifile

    path = folder / "a.zip"
    with ZipFile(path, "w") as file:
        for i, (name, box) in enumerate(BOXES):
            left, top, right, bottom = box
            roi = roifile.ImagejRoi.frompoints(ring(box))
            if i == 1:
                roi = roifile.ImagejRoi(
                    roitype=roifile.ROI_TYPE.RECT, left=left, top=top, right=right, bottom=bottom
                )
            roi.properties = {"class": name}
            file.writestr(f"{i}.roi", roi.tobytes())
    return path


def cvat_text(shapes: str, name: str = "a.png") -> str:
    labels = "".join(
        f"<label><name>{label}</name><color>#{colour}</color></label>"
        for label, colour in (("cell", "ff0000"), ("nucleus", "00ff00"))
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task>'
        f"<labels>{labels}</labels></task></meta>"
        f'<image id="0" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">{shapes}</image>'
        "</annotations>"
    )


def cvat(folder: Path) -> Path:
    (_, first), (_, second), (_, third) = BOXES
    points = ";".join(f"{x}.0,{y}.0" for x, y in ring(third))
    top, left, height, width = second[1], second[0], second[3] - second[1], second[2] - second[0]
    shapes = (
        f'<mask label="nucleus" z_order="1" rle="0, {height * width}" left="{left}" top="{top}" '
        f'width="{width}" height="{height}"/>'
        f'<box label="cell" xtl="{first[0]}" ytl="{first[1]}" xbr="{first[2]}" ybr="{first[3]}"/>'
        f'<polygon label="cell" points="{points}" z_order="0"/>'
    )
    path = folder / "annotations.xml"
    path.write_text(cvat_text(shapes), encoding="utf-8")
    return path


def yolo(folder: Path) -> Path:
    lines = [
        " ".join(
            [str(int(name == "nucleus")), *(f"{x / SIZE[1]} {y / SIZE[0]}" for x, y in ring(box))]
        )
        for name, box in BOXES
    ]
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("\n".join(lines))
    path = folder / "data.yaml"
    path.write_text("path: ../elsewhere\ntrain: images\nnames: {0: cell, 1: nucleus}\n")
    return path


def pack_rgba(alpha: np.ndarray) -> list[int]:
    """Encode alpha (H, W) as @thi.ng/rle-pack does RGBA images: runs of up to 2**16 equal bytes."""
    values = np.repeat(alpha.ravel(), 4)
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    starts = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    for i, (start, end) in enumerate(pairwise(starts)):
        if i % 2 and end - start <= 16:  # some runs byte by byte, as the packer writes noise
            bits += f"001{end - start - 1:04b}" + f"{values[start]:08b}" * (end - start)
        else:
            bits += f"111{end - start - 1:016b}{values[start]:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio_task(results: list[dict[str, Any]], image: str = "a.png") -> dict[str, Any]:
    size = {"original_height": SIZE[0], "original_width": SIZE[1], "image_rotation": 0}
    made = [{"id": 1, "result": [{**size, **one} for one in results]}]
    return {"id": 9, "data": {"image": f"/data/upload/1/1a2b3c4d-{image}"}, "annotations": made}


def label_studio(folder: Path) -> Path:
    results: list[dict[str, Any]] = []
    for i, (name, box) in enumerate(BOXES):
        left, top, right, bottom = (
            100 * n / side for n, side in zip(box, (*SIZE[::-1], *SIZE[::-1]), strict=True)
        )
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        if i == 0:
            kind, value = "polygonlabels", {"points": corners}
        elif i == 1:
            alpha = box_mask(box) * np.uint8(255)
            kind, value = "brushlabels", {"format": "rle", "rle": pack_rgba(alpha)}
        else:
            box_value = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            kind, value = "rectanglelabels", {**box_value, "rotation": 0}
        results.append({"type": kind, "value": {**value, kind: [name]}})
    return write_json(folder / "project.json", [label_studio_task(results)])


def geojson_feature(coordinates: Any, kind: str = "Polygon", **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def geojson(folder: Path) -> Path:
    features = [
        geojson_feature(
            [[*ring(box), ring(box)[0]]],
            objectType="annotation",
            classification={"name": name, "color": [255, 0, 0] if name == "cell" else [0, 255, 0]},
        )
        for name, box in BOXES
    ]
    return write_json(folder / "a.geojson", {"type": "FeatureCollection", "features": features})


def run_lengths(folder: Path) -> Path:
    lines = ["ImageId,ClassId,EncodedPixels"]
    for name, box in BOXES:
        counts = counts_of(box_mask(box).T)
        starts = np.cumsum(counts)[:-1:2] + 1
        pairs = zip(starts.tolist(), counts[1::2], strict=True)
        lines.append(f"a,{name}," + " ".join(f"{start} {length}" for start, length in pairs))
    path = folder / "train.csv"
    path.write_text("\n".join(lines))
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    one.__name__: one
    for one in (
        coco_polygons,
        coco_run_lengths,
        labelme_polygons,
        labelme_rectangles_and_masks,
        via,
        via_csv,
        cvat,
        yolo,
        label_studio,
        geojson,
        run_lengths,
        imagej,
    )
}
