"""Raster files: recognise them, read and write them in blocks (needs rasterio)."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unet.data.image_file import ImageFile, open_image
from unet.data.image_io import missing_pixels, stored_to_channels, to_float
from unet.data.image_types import ReadOptions, UnreadableError, Window
from unet.data.tiff_tags import NODATA_TAG, PLACE_TAGS, STARTS, has_all_segments, read_tags
from unet.models.blocks import mirrored
from unet.runtime.files import atomic_path
from unet.runtime.optional import import_extra

LARGEST_IN_MEMORY = 64_000_000
"""TIFFs with more pixels are read as rasters."""

_WIDTH, _HEIGHT = 256, 257
_CACHE_MEGABYTES = 256


class Span(NamedTuple):
    """A range of rows or columns."""

    start: int
    stop: int


class Block(NamedTuple):
    """A rectangle of a raster."""

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def grown(self, pixels: int) -> "Block":
        """Return the block with that many more pixels on each side."""
        return Block(*(Span(span.start - pixels, span.stop + pixels) for span in self))


def is_raster(path: str | Path, windows: bool | None = None) -> bool:
    """Whether a file should be read window by window.

    Args:
        path: the file.
        windows: True for every TIFF, False for none; None for TIFFs with a georeference or nodata,
            BigTIFFs, and TIFFs of more than `LARGEST_IN_MEMORY` pixels.
    """
    if windows is False:
        return False
    try:
        with Path(path).open("rb") as file:
            head = file.read(4)
    except OSError:
        return False  # reading it later reports the error
    if head not in STARTS:
        return False
    if windows or b"+" in head:  # a BigTIFF
        return True
    tags = read_tags(Path(path))
    if any(tag in tags for tag in (*PLACE_TAGS, NODATA_TAG)):
        return True
    sides: list[Any] = [tags.get(_HEIGHT), tags.get(_WIDTH)]
    # In a damaged file they may have any type; reading it later reports the error.
    return all(isinstance(side, int) for side in sides) and math.prod(sides) > LARGEST_IN_MEMORY


@contextmanager
def open_raster(path: Path, in_channels: int, options: ReadOptions) -> Iterator["Raster"]:
    """Open a TIFF to read it in windows as images of that many channels.

    Raises:
        UnreadableError: if the file is damaged.
        ImageTypeError: if it holds several images, or is turned by EXIF.
    """
    rasterio = import_extra("rasterio", f"{path}, which is read in windows")
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
        # Large TIFFs without georeference are rasters, too.
        warnings.simplefilter("ignore", _rasterio_errors().NotGeoreferencedWarning)
        with open_image(path, replace(options, windows=True)) as image:
            yield Raster(image, _read_place(path), in_channels)


class Place(NamedTuple):
    """Where a raster lies: rasterio's coordinate reference system, transform and control points."""

    crs: Any
    transform: Any
    points: Sequence[Any]
    points_crs: Any


def _read_place(path: Path) -> Place:
    rasterio = import_extra("rasterio", f"{path}, which is read in windows")
    try:
        with rasterio.open(path) as file:
            points, points_crs = file.gcps
            return Place(file.crs, file.transform, points, points_crs)
    except _rasterio_errors().RasterioError as error:
        if not any(tag in read_tags(path) for tag in PLACE_TAGS):
            # GDAL cannot decode it, such as JPEG 2000 in a TIFF, but tifffile may.
            return Place(None, rasterio.Affine.identity(), (), None)
        reason = " ".join(str(error).split())
        raise UnreadableError(
            f"{path}: cannot be read as a raster ({reason}); replace or remove the file"
        ) from error


class Raster:
    """An open raster."""

    def __init__(self, file: ImageFile, place: Place, in_channels: int) -> None:
        self._file, self.place, self.path, self.in_channels = file, place, file.path, in_channels
        self.size = file.header.size
        self.can_miss = file.can_miss
        """Whether pixels can be nodata."""

    def read(self, block: Block) -> np.ndarray:
        """Read an image (C, h, w) as `read_image`; missing pixels are NaN.

        Raises:
            UnreadableError: if the file is damaged.
            ImageTypeError: if it does not have the model's channels, or a value is not finite.
        """
        window = Window(*block.rows, *block.columns)
        pixels = self._file.read(window=window)
        return stored_to_channels(self._file.header, pixels, self.in_channels, str(self.path))

    def valid(self, block: Block) -> np.ndarray:
        """Read where a block is not nodata, bool (h, w)."""
        missing = missing_pixels(self.read(block))
        return np.ones(block.size, bool) if missing is None else ~missing

    def image(self, block: Block) -> Tensor:
        """Read an image (C, h, w) as `to_float`, mirrored beyond the raster; errors: see `read`."""
        rows, columns = (
            mirrored(torch.arange(*span), side) for span, side in zip(block, self.size, strict=True)
        )
        top, left = int(rows.min()), int(columns.min())
        inside = Block(Span(top, int(rows.max()) + 1), Span(left, int(columns.max()) + 1))
        image = torch.from_numpy(to_float(self.read(inside)))
        return image.index_select(1, rows - top).index_select(2, columns - left)


@contextmanager
def create_raster(
    path: Path, source: Raster, bands: int, dtype: str, nodata: float | None, steps: Sequence[int]
) -> Iterator[Any]:
    """Create a GeoTIFF with the size and georeference of `source`, completely or not at all.

    `steps` are height and width of the blocks that will be written. Yields the file, of rasterio.

    Raises:
        OSError: with the path, if it cannot be written.
    """
    rasterio, errors = import_extra("rasterio", "a raster"), _rasterio_errors()
    height, width = source.size
    image = {"height": height, "width": width, "count": bands, "dtype": dtype, "nodata": nodata}
    place = {"crs": source.place.crs, "transform": source.place.transform}
    tiles = {"tiled": True, "blockysize": file_tile(steps[0]), "blockxsize": file_tile(steps[1])}
    form = {"driver": "GTiff", "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path, flush=False) as temporary:
            # GDAL writes a georeference that GeoTIFF cannot hold into a second file.
            second = Path(f"{temporary}.aux.xml")
            try:
                with rasterio.open(temporary, "w", **form, **image, **place, **tiles) as file:
                    if source.place.points:
                        file.gcps = (source.place.points, source.place.points_crs)
                    yield file
                # GDAL reports no error that occurs while it closes a file.
                if not has_all_segments(temporary, read_tags(temporary)):
                    raise errors.RasterioIOError("cut off")
                if second.exists():
                    second.replace(f"{path}.aux.xml")
            finally:
                second.unlink(missing_ok=True)
    except errors.RasterioError as error:  # does not contain the system's message
        raise OSError(
            f"{path}: cannot be written; check its permissions and the free space"
        ) from error


def file_tile(pixels: int) -> int:
    """Return the side of a tile of the file: at most 256, and a multiple of 16 as TIFF requires."""
    return min(256, max(pixels // 16, 1) * 16)


def block_side(pixels: int) -> int:
    """Return the side of the largest block of whole tiles, at most that many pixels or one tile."""
    unit = file_tile(pixels)
    return max(pixels // unit, 1) * unit


def _rasterio_errors() -> Any:
    return import_extra("rasterio.errors", "a raster")
