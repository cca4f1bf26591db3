"""Rasters: GeoTIFFs and TIFFs larger than memory, predicted window by window. Needs rasterio.

The output is cut into blocks. For each the network sees a window that reaches around it as far as
the network does, and that lies on the network's grid, so that the result is that of the whole
image to rounding. In memory there is one window at a time. (With norm group or instance windows are
the tiles that blend, and a row of them is in memory.)
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
from unet.images import UnreadableError, check_numbers, to_channels, to_float
from unet.masks import ClassMap
from unet.tiling import blend_weights, place_tiles
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
    tags = _first_page(Path(path))
    return bool(
        windows
        or any(tag in tags for tag in _TAGS_OF_RASTERS)
        or tags.get(_WIDTH, 0) * tags.get(_HEIGHT, 0) > LARGEST_IN_MEMORY
    )


def check_rasters(model: SegmentationModel, path: str | Path, kinds: Sequence[Kind] = ()) -> None:
    """Refuse what cannot be had window by window.

    Args:
        model: to predict with.
        path: of a raster, for the messages.
        kinds: of test-time augmentation.

    Raises:
        ValueError: if the model needs the whole image at once, or rasterio is not installed.
    """
    whole = "; --no-windows reads it whole, if the memory is enough"
    extra("rasterio", f"{path}, which is read in windows without --no-windows")
    for one in (model, *model.others):
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
        unseen = torch.tensor(model.normalization.mean)[:, None, None]
        around = max(tile_overlap(one.config) // 2 for one in (model, *model.others))
        cell = max(one.net.factor for one in (model, *model.others))
        tile = [min(sides) for sides in zip(*_tile_sizes(model), strict=True)]
        steps = [_block_side(side - 2 * around - 2 * cell) for side in tile]
        with ExitStack() as files:
            # Added in this order, renamed in the other: once there is a mask, all is there.
            writers: list[Callable[[Block, Tensor, np.ndarray], None]] = []
            if mask is not None:
                writers.append(
                    files.enter_context(_mask_writer(mask, source, model, steps, threshold))
                )
            if probabilities is not None:
                num_classes = len(model.classes.names)
                writers.append(
                    files.enter_context(
                        _probability_writer(probabilities, source, num_classes, steps)
                    )
                )
            if tiles_blend(model.config):
                parts = _blended_parts(model, source, unseen)
            else:
                blocks = _bar(_blocks(source.size, steps), path.name)
                parts = (
                    (block, _predict_block(model, source, block, unseen, around, cell, kinds))
                    for block in blocks
                )
            for block, scores in parts:
                _, valid = source.read(block)
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
        """Read an image (C, h, w), 0 where it is hidden, and bool (h, w): where it is not nodata.

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
        valid: np.ndarray = np.any(masks, axis=0)
        # Of floats, a band may lack what others have; as an integer, nodata may be a brightness.
        is_float = pixels.dtype == np.float32
        pixels = np.where(masks if is_float else valid, pixels, pixels.dtype.type(0))
        if is_float:
            check_numbers(pixels, str(self.path))
        return to_channels(pixels.transpose(1, 2, 0), self.in_channels, str(self.path)), valid

    def image(self, block: Block, unseen: Tensor) -> Tensor:
        """Read an image (C, h, w) from 0 to 1, with `unseen` (C, 1, 1) for nodata; see `read`."""
        pixels, valid = self.read(block)
        return torch.where(torch.from_numpy(valid), torch.from_numpy(to_float(pixels)), unseen)


def _blended_parts(
    model: SegmentationModel, source: _Source, unseen: Tensor
) -> Iterator[tuple[Block, Tensor]]:
    """Probabilities (K, h, w) from the very tiles of `sliding_window`, a row of them in memory."""
    (height, width), overlap = source.size, tile_overlap(model.config)
    (tall, tops), (wide, lefts) = (
        place_tiles(side, tile, overlap, model.net.factor)
        for side, tile in zip(source.size, model.config.tiling.size, strict=True)
    )
    rows, columns = blend_weights(tops, tall, overlap), blend_weights(lefts, wide, overlap)
    logits = torch.zeros(len(model.classes.names), tall, width)  # of the rows from `top` on
    tiles = _bar(list(product(range(len(tops)), range(len(lefts)))), source.path.name)
    for i, j in tiles:
        top, left = tops[i], lefts[j]
        tile = Block(Span(top, min(top + tall, height)), Span(left, min(left + wide, width)))
        scores = model.logits(source.image(tile, unseen)).cpu()
        h, w = tile.size
        logits[:, :h, left : left + w] += scores * torch.outer(rows[i, :h], columns[j, :w])
        if j + 1 < len(lefts):
            continue
        # No other tile reaches above the next row of tiles.
        done = (tops[i + 1] if i + 1 < len(tops) else height) - top
        for _, span in _blocks((done, width), (done, 1024)):
            yield (
                Block(Span(top, top + done), span),
                logits[:, :done, span.start : span.stop].softmax(0),
            )
        logits = torch.cat([logits[:, done:], torch.zeros_like(logits[:, :done])], dim=1)


def _predict_block(
    model: SegmentationModel,
    source: _Source,
    block: Block,
    unseen: Tensor,
    around: int,
    cell: int,
    kinds: Sequence[Kind],
) -> Tensor:
    """Mean probabilities (K, h, w) of a block over the views of the whole raster."""
    total = torch.zeros(len(model.classes.names), *block.size)
    if not source.read(block)[1].any():
        return total
    seen = views(kinds)
    for view in seen:
        window = _window(block, source.size, around, cell, view)
        image = source.image(window, unseen)
        with torch.inference_mode():
            scores = view.back(model.logits(view.show(image)).softmax(0), window.size).cpu()
        top, left = (inner.start - outer.start for inner, outer in zip(block, window, strict=True))
        height, width = block.size
        total = total + scores[:, top : top + height, left : left + width]
    return total / len(seen)


def _window(block: Block, size: tuple[int, int], around: int, cell: int, view: View) -> Block:
    """Let a block grow, on the grid of a view: multiples of `cell` from where the view begins."""
    spans = []
    for span, side, from_end in zip(block, size, view.reversed_axes, strict=True):
        start, stop = (side - span.stop, side - span.start) if from_end else span
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


def _tile_sizes(model: SegmentationModel) -> list[tuple[int, int]]:
    return [one.config.tiling.size for one in (model, *model.others)]


def _bar(tiles: list[T], name: str) -> "tqdm[T]":
    hide = True if len(tiles) == 1 else distributed.hide_bar()
    return tqdm(tiles, name, unit="tile", leave=False, disable=hide)


def _with_statistics(model: SegmentationModel, source: _Source) -> SegmentationModel:
    """Measure a raster for models that normalise each image by its own numbers, in a first pass."""
    if all(one.normalization.method == "given" for one in (model, *model.others)):
        return model
    pixels, sums, squares = 0, np.zeros(source.in_channels), np.zeros(source.in_channels)
    for block in _bar(_blocks(source.size, (1024, 1024)), f"{source.path.name}: brightness"):
        image, valid = source.read(block)
        values = to_float(image)[:, valid].astype(np.float64)
        pixels += values.shape[1]
        sums += values.sum(1)
        squares += (values**2).sum(1)
    own = normalization_of(max(pixels, 1), sums, squares)

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
    path: Path, source: _Source, num_classes: int, steps: Sequence[int]
) -> Iterator[Callable[[Block, Tensor, np.ndarray], None]]:
    declared = math.nan if source.has_nodata else None
    with _create(path, source, num_classes, "float32", declared, steps) as file:

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
            with rasterio.open(temporary, "w", **profile) as file:
                if points:
                    file.gcps = (points, their_crs)
                yield file
            # Of what fails as it closes a file, GDAL says nothing.
            if not _is_whole(temporary):
                raise errors.RasterioIOError("cut off")
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
