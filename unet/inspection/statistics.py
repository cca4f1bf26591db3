"""Every pair of a data set read once: what is in it, what is wrong with it, and what is kept."""

import hashlib
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unet.data.classes import Colour, StrayValueError
from unet.data.image_io import UnreadableError, image_mode, open_image, to_float
from unet.data.pairing import Pair
from unet.data.reader import PairReader
from unet.runtime.files import atomic_path

_AT_ONCE = 1024
"""Files that wait for a thread: a list of all would be large."""

CACHE_VERSION = 5
"""Of the columns of `PairStatistics` and how they are found."""


@dataclass(frozen=True)
class PairStatistics:
    """What is kept of pairs that were read once, a row each.

    Args:
        sizes: (N, 2) height and width.
        types: (N,) Pillow's mode and the dtype, as bytes.
        num_bytes: (N,) that image and class ids take in memory, and with a border the weights.
        class_pixels: (N, K) pixels of each class.
        sums: (N, C) of the values of each channel.
        squares: (N, C) of the squared values of each channel.
        contents: (N,) fingerprints of the images' pixels.
        targets: (N,) fingerprints of the class ids.
        cells: (N,) fingerprints of the cells, where the reader has a border; else empty.
        num_cells: (N,) likewise, their number; else 0.
    """

    sizes: np.ndarray
    types: np.ndarray
    num_bytes: np.ndarray
    class_pixels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    contents: np.ndarray
    targets: np.ndarray
    cells: np.ndarray
    num_cells: np.ndarray

    @classmethod
    def empty(cls, count: int, num_classes: int, channels: int) -> "PairStatistics":
        """Make `count` rows to be filled."""
        return cls(
            sizes=np.zeros((count, 2), np.int64),
            types=np.zeros(count, "S40"),
            num_bytes=np.zeros(count, np.int64),
            class_pixels=np.zeros((count, num_classes), np.int64),
            sums=np.zeros((count, channels)),
            squares=np.zeros((count, channels)),
            contents=np.zeros(count, "S16"),
            targets=np.zeros(count, "S16"),
            cells=np.zeros(count, "S16"),
            num_cells=np.zeros(count, np.int64),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: np.ndarray) -> "PairStatistics":
        return PairStatistics(**{name: column[rows] for name, column in vars(self).items()})

    def __setitem__(self, rows: np.ndarray, values: "PairStatistics") -> None:
        for name, column in vars(self).items():
            column[rows] = getattr(values, name)

    @property
    def pixels(self) -> int:
        """Of all images."""
        return int(self.sizes.prod(1).sum())


def collect_statistics(
    pairs: Sequence[Pair], reader: PairReader, memory: Path | None = None
) -> tuple[np.ndarray, PairStatistics, list[str], list[str]]:
    """Read every pair once, in parallel.

    Args:
        pairs: the files.
        reader: of them.
        memory: file that remembers what was found, by path, size and time of the files.

    Returns:
        The places of the pairs without fault; what was found in these; what is wrong with files
        that cannot be read; what is wrong with others.
    """
    shape = len(reader.classes.names), reader.in_channels
    found = PairStatistics.empty(len(pairs), *shape)
    keys = np.array([_key(pair) for pair in pairs], dtype="S16")
    good = _recall(memory, keys, found)
    unreadable, faults = [], []
    stray: Counter[int | Colour] = Counter()
    present, total = set(np.flatnonzero(found.class_pixels.any(0)).tolist()), 0
    todo = np.flatnonzero(~good).tolist()
    bar = tqdm(
        total=len(todo), desc="check", unit="image", leave=False, disable=None if todo else True
    )
    # A thread for each core: each holds a whole image.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with ThreadPoolExecutor(cores) as pool:
            for start in range(0, len(todo), _AT_ONCE):
                places = todo[start : start + _AT_ONCE]
                results = pool.map(_summarize, [pairs[i] for i in places], repeat(reader))
                for i, result in zip(places, results, strict=True):
                    bar.update()
                    match result:
                        case UnreadableError():
                            unreadable.append(str(result))
                        case StrayValueError():
                            faults.append(str(result) if reader.mask_per_class else result.what)
                            stray.update(result.pixels)
                            present |= result.present
                            total += result.total
                        case Exception():
                            faults.append(str(result))
                        case _:
                            good[i] = True
                            for column, value in zip(vars(found).values(), result, strict=True):
                                column[i] = value
                            present.update(np.flatnonzero(found.class_pixels[i]).tolist())
    finally:  # what was read before an interrupt is not read again, either
        bar.close()
        if memory is not None and todo:
            _remember(memory, keys[good], found[good])
    if stray and not reader.mask_per_class:
        advice = reader.classes.that_would_fit(stray, present, total + found.pixels)
        faults.append(f"all masks together: {advice}")
    return np.flatnonzero(good), found[good], unreadable, faults


def _summarize(pair: Pair, reader: PairReader) -> tuple[Any, ...] | Exception:
    """The row of a pair in `PairStatistics`, or what is wrong with it."""
    try:
        image, ids = reader.read(pair)
        num_bytes, cells, num_cells = image.nbytes + ids.nbytes, b"", 0
        if pair.instances is not None and (reader.border is None or reader.border.classes):
            reader.label_image(pair, ids)  # it is only scored: is it as it must be?
        if reader.border is not None:
            num_bytes += 2 * ids.size
            numbers = reader.cells(pair, ids)
            cells = _digest(numbers.astype(np.int64))  # whatever the file's own type
            num_cells = int(np.count_nonzero(np.unique(numbers)))
        mode = image_mode(pair.images[0])
    except UnreadableError as error:
        return UnreadableError("\n".join(_unreadable(pair)) or str(error))
    except (ValueError, FileNotFoundError) as error:
        return error
    sums, squares = np.zeros((2, len(image)))
    step = max(1, 2**20 // image[:, 0].size)
    for top in range(0, image.shape[1], step):  # by parts: as floats, a large image is larger yet
        values = to_float(image[:, top : top + step]).astype(np.float64).reshape(len(image), -1)
        sums += values.sum(1)
        squares += np.square(values).sum(1)
    return (
        ids.shape,
        f"{mode}, {image.dtype}",
        num_bytes,
        np.bincount(ids.ravel(), minlength=256)[: len(reader.classes.names)],
        sums,
        squares,
        _digest(image),
        _digest(ids),
        cells,
        num_cells,
    )


def _unreadable(pair: Pair) -> list[str]:
    """What is wrong with each file of a pair that cannot be read, not with the first one only."""
    texts = []
    for path in dict.fromkeys(pair.files):
        try:
            open_image(path, pair.page)
        except UnreadableError as error:
            texts.append(str(error))
        except ValueError:  # of a kind that is not taken: said when all can be read
            continue
    return texts


def _digest(array: np.ndarray) -> bytes:
    """A fingerprint of an array and its shape."""
    pixels, shape = np.ascontiguousarray(array).data, str(array.shape).encode()
    return hashlib.blake2b(pixels, digest_size=16, key=shape).digest()


def _key(pair: Pair) -> bytes:
    """A fingerprint of a pair's files: where they are, how large, and when they were written."""
    parts = [str(pair.page)]
    for path in pair.files:
        try:
            status = os.stat(path)  # noqa: PTH116 (of text, twice as fast)
        except OSError:  # a link to nothing: reading it will say so
            return b""
        parts += [path, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.blake2b(os.fsencode("\0".join(parts)), digest_size=16).digest()


def _recall(memory: Path | None, keys: np.ndarray, found: PairStatistics) -> np.ndarray:
    """Fill in what is remembered; return (N,) which rows that were."""
    known = np.zeros(len(keys), bool)
    if memory is None or not memory.exists() or not len(keys):
        return known
    try:
        with memory.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            old = PairStatistics(**{name: file[name] for name in vars(found)})
            old_keys = file["keys"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return known  # damaged: everything is read again
    if not len(old_keys):
        return known
    order = np.argsort(old_keys)
    places = order[np.searchsorted(old_keys, keys, sorter=order).clip(max=len(order) - 1)]
    known[:] = old_keys[places] == keys
    found[known] = old[places[known]]
    return known


def _remember(memory: Path, keys: np.ndarray, found: PairStatistics) -> None:
    """Write what was found; where that is impossible, say so: the check is worth having anyway."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(memory) as temporary, temporary.open("wb") as file:
            np.savez(file, keys=keys, **vars(found))
    except OSError as error:
        why = f"{memory.parent}: cannot be written to ({error.strerror})"
        print(f"note: {why}, so that everything is read again next time", file=sys.stderr)
