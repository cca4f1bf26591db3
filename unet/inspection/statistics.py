"""Pairs of files -> statistics of each pair and error messages; the statistics are cached."""

import hashlib
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from unet.data.classes import Colour, StrayValueError
from unet.data.image_file import OUT_OF_RESOURCES
from unet.data.image_io import missing_pixels, read_header, read_stored, to_float
from unet.data.image_types import UnreadableError
from unet.data.masks import read_class_masks, read_mask
from unet.data.pairing import Pair
from unet.data.reader import PairReader
from unet.data.resize import resize_area
from unet.inspection.remarks import find_remarks
from unet.runtime.device import num_cores
from unet.runtime.files import atomic_path
from unet.runtime.progress import Progress
from unet.runtime.text import group_messages, join_some

_QUEUE_SIZE = 1024
"""Pairs that wait for a thread; a queue of all pairs would be large."""

CACHE_VERSION = 10
"""Increased whenever the columns of `PairStatistics` or their computation change."""

THUMBNAIL_SIDE = 16
"""Pixels."""

PairStatistics = np.recarray[Any, Any]
"""Statistics of N pairs, one row each, with the columns of `empty_statistics`."""


def empty_statistics(count: int, num_classes: int, channels: int) -> PairStatistics:
    """Make N = `count` rows of zeros."""
    columns = [
        ("sizes", np.int64, 2),  # height and width
        ("types", "S40"),  # such as b"RGB, uint8": Pillow's mode and the dtype
        ("num_bytes", np.int64),  # of the decoded image, class ids and border weights
        ("resized", bool),  # whether the mask was, to the size of the image
        ("absorbed", np.int64),  # pixels of the mask that the tolerance made the nearest class
        ("class_pixels", np.int64, (num_classes,)),
        ("missing", np.int64),  # pixels of the image that are nodata
        ("values", np.int64, (channels,)),  # number of values that are not missing
        ("sums", np.float64, (channels,)),  # of these values, as `to_float` scales them
        ("squares", np.float64, (channels,)),  # sums of the squared values
        ("contents", "S16"),  # hash of the image's pixels
        ("thumbnails", np.uint8, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)),  # from 0, darkest, to 255
        ("targets", "S16"),  # hash of the class ids
        ("palettes", "S16"),  # hash of the mask's palette; empty if its colours do not matter
        ("remarks", "S200"),  # of `find_remarks`
        ("cells", "S16"),  # hash of the numbered cells; empty without border weights
        ("num_cells", np.int64),  # 0 without border weights
    ]
    return np.zeros(count, columns).view(np.recarray)


class Collected(NamedTuple):
    """What `collect_statistics` found."""

    kept: np.ndarray  # indices of the pairs without errors
    statistics: PairStatistics  # one row for each of these
    unreadable: list[str]  # messages on files that cannot be read
    errors: list[str]  # all other messages
    num_unreadable: int  # pairs with such files


def collect_statistics(
    pairs: Sequence[Pair], reader: PairReader, cache: Path | None = None
) -> Collected:
    """Read every pair once, in parallel; pairs whose files are unchanged come from the cache."""
    found = empty_statistics(len(pairs), len(reader.classes.names), reader.in_channels)
    keys = np.array([_key(pair) for pair in pairs], dtype="S16")
    good = _load_cache(cache, keys, found)
    todo = np.flatnonzero(~good).tolist()
    unreadable: list[tuple[str, str]] = []
    errors: list[tuple[str, str]] = []
    stray: list[tuple[str, StrayValueError]] = []
    num_unreadable = 0
    try:
        for i, result in _summarize_all(pairs, todo, reader):
            match result:
                case UnreadableError():
                    unreadable += _list_unreadable(pairs[i], reader) or [
                        _split(str(result), pairs[i])
                    ]
                    num_unreadable += 1
                case StrayValueError() if not reader.mask_per_class:
                    # Its frames hold the image.
                    stray.append((pairs[i].masks[0], result.with_traceback(None)))
                case Exception():
                    errors.append(_split(str(result), pairs[i]))
                case _:
                    good[i], found[i] = True, result
    finally:  # after an interrupt, too
        if cache is not None and todo:
            _save_cache(cache, keys[good], found[good])
    messages = _describe_stray_values(stray, reader, found) + group_messages(errors)
    kept = np.flatnonzero(good)
    return Collected(kept, found[good], group_messages(unreadable), messages, num_unreadable)


def _summarize_all(
    pairs: Sequence[Pair], todo: Sequence[int], reader: PairReader
) -> Iterator[tuple[int, tuple[Any, ...] | Exception]]:
    """Yield the index of each pair to read and what `_summarize` returns for it."""
    # One thread for each core: each thread holds a whole image.
    pool = ThreadPoolExecutor(num_cores())
    try:
        with Progress(len(todo), "check", "image", hide=not todo) as progress:
            for start in range(0, len(todo), _QUEUE_SIZE):
                indices = todo[start : start + _QUEUE_SIZE]
                results = pool.map(_summarize, [pairs[i] for i in indices], repeat(reader))
                for i, result in zip(indices, results, strict=True):
                    progress.update()
                    yield i, result
    except BaseException:  # after a signal, nobody waits for the rest of the queue
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _summarize(pair: Pair, reader: PairReader) -> tuple[Any, ...] | Exception:
    """The row of a pair in `PairStatistics`, or the error of reading it."""
    try:
        image, ids = reader.read(pair)
        num_bytes, cells, num_cells = image.nbytes + ids.nbytes, b"", 0
        if pair.instances is not None and (reader.border is None or reader.border.classes):
            reader.label_image(pair, ids)  # only `unet evaluate` uses it, but it must be valid
        if reader.border is not None:
            num_bytes += 2 * ids.size  # float16 weights
            numbers = reader.cells(pair, ids)
            cells = _hash(numbers.astype(np.int64))  # the file's own dtype does not matter
            num_cells = int(np.count_nonzero(np.unique(numbers)))
        header, mask_header = (
            read_header(path, reader.options) for path in (pair.images[0], pair.masks[0])
        )
        by_index = not (reader.classes.coloured or reader.mask_per_class)
        palette = mask_header.palette if by_index else None
        remarks = "; ".join(find_remarks(pair, reader, header, mask_header, image, ids)).encode()
        resized = reader.options.resize_masks and any(
            read_header(mask, reader.options).upright_size != ids.shape for mask in pair.masks
        )
        absorbed = _count_absorbed(pair, reader) if reader.classes.tolerance else 0
    except (ValueError, OSError) as error:
        if getattr(error, "errno", None) in OUT_OF_RESOURCES:
            raise
        return error
    values, sums, squares = _sum_values(image)
    missing = missing_pixels(image)
    num_missing = 0 if missing is None else np.count_nonzero(missing)
    class_pixels = np.bincount(ids.ravel(), minlength=256)[: len(reader.classes.names)]
    row = (ids.shape, header.describe(), num_bytes, resized, absorbed, class_pixels, num_missing)
    contents = _hash(image), _thumbnail(image), _hash(ids)
    palette_hash = b"" if palette is None else _hash(palette)
    return (*row, values, sums, squares, *contents, palette_hash, remarks, cells, num_cells)


def _count_absorbed(pair: Pair, reader: PairReader) -> int:
    """Count the pixels of the masks that only the tolerance makes a class."""
    count = 0
    for i, mask in enumerate(pair.masks):
        try:
            if reader.mask_per_class:
                name = reader.classes.names[1 + i]
                read_class_masks([mask], [name], 0, None, pair.page, reader.options)
            else:
                read_mask(mask, reader.classes.exact(), None, pair.page, reader.options)
        except StrayValueError as error:
            count += sum(error.pixels.values())
    return count


def _sum_values(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (C,) of the values of an image (C, H, W), their sums, and those of their squares."""
    counts = np.full(len(image), image[0].size)
    sums, squares = np.zeros((2, len(image)))
    rows = max(1, 2**20 // image[:, 0].size)  # a large image of float64 would not fit
    for top in range(0, image.shape[1], rows):
        values = to_float(image[:, top : top + rows]).astype(np.float64).reshape(len(image), -1)
        if image.dtype == np.float32 and (missing := np.isnan(values)).any():
            counts -= missing.sum(1)
            values[missing] = 0
        sums += values.sum(1)
        squares += np.square(values).sum(1)
    return counts, sums, squares


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """The mean of the channels of an image (C, H, W) in a few pixels, uint8."""
    step = max(1, min(image.shape[1:]) // 512)
    some = torch.from_numpy(to_float(np.ascontiguousarray(image[:, ::step, ::step])))
    small = resize_area(some.mean(0, keepdim=True), (THUMBNAIL_SIDE, THUMBNAIL_SIDE))[0].numpy()
    small = np.where(np.isnan(small), np.nanmean(small) if np.isfinite(small).any() else 0, small)
    spread = max(float(np.ptp(small)), 1e-6)
    thumbnail: np.ndarray = ((small - small.min()) / spread * 255).round().astype(np.uint8)
    return thumbnail


def _split(message: str, pair: Pair) -> tuple[str, str]:
    """The file that an error message starts with, and the rest of the message."""
    file = next((one for one in pair.files if message.startswith(f"{one}: ")), pair.images[0])
    return file, message.removeprefix(f"{file}: ")


def _list_unreadable(pair: Pair, reader: PairReader) -> list[tuple[str, str]]:
    """The error of every file of a pair that cannot be read, not only of the first."""
    messages = []
    for path in dict.fromkeys(pair.files):
        try:
            read_stored(path, pair.page, reader.options)
        except UnreadableError as error:
            messages.append(_split(str(error), pair))
        except ValueError:  # readable, but of a type that is reported once all files can be read
            continue
    return messages


def _describe_stray_values(
    stray: Sequence[tuple[str, StrayValueError]], reader: PairReader, found: PairStatistics
) -> list[str]:
    """One message for all masks with stray values, with a setting that fits them together."""
    if not stray:
        return []
    pixels: Counter[int | Colour] = Counter()
    present = set(np.flatnonzero(found.class_pixels.any(0)).tolist())
    total, interior = int(found.sizes.prod(1).sum()), 0
    for _, error in stray:
        pixels.update(error.pixels)
        present |= error.present
        total += error.total
        interior += error.interior
    advice = reader.classes.suggest(pixels, present, total, interior)
    masks = [mask for mask, _ in stray]
    if len(stray) == 1:
        return [f"{stray[0][1].what}; {advice}"]
    shown = [str(one if isinstance(one, int) else [*one]) for one, _ in pixels.most_common()]
    values = join_some(shown)
    what = "is no class" if len(pixels) == 1 else "are no classes"
    return [f"{len(stray)} masks hold {values}, which {what}; {advice} ({join_some(masks, 3)})"]


def _hash(array: np.ndarray) -> bytes:
    """A hash of an array's values and shape."""
    pixels, shape = np.ascontiguousarray(array).data, str(array.shape).encode()
    return hashlib.blake2b(pixels, digest_size=16, key=shape).digest()


def _key(pair: Pair) -> bytes:
    """A hash of paths, sizes and modification times of a pair's files; empty if one is missing."""
    fields = [str(pair.page)]
    for path in pair.files:
        try:
            status = os.stat(path)  # noqa: PTH116 (twice as fast as Path.stat)
        except OSError:
            return b""
        fields += [path, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.blake2b(os.fsencode("\0".join(fields)), digest_size=16).digest()


def _load_cache(cache: Path | None, keys: np.ndarray, found: PairStatistics) -> np.ndarray:
    """Fill in the cached rows; return which ones (N,)."""
    known = np.zeros(len(keys), bool)
    if cache is None or not cache.exists() or not len(keys):
        return known
    try:
        with cache.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            cached, cached_keys = file["statistics"], file["keys"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return known  # a damaged cache is written again
    if len(cached_keys):
        order = np.argsort(cached_keys)
        places = order[np.searchsorted(cached_keys, keys, sorter=order).clip(max=len(order) - 1)]
        known[:] = cached_keys[places] == keys
        found[known] = cached[places[known]]
    return known


def _save_cache(cache: Path, keys: np.ndarray, statistics: PairStatistics) -> None:
    """Write the cache; where that is impossible, print a note, as the statistics are still good."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(cache) as temporary, temporary.open("wb") as file:
            np.savez(file, keys=keys, statistics=statistics)
    except OSError as error:
        why = f"{cache.parent}: cannot be written to ({error.strerror})"
        print(f"note: {why}, so that the next check reads all files again", file=sys.stderr)
