"""Read TIFFs by tifffile: stacks, channels as pages, any type of values, masks, and windows.

Pages of reduced resolution, thumbnails and internal masks are no images.
"""

import json
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from unet.data.image_types import (
    Header,
    ImageTypeError,
    Pixels,
    ReadOptions,
    UnreadableError,
    Window,
)
from unet.runtime.optional import import_extra

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFFs and BigTIFFs."""

# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory.
PLACE_TAGS = (33550, 33922, 34264, 34735)
"""The tags of a GeoTIFF."""

_CHANNEL_AXES = "CS"
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
NODATA_TAG = 42113
"""GDAL's tag of the value of missing pixels."""

_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated

_PHOTOMETRICS = {2: "RGB", 3: "palette", 5: "CMYK", 6: "RGB", 8: "L*a*b*"}

# Tags of a page, as in the standard.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP = 266, 270, 274, 277, 278
_PLANAR, _PREDICTOR, _SUB_IFDS, _EXTRA_SAMPLES, _FORMAT = 284, 317, 330, 338, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and numbers of bytes


class TiffDecoder:
    """A TIFF that tifffile has opened."""

    def __init__(self, file: Any, path: Path, options: ReadOptions) -> None:
        self._file, self._path = file, path
        self._series = _find_image(file, path)
        self._keyframe = page = self._series.keyframe
        if page.ndim > 3 or "Z" in page.axes:
            raise ImageTypeError(f"{path}: got tiles of a volume, expected pages; save each slice")
        axes, shape = self._series.axes, self._series.shape
        if options.axes is not None and len(axes) != 2 and axes != "YXS":
            places = [(options.axes.find(axis), axes.index(axis)) for axis in "YX"]
            if len(options.axes) != len(axes) or any(own != file for own, file in places):
                raise ImageTypeError(
                    f"{path}: got the axes {axes} ({' x '.join(map(str, shape))}), expected "
                    f"as many as in data.axes={options.axes}, and Y and X in the same places; "
                    "correct it"
                )
            axes = options.axes
        self._axes = axes
        sizes = dict(zip(axes, shape, strict=True))
        self._page_axes = [axis for axis in axes if axis not in "YX" + _CHANNEL_AXES]
        self._bands = math.prod(sizes.get(axis, 1) for axis in _CHANNEL_AXES)
        self._mask = _find_mask(file, page)
        palette = None
        if page.photometric == 3 and page.colormap is not None and page.dtype.kind == "u":
            palette = (page.colormap.T >> 8).astype(np.uint8)
        extra, bits = page.extrasamples, page.bitspersample
        self.header = Header(
            size=(sizes["Y"], sizes["X"]),
            dtype=np.dtype(page.dtype),
            bits=int(bits if isinstance(bits, int) else bits[0]),
            bands=self._bands,
            mode=_describe_mode(page, self._bands),
            alpha=bool(extra) and extra[-1] in _ALPHA and page.samplesperpixel == self._bands,
            pages=math.prod(sizes[axis] for axis in self._page_axes),
            axes=axes,
            nodata=declared_nodata(path, page.tags.valueof(NODATA_TAG)),
            orientation=int(page.tags.valueof(_ORIENTATION, 1)),
            palette=palette,
            has_mask=self._mask is not None,
            has_windows=page.is_tiled or self._series.dataoffset is not None,
            has_place=any(tag in page.tags for tag in PLACE_TAGS),
        )

    def read(self, page: int, window: Window | None) -> Pixels:
        """Read the stored values of a page, or of a window of it."""
        window = window or Window(0, self.header.size[0], 0, self.header.size[1])
        sizes = dict(zip(self._axes, self._series.shape, strict=True))
        numbers = np.unravel_index(page, [sizes[axis] for axis in self._page_axes] or [1])
        place = dict(zip(self._page_axes, map(int, numbers), strict=False))
        if self._series.dataoffset is not None:
            return Pixels(self._read_mapped(place, window), self._read_mask(window))
        # The axes before those of a page of the file; the channels among them are put together.
        lead = self._axes[: len(self._axes) - self._keyframe.ndim]
        channel_axes = [axis for axis in lead if axis in _CHANNEL_AXES]
        planes, valid = [], self._read_mask(window)
        for channels in np.ndindex(*[sizes[axis] for axis in channel_axes]):
            place.update(zip(channel_axes, channels, strict=True))
            number = 0
            for axis in lead:
                number = number * sizes[axis] + place[axis]
            values, known = self._read_page(self._series.pages[number], window)
            planes.append(values)
            if known is not None:
                valid = known if valid is None else valid & known
        return Pixels(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2), valid)

    def _read_mapped(self, place: dict[str, int], window: Window) -> np.ndarray:
        """Read values (h, w, bands) that are stored without gaps."""
        series = self._series
        if series.dataoffset + series.nbytes > self._path.stat().st_size:
            raise UnreadableError(f"the file ends before its {series.nbytes} bytes of pixels")
        dtype = np.dtype(series.dtype).newbyteorder(self._file.byteorder)
        every = np.memmap(self._path, dtype, "r", series.dataoffset, series.shape)
        chosen = every[tuple(place.get(axis, slice(None)) for axis in self._axes)]
        axes = [axis for axis in self._axes if axis not in place]
        order = [axes.index(axis) for axis in ("Y", "X", *_CHANNEL_AXES) if axis in axes]
        top, bottom, left, right = window
        values = chosen.transpose(order)[top:bottom, left:right]
        return np.array(values.reshape(*values.shape[:2], -1), dtype.newbyteorder("="))

    def _read_page(self, page: Any, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        """Read values (h, w, samples) of one page, and where it has tiles; None for everywhere."""
        if page is None:
            raise ImageTypeError(
                f"{self._path}: got pages that are stored in another file, expected one file; "
                "save the image as one file"
            )
        key, (top, bottom, left, right) = page.keyframe, window
        planes, _, _, _, samples = key.shaped
        values = np.zeros((planes, bottom - top, right - left, samples), key.dtype)
        known = np.ones((bottom - top, right - left, 1), bool)
        for number in _segments(key, window):
            data = self._segment(page, number)
            block, (plane, _, row, column, _), (_, rows, columns, _) = key.decode(
                data, number, jpegtables=page.jpegtables
            )
            y0, y1 = max(row, top), min(row + rows, bottom)
            x0, x1 = max(column, left), min(column + columns, right)
            inside = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
            if block is None:
                known[inside] = False
            else:
                values[plane][inside] = block[0, y0 - row : y1 - row, x0 - column : x1 - column]
        merged = values.transpose(1, 2, 0, 3).reshape(*known.shape[:2], -1)
        return merged, None if known.all() else known

    def _segment(self, page: Any, number: int) -> bytes | None:
        """Read a strip or tile; None for one that GDAL left out because it is nodata."""
        offsets, sizes = page.dataoffsets, page.databytecounts
        if number < min(len(offsets), len(sizes)) and offsets[number] and sizes[number]:
            handle = self._file.filehandle
            handle.seek(offsets[number])
            data: bytes = handle.read(sizes[number])
            if len(data) == sizes[number]:
                return data
        elif number < len(offsets) and self.header.nodata is not None:
            return None
        height, width = self.header.size
        needed = sum(1 for _ in _segments(page.keyframe, Window(0, height, 0, width)))
        present = sum(1 for start, size in zip(offsets, sizes, strict=False) if start and size)
        raise UnreadableError(
            f"{present} complete strips or tiles at most, and its {height} x {width} pixels need "
            f"{needed}"
        )

    def _read_mask(self, window: Window) -> np.ndarray | None:
        """Read the mask of valid pixels in the file, bool (h, w, 1); None for none."""
        if self._mask is None:
            return None
        values: np.ndarray = self._read_page(self._mask.keyframe, window)[0]
        return values[..., :1] > 0


@contextmanager
def open_tiff(path: Path, options: ReadOptions) -> Iterator[TiffDecoder]:
    """Open a TIFF by tifffile.

    Raises:
        ValueError: if tifffile or imagecodecs is not installed, or the file holds no single image.
    """
    import_extra("imagecodecs", f"{path}, a TIFF of a type that Pillow does not read")
    tifffile = import_extra("tifffile", f"{path}, a TIFF of a type that Pillow does not read")
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # errors are raised
    with tifffile.TiffFile(path, _multifile=False) as file:
        yield TiffDecoder(file, path, options)


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
        and get(_PLANAR, 1) == get(_FILL_ORDER, 1) == get(_ORIENTATION, 1) == 1
        and not get(_SUBFILE, 0)
        and not tags.next
        and _SUB_IFDS not in tags
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


def _find_image(file: Any, path: Path) -> Any:
    """The image among the series of pages; not its copies of reduced resolution and its masks."""
    images = [
        one
        for one in file.series
        if not int(one.keyframe.subfiletype) & (_REDUCED | _MASK) and one.shape
    ]
    if not images:
        raise UnreadableError("no page of full resolution")
    first = images[0]
    if file.is_svs or file.is_ndpi or file.is_scn or file.is_bif or file.is_philips:
        return first  # whose others are pictures of the slide and its label
    for other in images[1:]:
        sides = [
            (large.shape[large.axes.index("Y")], large.shape[large.axes.index("X")])
            for large in (first, other)
        ]
        (height, width), (h, w) = sides
        if not (h < height and w < width and abs(h * width / (w * height) - 1) < 0.05):
            raise ImageTypeError(
                f"{path}: got pages of {height} x {width} and of {h} x {w} pixels, expected "
                "pages of one size; save each page as a file"
            )
    return first


def _find_mask(file: Any, image: Any) -> Any:
    """The series of the mask that says which pixels of a page are valid; None for none."""
    for one in file.series:
        bits = int(one.keyframe.subfiletype)
        sizes = {(page.imagelength, page.imagewidth) for page in (one.keyframe, image)}
        if bits & _MASK and not bits & _REDUCED and len(sizes) == 1:
            return one
    return None


def _describe_mode(page: Any, bands: int) -> str:
    name = _PHOTOMETRICS.get(int(page.photometric), "grey")
    extra = len(page.extrasamples)
    if name == "RGB" and bands == 4 and extra:
        return "RGBA"
    if name == "RGB" and bands == 3:
        return "RGB"
    return name if bands == 1 or (name in {"CMYK", "L*a*b*"} and bands <= 4) else f"{bands} bands"


def _segments(page: Any, window: Window) -> Iterator[int]:
    """The numbers of the strips or tiles that cover a window, in every plane."""
    rows, columns = page.imagelength, page.imagewidth
    if page.is_tiled:
        height, width = page.tilelength, page.tilewidth
    else:
        height, width = min(page.rowsperstrip, rows), columns
    across, down = math.ceil(columns / width), math.ceil(rows / height)
    for plane in range(page.shaped[0]):
        for row in range(window.top // height, math.ceil(window.bottom / height)):
            for column in range(window.left // width, math.ceil(window.right / width)):
                yield (plane * down + row) * across + column
