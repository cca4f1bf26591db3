"""Predict rasters: GeoTIFFs, and TIFFs larger than memory, window by window.

The mask is written block by block. For each block, the network gets a window that contains the
block's receptive fields and lies on the network's grid, so that the result equals that of the whole
image up to rounding. Beyond the raster, an unpadded network gets the mirrored image. One window at
a time is in memory. Where a model's tiles are blended, the windows are its tiles, and the logits of
one row of tiles are in memory.
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

from unet.build import build_read_options
from unet.config.schema import tiles_blend
from unet.data.classes import ClassMap
from unet.data.normalization import normalization_from_sums
from unet.inference.geotiff import Block, Raster, Span, block_side, create_raster, open_raster
from unet.inference.predictor import Model, Predictor
from unet.inference.sliding_window import sliding_bands
from unet.inference.tta import TtaMode, View, choose_classes, list_views
from unet.runtime.optional import import_extra
from unet.runtime.progress import show_progress

T = TypeVar("T")
Scored = tuple[Block, Tensor, np.ndarray]
"""A block, its probabilities (K, h, w), and where it is not nodata, bool (h, w)."""

_WHOLE = "; turn windows off to read it whole, without georeference and nodata, if memory suffices"


def check_raster(model: Model, path: str | Path, tta: Sequence[TtaMode] = ()) -> None:
    """Raise if a raster cannot be predicted window by window; `path` is for the message.

    Raises:
        ValueError: if the model or test-time augmentation needs the whole image, or rasterio is not
            installed.
    """
    import_extra("rasterio", f"{path}, which is read in windows")
    for member in model.members:
        if tiles_blend(member.config) and (tta or len(model.members) > 1):
            settings = member.config.model
            raise ValueError(
                f"{path}: got a model of norm {settings.norm} and encoder {settings.encoder}, "
                "whose tiles are blended, with test-time augmentation or other models, expected "
                f"the model alone{_WHOLE}"
            )
        if member.config.data.scale != 1:
            raise ValueError(
                f"{path}: got a model with data.scale, which needs the whole image, expected one "
                f"without for windows{_WHOLE}"
            )
        if member.normalization.method == "percentiles":
            raise ValueError(
                f"{path}: got normalization percentiles, which needs the whole image, expected "
                f"dataset or image for windows{_WHOLE}"
            )
    if "scales" in tta:
        raise ValueError(
            f"{path}: got test-time augmentation by scales, which moves the pixels of windows, "
            f"expected only flips and turns{_WHOLE}"
        )


def predict_raster(
    model: Model,
    path: Path,
    mask: Path | None,
    probabilities: Path | None = None,
    tta: Sequence[TtaMode] = (),
    threshold: tuple[float | None, int] = (None, 1),
    description: str | None = None,
) -> str | None:
    """Predict a raster that passed `check_raster`; write tiled GeoTIFFs with its georeference.

    A pixel is nodata where all bands are nodata or the alpha band is 0. It is nodata in the result,
    too. The network gets the mean of the training images there.

    Args:
        model: the model.
        path: the raster.
        mask: the mask to write; None for none. Nodata is 255, or the highest value below that no
            class uses.
        probabilities: the file to write with a float32 band for each class, nodata NaN; None for
            none.
        tta: modes of test-time augmentation.
        threshold: of a class, and its id, as in `choose_classes`.
        description: text for the mask's tag ImageDescription.

    Returns:
        A description of the middle of a raster that is far from the training images; else None.

    Raises:
        UnreadableError: if the file is damaged.
        ValueError: if its bands are not the model's channels.
    """
    channels, read_options = model.config.model.in_channels, build_read_options(model.config)
    with open_raster(path, channels, read_options) as source, ExitStack() as files:
        # A file that claims a size that it does not have is found before others are created.
        source.read(Block(*(Span(side - 1, side) for side in source.size)))
        note = model.members[0].compare_range(source.image(_middle(source.size)))
        members = _with_image_statistics(model.members, source)
        steps = [min(_room(axis, member) for member in members) for axis in (0, 1)]
        # The mask is opened first, so it is renamed last: if it exists, all files do.
        if mask is not None:
            write_mask = files.enter_context(_open_mask(mask, source, model, steps, description))
        if probabilities is not None:
            names, nodata = model.classes.names, math.nan if source.can_miss else None
            opened = create_raster(probabilities, source, len(names), "float32", nodata, steps)
            bands = files.enter_context(opened)
            bands.descriptions = names
        if tiles_blend(model.config):
            scored = _score_blended(members[0], source)
        else:
            scored = _score_blocks(members, source, steps, tta)
        for block, scores, valid in scored:
            if mask is not None:
                write_mask(block, choose_classes(scores, *threshold), valid)
            if probabilities is not None:
                bands.write(np.where(valid, scores.numpy(), np.float32(math.nan)), window=block)
    return note


def _middle(size: tuple[int, int]) -> Block:
    spans = [Span(max(0, n // 2 - 256), min(n, n // 2 + 256)) for n in size]
    return Block(*spans)


def _score_blended(model: Predictor, source: Raster) -> Iterator[Scored]:
    def read(rows: slice, columns: slice) -> Tensor:
        block = Block(Span(rows.start, rows.stop), Span(columns.start, columns.stop))
        return source.image(block.grown(model.net.context))

    def run(tiles: Tensor) -> Tensor:
        return torch.stack([model.logits(tile, has_context=True) for tile in tiles]).cpu()

    tiles = replace(model.tiles, batch_size=1)
    for top, logits in sliding_bands(run, read, source.size, tiles, source.path.name):
        height, width = logits.shape[1:]
        for _, columns in _list_blocks((height, width), (height, 1024)):
            block = Block(Span(top, top + height), columns)
            scores = logits[:, :, columns.start : columns.stop].softmax(0)
            yield block, scores, source.valid(block)


def _score_blocks(
    members: Sequence[Predictor], source: Raster, steps: Sequence[int], tta: Sequence[TtaMode]
) -> Iterator[Scored]:
    num_classes = len(members[0].classes.names)
    for block in _progress(_list_blocks(source.size, steps), source.path.name):
        valid, scores = source.valid(block), torch.zeros(num_classes, *block.size)
        if valid.any():
            views = list(product(members, list_views(tta)))
            for member, view in views:
                scores = scores + _score_view(member, view, source, block)
            scores = scores / len(views)
        yield block, scores, valid


def _score_view(model: Predictor, view: View, source: Raster, block: Block) -> Tensor:
    """Return the probabilities (K, h, w) of a block in one view of the whole raster."""
    window = _window(block, source.size, model, view)
    image = source.image(window.grown(model.net.context))
    with torch.inference_mode():
        scores = model.logits(view.apply(image), has_context=True).softmax(0)
        scores = view.undo(scores, window.size).cpu()
    top, left = (inner.start - outer.start for inner, outer in zip(block, window, strict=True))
    height, width = block.size
    return scores[:, top : top + height, left : left + width]


def _window(block: Block, size: tuple[int, int], model: Predictor, view: View) -> Block:
    """Enlarge a block to a window on the network's grid, which starts where the view starts.

    The window of an unpadded network may end beyond the raster. Its context is not included.
    """
    spans, unit, geometry = [], model.net.output_stride, model.net.geometry
    around = _surroundings(model)
    for span, side, reverse in zip(block, size, view.reversed_axes, strict=True):
        start, stop = (side - span.stop, side - span.start) if reverse else span
        if geometry.context:
            first = start // unit * unit
            last = first + geometry.input_side(stop - first) - 2 * geometry.context
        else:
            first = max(0, (start - around) // unit * unit)
            last = min(side, math.ceil((stop + around) / unit) * unit)
        spans.append(Span(side - last, side - first) if reverse else Span(first, last))
    return Block(*spans)


def _surroundings(model: Predictor) -> int:
    """Return the pixels around a block that its receptive fields contain."""
    return model.net.context or model.tiles.overlap // 2


def _room(axis: int, model: Predictor) -> int:
    """Return the side of the largest block whose window is not larger than a tile of the model."""
    return block_side(
        model.tiles.size[axis] - 2 * _surroundings(model) - 2 * model.net.output_stride
    )


def _list_blocks(size: tuple[int, int], steps: Sequence[int]) -> list[Block]:
    rows, columns = (
        [Span(start, min(start + step, side)) for start in range(0, side, step)]
        for side, step in zip(size, steps, strict=True)
    )
    return [Block(*spans) for spans in product(rows, columns)]


def _progress(blocks: list[Block], name: str) -> Iterator[Block]:
    return show_progress(blocks, name, "tile", hide=len(blocks) == 1)


def _with_image_statistics(members: Sequence[Predictor], source: Raster) -> list[Predictor]:
    """Replace the normalization `image` by the statistics of a raster, read in a first pass."""
    if all(one.normalization.method == "given" for one in members):
        return list(members)
    pixels, sums, squares = np.zeros((3, source.in_channels))
    for block in _progress(_list_blocks(source.size, (1024, 1024)), f"{source.path.name}: mean"):
        values = source.image(block).double().numpy()
        known = ~np.isnan(values)
        values = np.where(known, values, 0)
        pixels += known.sum((1, 2))
        sums += values.sum((1, 2))
        squares += (values**2).sum((1, 2))
    own = normalization_from_sums(pixels.clip(1), sums, squares)
    return [
        one if one.normalization.method == "given" else replace(one, normalization=own)
        for one in members
    ]


@contextmanager
def _open_mask(
    path: Path, source: Raster, model: Model, steps: Sequence[int], description: str | None
) -> Iterator[Callable[[Block, np.ndarray, np.ndarray], None]]:
    """Yield a function that writes the class ids (h, w) of a block, and nodata where not valid."""
    classes = model.classes
    nodata, dtype = _choose_nodata(classes), classes.encode(np.zeros((1, 1), np.uint8)).dtype
    bands, declared = 3 if classes.coloured else 1, nodata if source.can_miss else None
    with create_raster(path, source, bands, dtype.name, declared, steps) as file:
        if model.palette is not None and dtype == np.uint8 and not classes.coloured:
            file.write_colormap(1, dict(enumerate(model.palette)))
        if description is not None:
            file.update_tags(TIFFTAG_IMAGEDESCRIPTION=description)

        def write(block: Block, ids: np.ndarray, valid: np.ndarray) -> None:
            values = classes.encode(ids)
            values[~valid] = nodata
            file.write(values.reshape(*block.size, bands).transpose(2, 0, 1), window=block)

        yield write


def _choose_nodata(classes: ClassMap) -> int:
    """Return the highest value of 8 bits (16 if the mask needs them) that no class has."""
    used = set(np.array(classes.values).ravel().tolist())
    highest = 255 if max(used) < 256 else 65535
    free = next((value for value in range(highest, -1, -1) if value not in used), None)
    if free is None:
        raise ValueError(
            "data.classes: got colours with every value from 0 to 255, expected one that is left "
            f"for nodata{_WHOLE}"
        )
    return free
