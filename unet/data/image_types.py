"""What the readers of image files have in common: options, headers, pixels and errors."""

from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

PILLOW_FORMATS = {
    "PNG": [".png"],
    "JPEG": [".jpg", ".jpeg"],
    "TIFF": [".tif", ".tiff", ".lsm", ".stk", ".svs", ".ndpi"],  # plain ones
    "BMP": [".bmp"],
    "GIF": [".gif"],
    "WEBP": [".webp"],
    "AVIF": [".avif"],
    "JPEG2000": [".jp2", ".j2k"],
}
"""Formats that Pillow reads, by its names, and the endings of their files."""

SUFFIXES = frozenset({".npy", *chain.from_iterable(PILLOW_FORMATS.values())})


class UnreadableError(ValueError):
    """The file is no image or is damaged."""


class ImageTypeError(ValueError):
    """The file is an image of a type or shape that is not expected."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read, where they do not say it themselves.

    Args:
        nodata: value of missing pixels in images, in addition to the one that a file declares.
        axes: a letter for each axis of a TIFF or NumPy file, such as CYX: Y and X, C or S for
            channels, others for pages; None for the axes that the file names.
        exif: whether to turn images and masks as their EXIF orientation says.
        max_pixels: files that claim more pixels are not decoded whole.
        resize_masks: whether masks are resized to their images, where the aspect ratios agree.
        windows: whether the file is to be read in windows, without decoding it whole.
    """

    nodata: float | None = None
    axes: str | None = None
    exif: Literal["apply", "ignore"] = "apply"
    max_pixels: int = 250_000_000
    resize_masks: bool = False
    windows: bool = False


DEFAULT_OPTIONS = ReadOptions()


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description of an image in its file.

    Args:
        size: (height, width) as stored, before `orientation` turns the image.
        dtype: of the stored values.
        bits: of each value, such as 4 where the dtype is uint8.
        bands: number of channels, alpha included.
        mode: their meaning in words, such as RGB.
        alpha: whether the last band is alpha.
        pages: number of images.
        axes: as in `ReadOptions`.
        nodata: declared value of missing pixels, or a value for each band.
        orientation: of EXIF, from 1 (upright) to 8.
        palette: colours (P, 3) uint8 of the stored indices, or (P, 4) with alpha.
        has_mask: whether the file contains a mask of valid pixels.
        has_windows: whether windows are read without decoding the rest.
        has_place: whether the file says where on the Earth the image lies.
        note: how the pixels were converted, in words; empty if they were not.
    """

    size: tuple[int, int]
    dtype: np.dtype
    bits: int
    bands: int
    mode: str
    alpha: bool = False
    pages: int = 1
    axes: str = "YX"
    nodata: float | tuple[float, ...] | None = None
    orientation: int = 1
    palette: np.ndarray | None = None
    has_mask: bool = False
    has_windows: bool = False
    has_place: bool = False
    note: str = ""

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) after `orientation` has turned the image."""
        return self.size[::-1] if self.orientation > 4 else self.size

    def describe(self) -> str:
        """Return mode and dtype, such as RGB, uint8."""
        bits = f" ({self.bits} bits)" if self.bits not in (1, 8 * self.dtype.itemsize) else ""
        turned = ", turned by EXIF" if self.orientation != 1 else ""
        return f"{self.mode}, {self.dtype}{bits}{turned}"


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    bottom: int
    left: int
    right: int


def cut(array: Any, window: Window) -> Any:
    """Cut a window out of an array or a tensor (..., H, W)."""
    return array[..., window.top : window.bottom, window.left : window.right]


class Pixels(NamedTuple):
    """Values (H, W, bands), and where they are valid, bool (H, W, bands or 1); None: everywhere."""

    values: np.ndarray
    valid: np.ndarray | None


class Decoder(Protocol):
    """An open file of one format."""

    header: Header

    def read(self, page: int, window: Window | None) -> Pixels:
        """Read the stored values of a page, or of a window of it, as they are in the file."""
