"""Rasters as files: told from other TIFFs, read as images in blocks, written. Needs rasterio."""

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
"""Pixels above which a TIFF is a raster."""

# ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory; GDAL's nodata.
_TAGS_OF_RASTERS = (33550, 33922, 34264, 34735, 42113)
_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274
_TILE_STARTS, _TILE_SIZES = 324, 325

_CACHE_MEGABYTES = 256


class Span(NamedTuple):
    """Pixels along one side of a raster."""

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
        """Return the block with so many pixels more on each side."""
        return Block(*(Span(span.start - pixels, span.stop + pixels) for span in self))


def is_raster(path: str | Path, windows: bool | None = None) -> bool:
    """Whether a file is to be read window by window.

    Args:
        path: the file.
        windows: True for every TIFF, False for none; None for TIFFs with a georeference or nodata,
            BigTIFFs, and those of more than `LARGEST_IN_MEMORY` pixels.
    """
    if windows is False:
        return False
    try:
        with Path(path).open("rb") as file:
            head = file.read(4)
    except OSError:
        return False  # reading it will say what is wrong
    if head in {b"II+\0", b"MM\0+"}:
        return True
    if head not in {b"II*\0", b"MM\0*"}:
        return False
    if windows:
        return True
    tags = _first_page(Path(path))
    if any(tag in tags for tag in _TAGS_OF_RASTERS):
        return True
    sides: list[Any] = [tags.get(_HEIGHT), tags.get(_WIDTH)]
    # In a damaged file they may be anything; reading it will say so.
    return all(isinstance(side, int) for side in sides) and math.prod(sides) > LARGEST_IN_MEMORY


@contextmanager
def open_raster(path: Path, in_channels: int) -> Iterator["Raster"]:
    """Open a raster; GDAL keeps little in memory.

    Raises:
        UnreadableError: if the file is damaged.
        ValueError: if it holds what cannot be read as images.
    """
    rasterio = import_extra("rasterio", f"{path}, which is read in windows")
    errors = import_extra("rasterio.errors", "a raster")
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
        # Plain TIFFs may be large, too.
        warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
        try:
            file = rasterio.open(path)
        except errors.RasterioError as error:
            raise _unreadable(path, error) from error
        with file:
            yield Raster(file, path, in_channels)


class Raster:
    """An open raster that is read as images of so many channels."""

    def __init__(self, file: Any, path: Path, in_channels: int) -> None:
        enums = import_extra("rasterio.enums", "a raster")
        self.file, self.path, self.in_channels = file, path, in_channels
        self.size = (int(file.height), int(file.width))
        self.bands = [i for i in file.indexes if file.colorinterp[i - 1] != enums.ColorInterp.alpha]
        """Their numbers, from 1, without alpha."""
        self.has_nodata = any(
            enums.MaskFlags.all_valid not in flags for flags in file.mask_flag_enums
        )
        dtypes = {file.dtypes[i - 1] for i in self.bands}
        if len(dtypes) > 1 or not dtypes <= {"uint8", "uint16", "float32"}:
            raise ValueError(
                f"{path}: got bands of {', '.join(sorted(dtypes))}, expected all of uint8, uint16 "
                "or float32; convert it with gdal_translate -ot"
            )
        if file.subdatasets:
            raise ValueError(
                f"{path}: got a raster of {len(file.subdatasets)} pages, expected one; "
                "--no-windows reads a stack page by page"
            )
        if file.colorinterp[0] == enums.ColorInterp.palette:
            raise ValueError(
                f"{path}: got a raster with a palette, expected its colours; convert it with "
                "gdal_translate -expand rgb"
            )
        if _first_page(path).get(_ORIENTATION, 1) != 1:
            raise ValueError(
                f"{path}: got a TIFF that its EXIF orientation turns, expected it upright; save it "
                "turned"
            )

    def read(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (C, h, w), 0 where it is nodata, and bool (C, h, w): where it is not.

        Raises:
            UnreadableError: if the file is damaged.
            ValueError: if it does not have the model's channels, or values that are none.
        """
        errors = import_extra("rasterio.errors", "a raster")
        try:
            pixels = self.file.read(self.bands, window=block)
            masks = np.ones(pixels.shape, bool)
            if self.has_nodata:
                masks = self.file.read_masks(self.bands, window=block) > 0
        except errors.RasterioError as error:
            raise _unreadable(self.path, error) from error
        # Of floats, a band may lack what others have; as an integer, nodata may be a brightness.
        seen: np.ndarray = masks
        if pixels.dtype != np.float32:
            seen = np.any(masks, axis=0, keepdims=True)
        pixels = np.where(seen, pixels, pixels.dtype.type(0))
        image = to_channels(pixels.transpose(1, 2, 0), self.in_channels, str(self.path))
        if len(seen) != len(image):  # grey as three channels, or three as grey
            seen = np.all(seen, axis=0, keepdims=True)
        return image, np.broadcast_to(seen, image.shape)

    def valid(self, block: Block) -> np.ndarray:
        """Read where a block is not nodata: bool (h, w); see `read`."""
        valid: np.ndarray = np.any(self.read(block)[1], axis=0)
        return valid

    def image(self, block: Block, means: Tensor) -> Tensor:
        """Read an image (C, h, w) from 0 to 1; see `read`. What lies beyond the raster is mirrored.

        Args:
            block: what to read.
            means: (C,) float32, in the place of nodata.
        """
        rows, columns = (
            mirrored(torch.arange(*span), side) for span, side in zip(block, self.size, strict=True)
        )
        top, left = int(rows.min()), int(columns.min())
        inside = Block(Span(top, int(rows.max()) + 1), Span(left, int(columns.max()) + 1))
        pixels, seen = self.read(inside)
        filling = means.numpy()[:, None, None]
        image = torch.from_numpy(np.where(seen, to_float(pixels), filling))
        return image.index_select(1, rows - top).index_select(2, columns - left)


@contextmanager
def create_raster(
    path: Path,
    source: Raster,
    bands: int,
    dtype: str,
    nodata: float | None,
    steps: Sequence[int],
) -> Iterator[Any]:
    """Create a GeoTIFF of a raster's size and georeference, whole or not at all.

    Args:
        path: where to.
        source: the raster.
        bands: how many.
        dtype: of their pixels.
        nodata: the value that means it; None for none.
        steps: height and width of the blocks that are written.

    Yields:
        The file of rasterio, to be written to.

    Raises:
        OSError: with the path, if it cannot be written.
    """
    rasterio, errors = (
        import_extra("rasterio", "a raster"),
        import_extra("rasterio.errors", "a raster"),
    )
    profile = {
        "driver": "GTiff",
        "height": source.size[0],
        "width": source.size[1],
        "count": bands,
        "dtype": dtype,
        "nodata": nodata,
        "crs": source.file.crs,
        "transform": source.file.transform,
        "tiled": True,
        "blockysize": file_tile(steps[0]),
        "blockxsize": file_tile(steps[1]),
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }
    points, their_crs = source.file.gcps
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as temporary:
            beside = Path(f"{temporary}.aux.xml")  # for what GeoTIFF has no words
            try:
                with rasterio.open(temporary, "w", **profile) as file:
                    if points:
                        file.gcps = (points, their_crs)
                    yield file
                # Of what fails as it closes a file, GDAL says nothing.
                if not _is_whole(temporary):
                    raise errors.RasterioIOError("cut off")
                if beside.exists():
                    beside.replace(f"{path}.aux.xml")
            finally:
                beside.unlink(missing_ok=True)
    except errors.RasterioError as error:  # which does not say what the system said
        raise OSError(
            f"{path}: cannot be written; check its rights and the space on its disk"
        ) from error


def file_tile(pixels: int) -> int:
    """Side of a tile of the file: 256, or less, but a multiple of 16 as TIFF wants it."""
    return min(256, max(pixels // 16, 1) * 16)


def _is_whole(path: Path) -> bool:
    """Whether a TIFF holds all tiles that its directory, which is written last, tells of."""
    tags = _first_page(path)
    starts, sizes = (np.array(tags.get(tag, ()), np.int64) for tag in (_TILE_STARTS, _TILE_SIZES))
    end = path.stat().st_size
    return len(starts) > 0 and bool(((starts > 0) & (starts + sizes <= end)).all())


def _unreadable(path: Path, error: Exception) -> UnreadableError:
    reason = " ".join(str(error).split())
    return UnreadableError(
        f"{path}: cannot be read as a raster ({reason}); replace or remove the file"
    )


def _first_page(path: Path) -> ImageFileDirectory_v2:
    """The tags of a TIFF; of a damaged one as many as can be read, for reading will say so."""
    with path.open("rb") as file:
        head = file.read(8)
        if head[2:4] == b"+\0":
            head += file.read(8)
        tags = ImageFileDirectory_v2(head if len(head) >= 8 else b"II*\0\0\0\0\0")
        if head[:4] != b"MM\0+":  # of which Pillow knows nothing
            file.seek(tags.next)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tags.load(file)
    return tags
