"""Raster files: recognise them, read and write them in blocks (needs rasterio)."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch import Tensor

from unet.data.image_io import UnreadableError, to_channels, to_float
from unet.models.blocks import mirrored
from unet.runtime.files import atomic_path
from unet.runtime.optional import import_extra

LARGEST_IN_MEMORY = 64_000_000
"""TIFFs with more pixels are read as rasters."""

_WIDTH, _HEIGHT, _ORIENTATION, _TILE_OFFSETS, _TILE_BYTES = 256, 257, 274, 324, 325
# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory; GDAL's nodata.
_RASTER_TAGS = (33550, 33922, 34264, 34735, 42113)
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
    if head in {b"II+\0", b"MM\0+"}:
        return True
    if head not in {b"II*\0", b"MM\0*"}:
        return False
    if windows:
        return True
    tags = read_tags(Path(path))
    if any(tag in tags for tag in _RASTER_TAGS):
        return True
    sides: list[Any] = [tags.get(_HEIGHT), tags.get(_WIDTH)]
    # In a damaged file they may have any type; reading it later reports the error.
    return all(isinstance(side, int) for side in sides) and math.prod(sides) > LARGEST_IN_MEMORY


@contextmanager
def open_raster(path: Path, in_channels: int) -> Iterator["Raster"]:
    """Open a raster to read it with that many channels.

    Raises:
        UnreadableError: if the file is damaged.
        ValueError: if its bands cannot be read as images.
    """
    rasterio = import_extra("rasterio", f"{path}, which is read in windows")
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
        # Large TIFFs without georeference are rasters, too.
        warnings.simplefilter("ignore", _rasterio_errors().NotGeoreferencedWarning)
        with _readable(path):
            file = rasterio.open(path)
        with file:
            yield Raster(file, path, in_channels)


class Raster:
    """An open raster."""

    def __init__(self, file: Any, path: Path, in_channels: int) -> None:
        enums = import_extra("rasterio.enums", "a raster")
        self.file, self.path, self.in_channels = file, path, in_channels
        self.size = (int(file.height), int(file.width))
        self.bands = [i for i in file.indexes if file.colorinterp[i - 1] != enums.ColorInterp.alpha]
        """Band numbers, from 1, without alpha."""
        self.has_nodata = any(
            enums.MaskFlags.all_valid not in flags for flags in file.mask_flag_enums
        )
        dtypes = {file.dtypes[i - 1] for i in self.bands}
        reason = None
        if len(dtypes) > 1 or not dtypes <= {"uint8", "uint16", "float32"}:
            reason = (
                f"bands of {', '.join(sorted(dtypes))}, expected all of uint8, uint16 or float32; "
                "convert it with gdal_translate -ot"
            )
        elif file.subdatasets:
            reason = (
                f"a raster of {len(file.subdatasets)} pages, expected one; turn windows off to "
                "read it page by page"
            )
        elif file.colorinterp[0] == enums.ColorInterp.palette:
            reason = (
                "a raster with a palette, expected its colours; convert it with gdal_translate "
                "-expand rgb"
            )
        elif read_tags(path).get(_ORIENTATION, 1) != 1:
            reason = "a TIFF with an EXIF orientation, expected an upright one; save it rotated"
        if reason is not None:
            raise ValueError(f"{path}: got {reason}")

    def read(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (C, h, w), 0 where it is nodata, and where it is not, bool (C, h, w).

        Raises:
            UnreadableError: if the file is damaged.
            ValueError: if it does not have the model's channels, or a value is not finite.
        """
        with _readable(self.path):
            pixels = self.file.read(self.bands, window=block)
            valid = np.ones(pixels.shape, bool)
            if self.has_nodata:
                valid = self.file.read_masks(self.bands, window=block) > 0
        # A float band can lack pixels that others have. The nodata value of integers can also be a
        # brightness, so there a pixel is nodata only if all its bands are.
        if pixels.dtype != np.float32:
            valid = np.any(valid, axis=0, keepdims=True)
        pixels = np.where(valid, pixels, pixels.dtype.type(0))
        image = to_channels(pixels.transpose(1, 2, 0), self.in_channels, str(self.path))
        if len(valid) != len(image):  # grey as three channels, or three as grey
            valid = np.all(valid, axis=0, keepdims=True)
        return image, np.broadcast_to(valid, image.shape)

    def valid(self, block: Block) -> np.ndarray:
        """Read where a block is not nodata, bool (h, w)."""
        valid: np.ndarray = np.any(self.read(block)[1], axis=0)
        return valid

    def image(self, block: Block, means: Tensor) -> Tensor:
        """Read an image (C, h, w) from 0 to 1, mirrored beyond the raster, with means as nodata.

        `means` is (C,) float32; errors are those of `read`.
        """
        rows, columns = (
            mirrored(torch.arange(*span), side) for span, side in zip(block, self.size, strict=True)
        )
        top, left = int(rows.min()), int(columns.min())
        inside = Block(Span(top, int(rows.max()) + 1), Span(left, int(columns.max()) + 1))
        pixels, valid = self.read(inside)
        image = torch.from_numpy(np.where(valid, to_float(pixels), means.numpy()[:, None, None]))
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
    place = {"crs": source.file.crs, "transform": source.file.transform}
    tiles = {"tiled": True, "blockysize": file_tile(steps[0]), "blockxsize": file_tile(steps[1])}
    form = {"driver": "GTiff", "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    points, points_crs = source.file.gcps
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as temporary:
            # GDAL writes a georeference that GeoTIFF cannot hold into a second file.
            second = Path(f"{temporary}.aux.xml")
            try:
                with rasterio.open(temporary, "w", **form, **image, **place, **tiles) as file:
                    if points:
                        file.gcps = (points, points_crs)
                    yield file
                # GDAL reports no error that occurs while it closes a file.
                if not _is_complete(temporary):
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


def _is_complete(path: Path) -> bool:
    """Whether a TIFF holds all tiles of its directory, which is written last."""
    tags = read_tags(path)
    starts, sizes = (np.array(tags.get(tag, ()), np.int64) for tag in (_TILE_OFFSETS, _TILE_BYTES))
    end = path.stat().st_size
    return len(starts) > 0 and bool(((starts > 0) & (starts + sizes <= end)).all())


def _rasterio_errors() -> Any:
    return import_extra("rasterio.errors", "a raster")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _rasterio_errors().RasterioError as error:
        reason = " ".join(str(error).split())
        raise UnreadableError(
            f"{path}: cannot be read as a raster ({reason}); replace or remove the file"
        ) from error
