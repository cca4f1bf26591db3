"""Rasters, GeoTIFFs and TIFFs larger than memory, predicted window by window.

The output is cut into blocks. For each the network sees a window that reaches around it as far as
the network does, and that lies on the network's grid, so that the result is that of the whole
image to rounding; beyond its borders an unpadded network sees it mirrored. In memory there is one
window at a time. (Where a model's tiles blend, they are the windows, and the logits of a row of
them are in memory.)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unet.config.schema import tile_overlap, tiles_blend
from unet.data.classes import ClassMap
from unet.data.image_io import to_float
from unet.data.normalization import Normalization, normalization_from_sums
from unet.inference.geotiff import Block, Raster, Span, create_raster, file_tile, open_raster
from unet.inference.predictor import Predictor
from unet.inference.sliding_window import bands
from unet.inference.tta import Kind, View, choose, views
from unet.runtime import distributed
from unet.runtime.optional import import_extra

T = TypeVar("T")


def check_rasters(model: Predictor, path: str | Path, kinds: Sequence[Kind] = ()) -> None:
    """Refuse what cannot be had window by window.

    Args:
        model: to predict with.
        path: of a raster, for the messages.
        kinds: of test-time augmentation.

    Raises:
        ValueError: if the model needs the whole image at once, or rasterio is not installed.
    """
    whole = "; --no-windows reads it whole, if memory lasts, without georeference and nodata"
    import_extra("rasterio", f"{path}, which is read in windows without --no-windows")
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
    model: Predictor,
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
    with open_raster(path, model.net.in_channels) as source:
        model = _with_statistics(model, source)
        steps = [
            _block_side(
                min(
                    one.config.tiling.size[axis] - 2 * _around(one) - 2 * one.net.output_stride
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


def _around(model: Predictor) -> int:
    """Pixels that a window reaches beyond its block for what the network sees there."""
    return model.net.context or tile_overlap(model.config) // 2


def _blended_parts(model: Predictor, source: Raster) -> Iterator[tuple[Block, Tensor, np.ndarray]]:
    """As `_parts`, from the very tiles that blend in memory."""
    for top, logits in bands(
        lambda tiles: torch.stack([model.logits(tile, surrounded=True) for tile in tiles]).cpu(),
        lambda rows, columns: source.image(
            Block(Span(rows.start, rows.stop), Span(columns.start, columns.stop)),
            model.normalization.mean,
        ),
        source.size,
        tile=model.config.tiling.size,
        overlap=tile_overlap(model.config),
        align=model.net.output_stride,
        context=model.net.context,
        remainder=model.net.geometry.remainder,
        bar=source.path.name,
    ):
        size = (logits.shape[1], logits.shape[2])
        for _, span in _blocks(size, (size[0], 1024)):
            block = Block(Span(top, top + size[0]), span)
            yield block, logits[:, :, span.start : span.stop].softmax(0), source.valid(block)


def _parts(
    model: Predictor, source: Raster, steps: Sequence[int], kinds: Sequence[Kind]
) -> Iterator[tuple[Block, Tensor, np.ndarray]]:
    """Every block, its probabilities (K, h, w), and bool (h, w): where it is not nodata."""
    for block in _bar(_blocks(source.size, steps), source.path.name):
        valid = source.valid(block)
        if valid.any():
            scores = _predict_block(model, source, block, kinds)
        else:
            scores = torch.zeros(len(model.classes.names), *block.size)
        yield block, scores, valid


def _predict_block(model: Predictor, source: Raster, block: Block, kinds: Sequence[Kind]) -> Tensor:
    """Mean probabilities (K, h, w) of a block over the models and views of the whole raster."""
    total = torch.zeros(len(model.classes.names), *block.size)
    seen = list(product(model.members, views(kinds)))
    for one, view in seen:
        window = _window(block, source.size, one, view)
        image = source.image(window.grown(one.net.context), one.normalization.mean)
        with torch.inference_mode():
            scores = one.logits(view.show(image), surrounded=True).softmax(0)
            scores = view.back(scores, window.size).cpu()
        top, left = (inner.start - outer.start for inner, outer in zip(block, window, strict=True))
        height, width = block.size
        total = total + scores[:, top : top + height, left : left + width]
    return total / len(seen)


def _window(block: Block, size: tuple[int, int], model: Predictor, view: View) -> Block:
    """Let a block grow to what a model gives logits of, on the grid of a view, from its beginning.

    Without padding it may reach beyond the raster; its context is not in it.
    """
    spans = []
    cell, context, around = model.net.output_stride, model.net.context, _around(model)
    for span, side, from_end in zip(block, size, view.reversed_axes, strict=True):
        start, stop = (side - span.stop, side - span.start) if from_end else span
        if context:
            first = start // cell * cell
            last = first + model.net.geometry.input_side(stop - first) - 2 * context
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
    unit = file_tile(pixels)
    return max(pixels // unit, 1) * unit


def _bar(tiles: list[T], name: str) -> "tqdm[T]":
    hide = True if len(tiles) == 1 else distributed.disable_progress()
    return tqdm(tiles, name, unit="tile", leave=False, disable=hide)


def _with_statistics(model: Predictor, source: Raster) -> Predictor:
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
    own = normalization_from_sums(pixels.clip(1), sums, squares)

    def measured(one: Predictor) -> Predictor:
        chosen: Normalization = one.normalization if one.normalization.method == "given" else own
        return replace(one, normalization=chosen)

    return replace(measured(model), others=tuple(map(measured, model.others)))


@contextmanager
def _mask_writer(
    path: Path,
    source: Raster,
    model: Predictor,
    steps: Sequence[int],
    threshold: float | None,
) -> Iterator[Callable[[Block, Tensor, np.ndarray], None]]:
    classes = model.classes
    nodata = _nodata(classes)
    first = classes.encode(np.zeros((1, 1), np.uint8))
    bands = 3 if classes.coloured else 1
    declared = nodata if source.has_nodata else None
    with create_raster(path, source, bands, first.dtype.name, declared, steps) as file:
        if model.palette is not None and first.dtype == np.uint8 and not classes.coloured:
            file.write_colormap(1, dict(enumerate(model.palette)))

        def write(block: Block, scores: Tensor, valid: np.ndarray) -> None:
            values = classes.encode(choose(scores, threshold))
            values[~valid] = nodata
            file.write(values.reshape(*block.size, bands).transpose(2, 0, 1), window=block)

        yield write


@contextmanager
def _probability_writer(
    path: Path, source: Raster, names: Sequence[str], steps: Sequence[int]
) -> Iterator[Callable[[Block, Tensor, np.ndarray], None]]:
    declared = math.nan if source.has_nodata else None
    with create_raster(path, source, len(names), "float32", declared, steps) as file:
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
