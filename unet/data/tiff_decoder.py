"""Read TIFFs by tifffile: stacks, channels as pages, any type of values, masks, and windows.

Pages of reduced resolution, thumbnails and internal masks are no images.
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unet.data.image_types import (
    Header,
    ImageTypeError,
    Pixels,
    ReadOptions,
    UnreadableError,
    Window,
)
from unet.data.tiff_tags import NODATA_TAG, ORIENTATION_TAG, PLACE_TAGS, colours_of, declared_nodata
from unet.runtime.optional import import_extra

_CHANNEL_AXES = "CS"
_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
_ALPHA = (1, 2)  # ExtraSamples: associated, unassociated
_LERC = 34887  # a compression
_SLIDE_PICTURES = re.compile("label|macro|map|thumbnail|overview", re.IGNORECASE)

_NO_THUMBNAILS = (
    "got an LSM file without thumbnails, expected one after each image, as the microscope writes "
    "them; save it as a TIFF"
)
_PHOTOMETRICS = {2: "RGB", 3: "palette", 5: "CMYK", 6: "RGB", 8: "L*a*b*"}


class TiffDecoder:
    """A TIFF that tifffile has opened."""

    def __init__(self, file: Any, path: Path, options: ReadOptions) -> None:
        self._file, self._path = file, path
        self._series = _find_image(file, path)
        self._keyframe = page = self._series.keyframe
        axes, shape = self._series.axes, self._series.shape
        if page.ndim > 3 or "Z" in page.axes:
            raise ImageTypeError(f"{path}: got tiles of a volume, expected pages; save each slice")
        if self._series.transform is not None:
            raise ImageTypeError(
                f"{path}: got an MD Gel file, whose values are to be scaled or squared, expected "
                "values that are used as stored; save it as a TIFF, for example with ImageJ"
            )
        if options.axes is None and _is_of_several_files(file):
            raise ImageTypeError(
                f"{path}: got a file of an OME image of several files, with the axes {axes} "
                f"({' x '.join(map(str, shape))}) in this one, expected the whole image; save it "
                "as one file, or set data.axes to read only the pages of each file"
            )
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
            palette = colours_of(page.colormap)
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
            orientation=int(page.tags.valueof(ORIENTATION_TAG, 1)),
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
            is_lerc = key.compression == _LERC and data is not None
            block, (plane, _, row, column, _), shape = key.decode(
                None if is_lerc else data, number, jpegtables=page.jpegtables
            )
            if is_lerc:
                block = _decode_lerc(data, shape)
            rows, columns = shape[1:3]
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
    try:
        opened = tifffile.TiffFile(path, _multifile=False)
    except IndexError as error:  # tifffile looks for the second page of LSM files
        raise ImageTypeError(f"{path}: {_NO_THUMBNAILS}") from error
    with opened as file:
        yield TiffDecoder(file, path, options)


def _is_of_several_files(file: Any) -> bool:
    text = file.pages.first.description if file.is_ome else ""
    names = set(re.findall(r'FileName\s*=\s*["\']([^"\']*)', text))
    return "<BinaryOnly" in text or (len(names) > 1 and file.series[0].kind != "ome")


def _find_image(file: Any, path: Path) -> Any:
    """The image among the series of pages; not its copies of reduced resolution and its masks."""
    if file.is_lsm and not file.pages[1].is_reduced:
        raise ImageTypeError(f"{path}: {_NO_THUMBNAILS}")
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
        (height, width), (h, w) = sizes = [
            (one.shape[one.axes.index("Y")], one.shape[one.axes.index("X")])
            for one in (first, other)
        ]
        is_smaller = h < height and w < width
        is_copy = is_smaller and abs(h * width / (w * height) - 1) < 0.05
        if not (is_copy or (h * w < height * width and _SLIDE_PICTURES.search(other.name))):
            got = [
                f"{h} x {w} pixels ({one.axes}, {one.dtype})"
                for (h, w), one in zip(sizes, (first, other), strict=True)
            ]
            raise ImageTypeError(
                f"{path}: got pages of {' and of '.join(got)}, expected pages of one size and "
                "type; save each page as a file"
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


def _decode_lerc(data: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a strip or tile (1, h, w, samples). NaN and alpha are in its mask; tifffile drops it.

    Channels with masks of their own come one after the other.
    """
    lerc = import_extra("imagecodecs", "LERC")
    values, valid = lerc.lerc_decode(data, masks=True)
    _, height, width, samples = shape
    if valid is not None and values.shape == (samples, height, width) and samples > 1:
        values, valid = values.transpose(1, 2, 0), valid.reshape(values.shape).transpose(1, 2, 0)
    values = values.reshape(height, width, -1)
    if valid is not None:
        valid = valid.reshape(height, width, -1)
        if values.shape[2] == samples - 1:
            values = np.concatenate([values, valid * values.dtype.type(255)], 2)
        elif values.dtype.kind == "f":
            values = np.where(valid, values, values.dtype.type(np.nan))
    decoded: np.ndarray = values.reshape(shape)
    return decoded


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
