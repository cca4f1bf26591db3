"""Image files -> arrays. What a file contains decides how it is read, not its name.

Functions of a path raise FileNotFoundError if there is no such file, and UnreadableError if it is
no image or is damaged. They and functions with `where`, which their messages start with, raise
ImageTypeError (a ValueError) if the image is of another type or shape than expected. `page` is the
page of a stack, from 0; None stands for the only page of a file. `window` None is the whole image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unet.data.image_file import open_image, turn
from unet.data.image_types import (
    DEFAULT_OPTIONS,
    Header,
    ImageTypeError,
    Pixels,
    ReadOptions,
    Window,
)
from unet.data.pillow_decoder import pixels_of
from unet.runtime.text import plural


def read_header(path: str | Path, options: ReadOptions = DEFAULT_OPTIONS) -> Header:
    """Read what a file says of its image, or of its first page."""
    with open_image(path, options) as file:
        return file.header


def read_stored(
    path: str | Path,
    page: int | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    window: Window | None = None,
) -> tuple[Header, Pixels]:
    """Read the header and the stored values (H, W, bands) of an image, upright."""
    with open_image(path, options) as file:
        pixels = file.read(page, window)
        return file.header, pixels


def read_image(
    paths: str | Path | Sequence[str | Path],
    in_channels: int,
    page: int | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    window: Window | None = None,
) -> np.ndarray:
    """Read an image (C, H, W) of uint8, uint16 or float32 from one file or one per channel.

    A palette becomes its colours. Where pixels are missing, the image is float32 as `to_float`
    makes it, with NaN for them.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    if len(paths) == 1:
        header, pixels = read_stored(paths[0], page, options, window)
        return stored_to_channels(header, pixels, in_channels, str(paths[0]))
    if len(paths) != in_channels:
        raise ImageTypeError(
            f"{paths[0]}: got {len(paths)} files as channels, expected model.in_channels, "
            f"{in_channels}"
        )
    channels = [read_image(path, 1, page, options, window) for path in paths]
    for path, channel in zip(paths, channels, strict=True):
        if channel.shape != channels[0].shape:
            got, expected = (f"{h} x {w} pixels" for _, h, w in (channel.shape, channels[0].shape))
            raise ImageTypeError(
                f"{path}: got {got}, expected {expected} as in {paths[0]}, another channel of the "
                "image"
            )
    if len({channel.dtype for channel in channels}) > 1:
        channels = [to_float(channel) for channel in channels]
    return np.concatenate(channels)


def stored_to_channels(header: Header, pixels: Pixels, in_channels: int, where: str) -> np.ndarray:
    """Convert stored values to an image (C, H, W), as `read_image` returns it.

    Only lossless conversions: a grey image is repeated to three channels, three equal channels
    become one, and pixels whose alpha is 0 are missing.
    """
    values, valid = pixels
    alpha = header.alpha
    if header.palette is not None:
        values, alpha = _apply_palette(values, header.palette, where), header.palette.shape[1] == 4
    bands = values.shape[2]
    if alpha and bands != in_channels:
        opaque = values[:, :, -1:] > 0
        valid = opaque if valid is None else valid[:, :, : bands - 1] & opaque
        values, bands = values[:, :, :-1], bands - 1
    if bands == 3 and in_channels == 1 and (values == values[:, :, :1]).all():
        values, valid = (
            values[:, :, :1],
            None if valid is None else np.asarray(valid.all(2, keepdims=True)),
        )
    elif bands != in_channels and not (bands == 1 and in_channels == 3):
        raise ImageTypeError(
            f"{where}: got an image of {plural(bands, 'channel')}, expected model.in_channels, "
            f"{in_channels}; convert the image, or train with model.in_channels={bands}"
        )
    samples = _to_samples(values, 8 if header.palette is not None else header.bits, where)
    if valid is not None and not valid.all():
        samples = np.where(valid, to_float(samples), np.float32(np.nan))
    if values.dtype.kind == "f" and np.isinf(samples).any():
        raise _infinite(values[np.isinf(samples)], where)
    if bands != in_channels:
        samples = np.repeat(samples, in_channels, axis=2)
    return np.ascontiguousarray(samples.transpose(2, 0, 1))


def to_channels(array: np.ndarray | Image.Image, in_channels: int, where: str) -> np.ndarray:
    """Convert an array (H, W) or (H, W, C), or an image of Pillow, as `read_image` does.

    The last of 2 or 4 channels is alpha, unless `in_channels` are as many.
    """
    if isinstance(array, Image.Image):
        try:
            header, values = pixels_of(array)
        except ImageTypeError as error:
            raise ImageTypeError(f"{where}: {error}") from None
        except OSError as error:
            raise ImageTypeError(
                f"{where}: cannot be decoded ({error}); open another file"
            ) from error
        return stored_to_channels(header, _upright(header, values), in_channels, where)
    if array.ndim not in (2, 3) or not array.size or array.dtype.kind not in "buif":
        raise ImageTypeError(
            f"{where}: got an array of shape {array.shape} and dtype {array.dtype}, expected "
            "numbers (H, W) or (H, W, C)"
        )
    dtype = array.dtype.newbyteorder("=")
    values = array.astype(dtype, copy=False).reshape(*array.shape[:2], -1)
    bands = values.shape[2]
    header = Header(
        size=(array.shape[0], array.shape[1]),
        dtype=dtype,
        bits=1 if dtype.kind == "b" else 8 * dtype.itemsize,
        bands=bands,
        mode=f"{bands} bands",
        alpha=bands in (2, 4),
    )
    missing = np.isnan(values) if dtype.kind == "f" else None
    pixels = Pixels(values, None if missing is None or not missing.any() else ~missing)
    return stored_to_channels(header, pixels, in_channels, where)


def to_float(channels: np.ndarray) -> np.ndarray:
    """Scale uint8 and uint16 to float32, 0 to 1 for the whole range of their type; copy float32."""
    if channels.dtype == np.float32:
        return channels.copy()
    return channels.astype(np.float32) / np.float32(np.iinfo(channels.dtype).max)


def missing_pixels(image: np.ndarray) -> np.ndarray | None:
    """Where all channels of an image (C, H, W) are missing, bool (H, W); None for nowhere."""
    if image.dtype != np.float32:
        return None
    missing: np.ndarray = np.isnan(image).all(0)
    return missing if missing.any() else None


def _upright(header: Header, values: np.ndarray) -> Pixels:
    return Pixels(turn(values, header.orientation), None)


def _apply_palette(values: np.ndarray, palette: np.ndarray, where: str) -> np.ndarray:
    if (highest := int(values.max())) >= len(palette):
        raise ImageTypeError(
            f"{where}: got the index {highest}, expected one of the palette's {len(palette)} "
            "colours; save the image again"
        )
    colours: np.ndarray = palette[values[:, :, 0]]
    return colours


def _to_samples(values: np.ndarray, bits: int, where: str) -> np.ndarray:
    """Convert stored values to uint8, uint16 or float32.

    Unsigned integers of up to 16 bits are brightness: the highest value of their bits becomes the
    highest of the dtype, or 1. Others are measurements and keep their values.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        if bits in (8, 16):
            return values
        if 255 % (2**bits - 1) == 0:  # 1, 2 and 4 bits
            scaled: np.ndarray = values * values.dtype.type(255 // (2**bits - 1))
            return scaled
        return values.astype(np.float32) / np.float32(2**bits - 1)
    if values.dtype.kind not in "uif":
        raise ImageTypeError(
            f"{where}: got values of {values.dtype}, expected integers or floating-point numbers"
        )
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _infinite(values: np.ndarray, where: str) -> ImageTypeError:
    """Describe values that are infinite as float32; float64 holds larger ones."""
    advice = "correct the image"
    if np.isfinite(values[0]):  # as str, which gives all digits
        advice = f"if {values[0]} means missing data, set data.nodata={values[0]}"
    return ImageTypeError(
        f"{where}: got {plural(values.size, 'value')} of infinity or beyond the range of float32, "
        f"expected those of an image; {advice}"
    )
