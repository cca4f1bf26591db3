"""Read NumPy files: (H, W), (H, W, C) or (C, H, W)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from unet.data.image_types import (
    Header,
    ImageTypeError,
    Pixels,
    ReadOptions,
    Window,
)

START = b"\x93NUMPY"
_MOST_CHANNELS = 64  # of an array whose axes are not named


class NpyDecoder:
    """An open NumPy file."""

    def __init__(self, array: np.ndarray, path: Path, options: ReadOptions) -> None:
        if array.dtype.kind not in "buif" or not array.size:
            shape = " x ".join(map(str, array.shape))
            raise ImageTypeError(
                f"{path}: got {shape or 'single'} values of {array.dtype}, expected numbers of an "
                "image"
            )
        axes = _find_axes(array, path, options)
        order = [axes.index(axis) for axis in ("Y", "X", "C", "S") if axis in axes]
        pages = [i for i, axis in enumerate(axes) if axis not in "YXCS"]
        turned = array.transpose(*pages, *order)
        if array.ndim - len(pages) == 2:
            turned = turned[..., None]
        self._array = turned.reshape(-1, *turned.shape[-3:])
        height, width, bands = turned.shape[-3:]
        self.header = Header(
            size=(height, width),
            dtype=array.dtype.newbyteorder("="),
            bits=1 if array.dtype == bool else 8 * array.dtype.itemsize,
            bands=bands,
            mode={1: "grey", 3: "RGB"}.get(bands, f"{bands} bands"),
            pages=len(self._array),
            axes=axes,
            has_windows=True,
        )

    def read(self, page: int, window: Window | None) -> Pixels:
        """Read the stored values of a page, or of a window of it."""
        top, bottom, left, right = window or (0, self.header.size[0], 0, self.header.size[1])
        return Pixels(np.array(self._array[page, top:bottom, left:right], self.header.dtype), None)


@contextmanager
def open_npy(path: Path, options: ReadOptions) -> Iterator[NpyDecoder]:
    """Open a NumPy file."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    yield NpyDecoder(array, path, options)


def _find_axes(array: np.ndarray, path: Path, options: ReadOptions) -> str:
    if array.ndim == 2:
        return "YX"
    if options.axes is not None and len(options.axes) == array.ndim:
        return options.axes
    shape = " x ".join(map(str, array.shape)) or "single"
    if array.ndim == 3:
        first, last = array.shape[0], array.shape[2]
        if min(first, last) <= _MOST_CHANNELS and first != last:
            return "CYX" if first < last else "YXC"
    raise ImageTypeError(
        f"{path}: got {shape} values, expected height x width, or a setting data.axes with a "
        "letter for each axis: Y and X, C for channels, Z or T for pages, such as CYX or YXC"
    )
