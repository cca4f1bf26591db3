"""The tags of TIFFs, read without tifffile, and what they say."""

import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFFs and BigTIFFs."""

# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory.
PLACE_TAGS = (33550, 33922, 34264, 34735)
"""The tags of a GeoTIFF."""

NODATA_TAG = 42113
"""GDAL's tag of the value of missing pixels."""

ORIENTATION_TAG, COLOURS_TAG = 274, 320

# Tags of a page, as in the standard.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _SAMPLES, _ROWS_PER_STRIP = 266, 270, 277, 278
_PLANAR, _PREDICTOR, _SUB_IFDS, _EXTRA_SAMPLES, _FORMAT = 284, 317, 330, 338, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and numbers of bytes
# MetaMorph's: several images in one directory; MD Gel's: values that are to be scaled.
_PLANES, _SCALED = 33629, 33445


def is_plain(path: Path, tags: ImageFileDirectory_v2) -> bool:
    """Whether Pillow reads a TIFF with these tags as tifffile does."""

    def get(tag: int, default: Any = None) -> Any:
        return tags.get(tag, default)

    samples, photometric = get(_SAMPLES, 1), get(_PHOTOMETRIC)
    bits, formats, extra = get(_BITS, (1,)), get(_FORMAT, (1,)), get(_EXTRA_SAMPLES, ())
    types = {
        (1, (1,), (1,)): (0, 1),
        (1, (8,), (1,)): (0, 1, 3),
        (1, (16,), (1,)): (1,),
        (1, (32,), (3,)): (1,),
        (3, (8, 8, 8), (1,)): (2,),
        (3, (16, 16, 16), (1,)): (2,),
        (2, (8, 8), (1,)): (1,),  # with alpha
        (4, (8, 8, 8, 8), (1,)): (2,),
    }
    return (
        photometric in types.get((samples, bits, tuple(set(formats))), ())
        and extra == ((2,) if samples in (2, 4) else ())
        and get(_COMPRESSION, 1) in (1, 5, 8, 32946, 32773)
        and get(_PREDICTOR, 1) in (1, 2)
        and (bits != (32,) or tags.prefix == b"II")  # which Pillow swaps twice if compressed
        and get(_PLANAR, 1) == get(_FILL_ORDER, 1) == get(ORIENTATION_TAG, 1) == 1
        and not get(_SUBFILE, 0)
        and not tags.next
        and not any(tag in tags for tag in (_SUB_IFDS, _PLANES, _SCALED))
        and _is_one_image(str(get(_DESCRIPTION, "")), get(_HEIGHT), get(_WIDTH), samples)
        and has_all_segments(path, tags)
    )


def _is_one_image(description: str, height: int, width: int, samples: int) -> bool:
    """Whether the description does not say that there are more images than directories."""
    if description.startswith("ImageJ="):
        return not re.search(r"^(images|channels)=(?!1$)", description, re.MULTILINE)
    if description.startswith('{"'):
        try:
            shape = json.loads(description).get("shape", [height, width])
        except ValueError:
            return True
        return list(shape) in ([height, width], [height, width, samples])
    return "<OME" not in description


def read_tags(path: Path) -> ImageFileDirectory_v2:
    """Read the tags of a TIFF's first page; those of a damaged file as far as possible."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[2:4] == b"+\0":
            head += file.read(8)
        tags = ImageFileDirectory_v2(head if len(head) >= 8 else b"II*\0\0\0\0\0")
        if head[:4] != b"MM\0+":  # which Pillow cannot read
            file.seek(tags.next)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tags.load(file)
    return tags


def has_all_segments(path: Path, tags: ImageFileDirectory_v2) -> bool:
    """Whether the strips or tiles of one plane are all there and lie inside the file."""
    offsets, counts = _TILES if _TILES[0] in tags else _STRIPS
    starts, sizes = tags.get(offsets, ()), tags.get(counts, ())
    height, width = tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0)
    if offsets == _TILES[0]:
        rows, columns = tags.get(_TILE_HEIGHT, 1), tags.get(_TILE_WIDTH, 1)
        expected = math.ceil(height / max(rows, 1)) * math.ceil(width / max(columns, 1))
    else:
        expected = math.ceil(height / max(min(tags.get(_ROWS_PER_STRIP, height), height), 1))
    end, segments = path.stat().st_size, zip(starts, sizes, strict=False)
    are_all = 0 < expected <= len(starts) == len(sizes)
    return are_all and all(0 < start < start + size <= end for start, size in segments)


def declared_nodata(path: Path, tag: str | None) -> float | tuple[float, ...] | None:
    """Return the nodata that GDAL's tag or its file PATH.aux.xml declares, for each band."""
    texts = [tag] if tag else []
    name = f"{path}.aux.xml"
    if os.path.isfile(name) and (second := Path(name)).stat().st_size < 1_000_000:  # noqa: PTH113
        found = re.findall(r"<NoDataValue[^>]*>\s*([^<\s]+)", second.read_text(errors="replace"))
        texts = found or texts
    try:
        numbers = [float(text.strip("\0 ")) for text in texts]
    except ValueError:
        return None
    return None if not numbers else numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def colours_of(colormap: np.ndarray) -> np.ndarray:
    """Return the colours (P, 3) uint8 of a tag ColorMap (3, P).

    It has 16 bits, but some programs write 8; libtiff tells them by the highest value, too.
    """
    colours: np.ndarray = (colormap.T >> (8 if colormap.max() > 255 else 0)).astype(np.uint8)
    return colours
