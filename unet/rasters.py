"""Rasters: GeoTIFFs and TIFFs larger than memory, predicted window by window. Needs rasterio.

The output is cut into blocks. For each the network sees a window that reaches around it as far as
the network does, and that lies on the network's grid, so that the result is that of the whole
image to rounding; beyond its borders an unpadded network sees it mirrored. In memory there is one
window at a time. (Where a model's tiles blend, they are the windows, and the logits of a row of
them are in memory.)
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torch import Tensor
from tqdm import tqdm

from unet import distributed
from unet.atomic import atomic_path
from unet.checkpoint import SegmentationModel
from unet.config import tile_overlap, tiles_blend
from unet.data import Normalization, normalization_of
from unet.extras import extra
from unet.images import UnreadableError, to_channels, to_float
from unet.masks import ClassMap
from unet.model import mirrored
from unet.reach import unpadded_side
from unet.tiling import bands
from unet.tta import Kind, View, choose, views

T = TypeVar("T")

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


def check_rasters(model: SegmentationModel, path: str | Path, kinds: Sequence[Kind] = ()) -> None:
    """Refuse what cannot be had window by window.

    Args:
        model: to predict with.
        path: of a raster, for the messages.
        kinds: of test-time augmentation.

    Raises:
        ValueError: if the model needs the whole image at once, or rasterio is not installed.
    """
    whole = "; --no-windows reads it whole, if memory lasts, without georeference and nodata"
    extra("rasterio", f"{path}, which is read in windows without --no-windows")
    for one in model.members:
        if tiles_blend(one.config) and (kinds or model.others):
            settings = one.config.model
            raise ValueError(
                f"{path}: got a model of norm {settings.norm} and encoder {settings.encoder} with "
                "test-time augmentation or other models, expected it alone in windows, where its "
                f"tiles blend{whole}"
            )
        if one.normalization.method == "percentiles":
            raise ValueError(
                f"{path}: got normalization percentiles, which needs the whole image at once, "
                f"expected dataset or image for windows{whole}"
            )
    if "scales" in kinds:
        raise ValueError(
            f"{path}: got test-time augmentation by scales, which moves the pixels of windows, "
            f"expected flips and turns only{whole}"
        )


def predict_raster(
    model: SegmentationModel,
    path: Path,
    mask: Path | None,
    probabilities: Path | None = None,
    kinds: Sequence[Kind] = (),
    threshold: float | None = None,
) -> None:
    """Segment a raster and write tiled, compressed GeoTIFFs of its georeference.

    A pixel is nodata where all bands are, or where the alpha band is 0. It is nodata in what is
    written, too, and the network sees the mean of the training images in its place.

    Args:
        model: see `check_rasters`.
        path: the raster.
        mask: file to write; None for none. Nodata is 255, or the highest value below that no class
            has.
        probabilities: file to write, a float32 band for each class, nodata NaN; None for none.
        kinds: of test-time augmentation.
        threshold: as `choose`.

    Raises:
        UnreadableError: if the file is damaged.
        ValueError: if its bands are not those of the model.
    """
    with _open(path) as raster:
        source = _Source(raster, path, model.net.in_channels)
        model = _with_statistics(model, source)
        steps = [
            _block_side(
                min(
                    one.config.tiling.size[axis] - 2 * _around(one) - 2 * one.net.factor
                    for one in model.members
                )
            )
            for axis in (0, 1)
        ]
        with ExitStack() as files:
            # Added in this order, renamed in the other: once there is a mask, all is there.
            writers: list[Callable[[Block, Tensor, np.ndarray], None]] = []
            if mask is not None:
                writers.append(
                    files.enter_context(_mask_writer(mask, source, model, steps, threshold))
                )
            if probabilities is not None:
                names = model.classes.names
                writers.append(
                    files.enter_context(_probability_writer(probabilities, source, names, steps))
                )
            if tiles_blend(model.config):
                parts = _blended_parts(model, source)
            else:
                parts = _parts(model, source, steps, kinds)
            for block, scores, valid in parts:
                for write in writers:
                    write(block, scores, valid)


class _Source:
    """A raster that is read as images for a model."""

    def __init__(self, raster: Any, path: Path, in_channels: int) -> None:
        enums = extra("rasterio.enums", "a raster")
        self.raster, self.path, self.in_channels = raster, path, in_channels
        self.size = (int(raster.height), int(raster.width))
        self.bands = [
            i for i in raster.indexes if raster.colorinterp[i - 1] != enums.ColorInterp.alpha
        ]
        """Their numbers, from 1, without alpha."""
        self.has_nodata = any(
            enums.MaskFlags.all_valid not in flags for flags in raster.mask_flag_enums
        )
        dtypes = {raster.dtypes[i - 1] for i in self.bands}
        if len(dtypes) > 1 or not dtypes <= {"uint8", "uint16", "float32"}:
            raise ValueError(
                f"{path}: got bands of {', '.join(sorted(dtypes))}, expected all of uint8, uint16 "
                "or float32; convert it with gdal_translate -ot"
            )
        if raster.subdatasets:
            raise ValueError(
                f"{path}: got a raster of {len(raster.subdatasets)} pages, expected one; "
                "--no-windows reads a stack page by page"
            )
        if raster.colorinterp[0] == enums.ColorInterp.palette:
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
        errors = extra("rasterio.errors", "a raster")
        try:
            pixels = self.raster.read(self.bands, window=block)
            masks = np.ones(pixels.shape, bool)
            if self.has_nodata:
                masks = self.raster.read_masks(self.bands, window=block) > 0
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

    def image(self, block: Block, model: SegmentationModel) -> Tensor:
        """Read an image (C, h, w) from 0 to 1, with the model's mean for nodata; see `read`.

        What lies beyond the raster is mirrored.
        """
        rows, columns = (
            mirrored(torch.arange(*span), side) for span, side in zip(block, self.size, strict=True)
        )
        top, left = int(rows.min()), int(columns.min())
        inside = Block(Span(top, int(rows.max()) + 1), Span(left, int(columns.max()) + 1))
        pixels, seen = self.read(inside)
        mean = np.array(model.normalization.mean, np.float32)[:, None, None]
        image = torch.from_numpy(np.where(seen, to_float(pixels), mean))
        return image.index_select(1, rows - top).index_select(2, columns - left)


def _around(model: SegmentationModel) -> int:
    """Pixels that a window reaches beyond its block for what the network sees there."""
    return model.net.context or tile_overlap(model.config) // 2


def _blended_parts(
    model: SegmentationModel, source: _Source
) -> Iterator[tuple[Block, Tensor, np.ndarray]]:
    """As `_parts`, from the very tiles that blend in memory."""
    for top, logits in bands(
        lambda tiles: torch.stack([model.logits(tile, surrounded=True) for tile in tiles]).cpu(),
        lambda rows, columns: source.image(
            Block(Span(rows.start, rows.stop), Span(columns.start, columns.stop)), model
        ),
        source.size,
        tile=model.config.tiling.size,
        overlap=tile_overlap(model.config),
        align=model.net.factor,
        context=model.net.context,
        bar=source.path.name,
    ):
        size = (logits.shape[1], logits.shape[2])
        for _, span in _blocks(size, (size[0], 1024)):
            block = Block(Span(top, top + size[0]), span)
            yield block, logits[:, :, span.start : span.stop].softmax(0), source.valid(block)


def _parts(
    model: SegmentationModel, source: _Source, steps: Sequence[int], kinds: Sequence[Kind]
) -> Iterator[tuple[Block, Tensor, np.ndarray]]:
    """Every block, its probabilities (K, h, w), and bool (h, w): where it is not nodata."""
    for block in _bar(_blocks(source.size, steps), source.path.name):
        valid = source.valid(block)
        if valid.any():
            scores = _predict_block(model, source, block, kinds)
        else:
            scores = torch.zeros(len(model.classes.names), *block.size)
        yield block, scores, valid


def _predict_block(
    model: SegmentationModel, source: _Source, block: Block, kinds: Sequence[Kind]
) -> Tensor:
    """Mean probabilities (K, h, w) of a block over the models and views of the whole raster."""
    total = torch.zeros(len(model.classes.names), *block.size)
    seen = list(product(model.members, views(kinds)))
    for one, view in seen:
        window = _window(block, source.size, one, view)
        image = view.show(source.image(window.grown(one.net.context), one))
        with torch.inference_mode():
            scores = one.logits(image, surrounded=True).softmax(0)
            scores = view.back(scores, window.size).cpu()
        top, left = (inner.start - outer.start for inner, outer in zip(block, window, strict=True))
        height, width = block.size
        total = total + scores[:, top : top + height, left : left + width]
    return total / len(seen)


def _window(block: Block, size: tuple[int, int], model: SegmentationModel, view: View) -> Block:
    """Let a block grow to what a model gives logits of, on the grid of a view, from its beginning.

    Without padding it may reach beyond the raster; its context is not in it.
    """
    spans = []
    cell, context, around = model.net.factor, model.net.context, _around(model)
    for span, side, from_end in zip(block, size, view.reversed_axes, strict=True):
        start, stop = (side - span.stop, side - span.start) if from_end else span
        if context:
            first = start // cell * cell
            last = first + unpadded_side(model.net.levels, stop - first) - 2 * context
        else:
            first = max(0, (start - around) // cell * cell)
            last = min(side, math.ceil((stop + around) / cell) * cell)
        spans.append(Span(side - last, side - first) if from_end else Span(first, last))
    return Block(*spans)


def _blocks(size: tuple[int, int], steps: Sequence[int]) -> list[Block]:
    rows, columns = (
        [Span(start, min(start + step, side)) for start in range(0, side, step)]
        for side, step in zip(size, steps, strict=True)
    )
    return [Block(*spans) for spans in product(rows, columns)]


def _block_side(pixels: int) -> int:
    """What a window of the tiling's size has room for, in whole tiles of the file."""
    unit = _file_tile(pixels)
    return max(pixels // unit, 1) * unit


def _file_tile(pixels: int) -> int:
    """Side of a tile of the file: 256, or less, but a multiple of 16 as TIFF wants it."""
    return min(256, max(pixels // 16, 1) * 16)


def _bar(tiles: list[T], name: str) -> "tqdm[T]":
    hide = True if len(tiles) == 1 else distributed.hide_bar()
    return tqdm(tiles, name, unit="tile", leave=False, disable=hide)


def _with_statistics(model: SegmentationModel, source: _Source) -> SegmentationModel:
    """Measure a raster for models that normalise each image by its own numbers, in a first pass."""
    if all(one.normalization.method == "given" for one in model.members):
        return model
    pixels, sums, squares = np.zeros((3, source.in_channels))
    for block in _bar(_blocks(source.size, (1024, 1024)), f"{source.path.name}: brightness"):
        image, seen = source.read(block)
        values = np.where(seen, to_float(image).astype(np.float64), 0)
        pixels += seen.sum((1, 2))
        sums += values.sum((1, 2))
        squares += (values**2).sum((1, 2))
    own = normalization_of(pixels.clip(1), sums, squares)

    def measured(one: SegmentationModel) -> SegmentationModel:
        chosen: Normalization = one.normalization if one.normalization.method == "given" else own
        return replace(one, normalization=chosen)

    return replace(measured(model), others=tuple(map(measured, model.others)))


@contextmanager
def _mask_writer(
    path: Path,
    source: _Source,
    model: SegmentationModel,
    steps: Sequence[int],
    threshold: float | None,
) -> Iterator[Callable[[Block, Tensor, np.ndarray], None]]:
    classes = model.classes
    nodata = _nodata(classes)
    first = classes.encode(np.zeros((1, 1), np.uint8))
    bands = 3 if classes.coloured else 1
    declared = nodata if source.has_nodata else None
    with _create(path, source, bands, first.dtype.name, declared, steps) as file:
        if model.palette is not None and first.dtype == np.uint8 and not classes.coloured:
            file.write_colormap(1, dict(enumerate(model.palette)))

        def write(block: Block, scores: Tensor, valid: np.ndarray) -> None:
            values = classes.encode(choose(scores, threshold))
            values[~valid] = nodata
            file.write(values.reshape(*block.size, bands).transpose(2, 0, 1), window=block)

        yield write


@contextmanager
def _probability_writer(
    path: Path, source: _Source, names: Sequence[str], steps: Sequence[int]
) -> Iterator[Callable[[Block, Tensor, np.ndarray], None]]:
    declared = math.nan if source.has_nodata else None
    with _create(path, source, len(names), "float32", declared, steps) as file:
        file.descriptions = tuple(names)

        def write(block: Block, scores: Tensor, valid: np.ndarray) -> None:
            file.write(np.where(valid, scores.numpy(), np.float32(math.nan)), window=block)

        yield write


def _nodata(classes: ClassMap) -> int:
    """The highest value of 8 bits, or of 16 with masks of 16, that no class has."""
    used = set(np.array(classes.values).ravel().tolist())
    highest = 255 if max(used) < 256 else 65535
    free = next((value for value in range(highest, -1, -1) if value not in used), None)
    if free is None:
        raise ValueError(
            "data.classes: got colours of every value from 0 to 255, expected one that can mean "
            "nodata; --no-windows writes a mask without nodata"
        )
    return free


@contextmanager
def _create(
    path: Path,
    source: _Source,
    bands: int,
    dtype: str,
    nodata: float | None,
    steps: Sequence[int],
) -> Iterator[Any]:
    """Create a GeoTIFF of a raster's size and georeference, whole or not at all.

    Raises:
        OSError: with the path, if it cannot be written.
    """
    rasterio, errors = extra("rasterio", "a raster"), extra("rasterio.errors", "a raster")
    profile = {
        "driver": "GTiff",
        "height": source.size[0],
        "width": source.size[1],
        "count": bands,
        "dtype": dtype,
        "nodata": nodata,
        "crs": source.raster.crs,
        "transform": source.raster.transform,
        "tiled": True,
        "blockysize": _file_tile(steps[0]),
        "blockxsize": _file_tile(steps[1]),
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }
    points, their_crs = source.raster.gcps
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


def _is_whole(path: Path) -> bool:
    """Whether a TIFF holds all tiles that its directory, which is written last, tells of."""
    tags = _first_page(path)
    starts, sizes = (np.array(tags.get(tag, ()), np.int64) for tag in (_TILE_STARTS, _TILE_SIZES))
    end = path.stat().st_size
    return len(starts) > 0 and bool(((starts > 0) & (starts + sizes <= end)).all())


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a raster; GDAL keeps little in memory."""
    rasterio = extra("rasterio", f"{path}, which is read in windows")
    errors = extra("rasterio.errors", "a raster")
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=_CACHE_MEGABYTES):
        # Plain TIFFs may be large, too.
        warnings.simplefilter("ignore", errors.NotGeoreferencedWarning)
        try:
            raster = rasterio.open(path)
        except errors.RasterioError as error:
            raise _unreadable(path, error) from error
        with raster:
            yield raster


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
