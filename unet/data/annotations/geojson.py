"""GeoJSON: a file for each image, in pixels as of QuPath, or in map coordinates; polygons.

Sources: RFC 7946, the member `crs` of its predecessor, which GDAL and QGIS still write, and
"Exporting annotations" of qupath.readthedocs.io.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unet.data.annotations.outlines import Outline
from unet.data.annotations.regions import Polygon
from unet.data.annotations.source import (
    CLASSES,
    OBJECT,
    Annotations,
    Entry,
    Shape,
    get,
    listed_classes,
    points,
    wrong,
)
from unet.data.classes import Colour
from unet.data.image_io import read_header
from unet.runtime.optional import import_extra

NAME = "GeoJSON"
_LONGITUDES = "OGC:CRS84"  # longitude and latitude, as RFC 7946 says
_CLASS_PROPERTIES = ("class", "label", "category", "type", "name")
_GEOMETRIES = ("Polygon", "MultiPolygon", "GeometryCollection")
_FARTHEST = 1e9  # meters or feet of a map


class _Feature(NamedTuple):
    name: str
    parts: tuple[tuple[np.ndarray, ...], ...]


def matches(data: Any) -> bool:
    """Whether a JSON value has this format."""
    first = data[0] if isinstance(data, list) and data else data
    return isinstance(first, dict) and first.get("type") in (
        *("FeatureCollection", "Feature"),
        *_GEOMETRIES,
    )


def read(data: Any, path: Path) -> Annotations:
    """Read a JSON value of this format.

    Raises:
        ValueError: if a part of it has a wrong type.
    """
    found, features = Annotations(classes=listed_classes(data)), list[_Feature]()
    raw = data if isinstance(data, list) else [data]
    if isinstance(data, dict) and data.get("type") == "FeatureCollection":
        raw = get(data, "features", list, str(path))
    if isinstance(data, dict) and data.get("type") in _GEOMETRIES:
        raw = [{"geometry": data}]
    in_pixels = False
    for i, feature in enumerate(raw):
        where = f"{path}: features[{i}]"
        if not isinstance(feature, dict):
            raise wrong(where, "a feature", feature, "an object")
        properties = feature.get("properties")
        if properties is None:
            properties = {}
        if not isinstance(properties, dict):
            raise wrong(where, "properties", properties, "an object")
        in_pixels |= "objectType" in properties or "classification" in properties
        if "nucleusGeometry" in feature:
            found.left_out.append((path.stem, "the nucleus of a cell"))
        name, colour = _classify(properties)
        parts = list(_list_parts(feature.get("geometry"), found, path.stem, name, where))
        if parts:
            found.classes[name] = found.classes.get(name) or colour
            features.append(_Feature(name, tuple(parts)))
    crs = _read_crs(data, str(path))
    if crs is None and in_pixels:
        crs = ""

    def locate(image: Path) -> list[Shape]:
        return _locate(features, crs, image, path)

    found.entries.append(Entry(path.stem, str(path), locate=locate, everywhere=crs != ""))
    return found


def _classify(properties: dict[str, Any]) -> tuple[str, Colour | None]:
    """Return the class of a feature, and its colour."""
    kind = properties.get("classification")
    if isinstance(kind, dict):
        names = kind.get("names")
        name = kind.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
        return str(name) or OBJECT, _colour(kind.get("color", kind.get("colorRGB")))
    texts = [kind, *(properties.get(key) for key in _CLASS_PROPERTIES)]
    return next((text for text in texts if isinstance(text, str) and text), OBJECT), None


def _colour(value: Any) -> Colour | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(one, int) for one in value):
        return value[0] & 255, value[1] & 255, value[2] & 255
    if isinstance(value, int):
        return value >> 16 & 255, value >> 8 & 255, value & 255
    return None


def _list_parts(
    geometry: Any, found: Annotations, image: str, name: str, where: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the rings of each polygon of a geometry."""
    kind = get(geometry, "type", str, where)
    match kind:
        case "GeometryCollection":
            for one in get(geometry, "geometries", list, where):
                yield from _list_parts(one, found, image, name, where)
            return
        case "Polygon":
            polygons = [get(geometry, "coordinates", list, where)]
        case "MultiPolygon":
            polygons = get(geometry, "coordinates", list, where)
        case _:
            found.left_out.append((image, f'a {kind} "{name}"'))
            return
    for polygon in polygons:
        if not isinstance(polygon, list) or not polygon:
            raise wrong(where, "coordinates", polygon, "a list of rings")
        rings = [points(ring, where, _FARTHEST) for ring in polygon]
        if any(len(ring) < 4 for ring in rings):  # the first point is repeated at the end
            found.left_out.append((image, f'a polygon "{name}" with fewer than 3 points'))
        if len(rings[0]) >= 4:
            yield tuple(ring for ring in rings if len(ring) >= 4)


def _read_crs(data: Any, where: str) -> str | None:
    crs = data.get("crs") if isinstance(data, dict) else None
    if crs is None:
        return None
    return get(get(crs, "properties", dict, f"{where}: crs"), "name", str, f"{where}: crs")


def _locate(features: Sequence[_Feature], crs: str | None, image: Path, path: Path) -> list[Shape]:
    """Return the shapes in the pixels of an image; `crs` is empty if they are already."""
    is_map = read_header(image).has_place if crs is None else bool(crs)
    parts = [feature.parts for feature in features]
    if is_map and features:
        parts = _to_pixels(parts, crs or _LONGITUDES, image, path)
    return [
        Shape(name=feature.name, region=Polygon(one))
        for feature, one in zip(features, parts, strict=True)
    ]


def _to_pixels(
    parts: Sequence[tuple[tuple[np.ndarray, ...], ...]], crs: str, image: Path, path: Path
) -> list[tuple[tuple[np.ndarray, ...], ...]]:
    """Convert map coordinates to pixels of a georeferenced image."""
    target, transform = read_place(image, f"{path}, which has map coordinates")
    if target is None:
        raise ValueError(
            f"{image}: has no georeference, but {path} has map coordinates ({crs}); export the "
            "polygons in pixels"
        )
    rasterio = import_extra("rasterio", "map coordinates")
    warp = import_extra("rasterio.warp", "map coordinates")
    try:
        source = rasterio.crs.CRS.from_user_input(crs)
    except rasterio.errors.CRSError as error:
        raise ValueError(
            f"{path}: got the coordinate reference system {crs}, expected one that is known, such "
            f"as EPSG:32633 ({' '.join(str(error).split())})"
        ) from error
    inverse = ~transform

    def convert(ring: np.ndarray) -> np.ndarray:
        x, y = ring.T
        if source != target:
            x, y = map(np.asarray, warp.transform(source, target, x, y))
        return np.stack(_apply(inverse, x, y), 1)

    return [tuple(tuple(map(convert, rings)) for rings in polygons) for polygons in parts]


def _apply(transform: Any, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply an affine transform of rasterio to points."""
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def read_place(image: Path, feature: str) -> tuple[Any, Any]:
    """Return the coordinate reference system of a raster, None without one, and its transform."""
    rasterio = import_extra("rasterio", feature)
    if not read_header(image).has_place:
        return None, None
    with rasterio.open(image) as file:
        return file.crs, file.transform


def write(
    outlines: Sequence[Outline],
    names: Sequence[str],
    colours: Sequence[Colour],
    place: tuple[Any, Any] = (None, None),
) -> dict[str, Any]:
    """Return a file of an image; names and colours are those of all classes but 0.

    `place` is as of `read_place`: coordinates are those of the map if there is one, else pixels.
    """
    crs, transform = place
    name = None
    if crs is not None:
        code = crs.to_epsg()
        name = f"urn:ogc:def:crs:EPSG::{code}" if code else "urn:ogc:def:crs:OGC:1.3:CRS84"
        warp = import_extra("rasterio.warp", "map coordinates")

    def convert(ring: np.ndarray) -> list[list[float]]:
        x, y = ring.T if crs is None else _apply(transform, *ring.T)
        if name is not None and "EPSG" not in name:
            x, y = warp.transform(crs, _LONGITUDES, x, y)
        pairs = np.stack([x, y], 1).tolist()
        return [*pairs, pairs[0]]

    features: list[Any] = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [convert(ring) for ring in one.rings]},
            "properties": {
                "objectType": "annotation",
                "classification": {
                    "name": names[one.class_id - 1],
                    "color": [*colours[one.class_id - 1]],
                },
            },
        }
        for one in outlines
    ]
    collection: dict[str, Any] = {
        "type": "FeatureCollection",
        CLASSES: [*names],
        "features": features,
    }
    if name is not None:
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return collection
