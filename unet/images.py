"""Image files -> arrays."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

# Pillow takes images above 0.18 gigapixels for attacks; ours may have up to 1.
Image.MAX_IMAGE_PIXELS = 500_000_000


# Pillow keeps the high byte of 16-bit colours. Read in the other byte order, it keeps the low one.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def open_image(path: Path) -> Image.Image:
    """Open and decode one image file, turned as its EXIF orientation says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no image, is damaged, holds more than one page, or colours of
            16 bits, which Pillow's images cannot hold.
    """
    image, cut = _decode(path)
    if cut:
        raise ValueError(f"{path}: got colours of 16 bits, expected 8; save it with 8 bits")
    return image


def read_image(path: Path, in_channels: int) -> np.ndarray:
    """Read one image file as `to_channels` gives it; a palette becomes its colours.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read as an image of `in_channels` channels.
    """
    image, cut = _decode(path)
    pixels = to_pixels(image, str(path))
    if cut:
        low, _ = _decode(path, low_bytes=True)
        pixels = pixels.astype(np.uint16) << 8 | np.asarray(low)
    return to_channels(pixels, in_channels, str(path))


def _decode(path: Path, low_bytes: bool = False) -> tuple[Image.Image, bool]:
    """Decode a file; say whether its colours have 16 bits, of which this is the high (low) byte."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check the path")
    try:
        with Image.open(path, formats=_FORMATS) as file:
            pages = getattr(file, "n_frames", 1)
            cut = file.mode in {"LA", "RGB", "RGBA"} and ";16" in str(file.tile)
            # TIFFs that hold their colours apart do not say so in the tiles.
            if isinstance(file, TiffImageFile) and not cut and file.mode in {"RGB", "RGBA"}:
                bits = file.tag_v2.get(BITSPERSAMPLE, (8,))
                if max(bits) > 8:
                    raise ValueError(f"planes of {max(bits)} bits; interleave the colours")
            if "LA;16" in str(file.tile):
                raise ValueError("grey with alpha of 16 bits; save it without the alpha channel")
            if low_bytes:
                file.tile = [_swap_bytes(tile) for tile in file.tile]
            file.load()
            image = ImageOps.exif_transpose(file)
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any kind
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: cannot be read as an image ({reason}); replace or remove the file"
        ) from error
    if pages > 1:
        raise ValueError(
            f"{path}: got a file of {pages} pages, expected one image; save each page as a file"
        )
    return image, cut


def _swap_bytes(tile: Any) -> Any:
    """Pillow's description of how pixels are packed (such as RGB;16B), in the other byte order."""
    if isinstance(tile.args, str):
        return tile._replace(args=tile.args[:-1] + _OTHER_BYTE[tile.args[-1]])
    packing, *rest = tile.args
    return tile._replace(args=(packing[:-1] + _OTHER_BYTE[packing[-1]], *rest))


def open_pixels(image: Image.Image, where: str) -> np.ndarray:
    """Pixels as `to_pixels` gives them, of an image that the caller opened; turned as by its EXIF.

    Raises:
        ValueError: beginning with `where`, if the image is damaged or cannot be read so exactly.
    """
    if image.mode in {"LA", "RGB", "RGBA"} and ";16" in str(getattr(image, "tile", "")):
        raise ValueError(
            f"{where}: got an open image with colours of 16 bits, which Pillow cuts to 8; give its "
            "path instead"
        )
    try:
        image = ImageOps.exif_transpose(image)  # decodes it, if that is still to be done
    except OSError as error:
        raise ValueError(f"{where}: cannot be decoded ({error}); open another file") from error
    return to_pixels(image, where)


def to_pixels(image: Image.Image, where: str) -> np.ndarray:
    """Pillow image -> (H, W) or (H, W, bands), uint8 or uint16.

    Raises:
        ValueError: beginning with `where`, if the image has another kind of values.
    """
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in {"L", "LA", "RGB", "RGBA"}:
        return np.asarray(image)
    if image.mode != "I" and not image.mode.startswith("I;16"):
        raise ValueError(
            f"{where}: got an image of Pillow's mode {image.mode}, expected grey, RGB or RGBA of "
            "8 bits or grey of 16 bits; convert the image"
        )
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(
            f"{where}: got values from {pixels.min()} to {pixels.max()}, expected 0 to 65535; "
            "save the image with 16 bits"
        )
    return pixels.astype(np.uint16)


def to_channels(pixels: np.ndarray, in_channels: int, where: str) -> np.ndarray:
    """(H, W) or (H, W, bands), uint8 or uint16 -> float32 (C, H, W), 0 to 1 the whole range.

    Only what loses nothing is converted: a grey image is repeated to three channels, three equal
    channels are read as one, a constant alpha channel is dropped.

    Raises:
        ValueError: beginning with `where`, if the image has other channels or an alpha channel
            that means something.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(
            f"{where}: got an array of shape {pixels.shape} and dtype {pixels.dtype}, expected "
            "(H, W) or (H, W, C) of uint8 or uint16"
        )
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] in (2, 4) and pixels.shape[2] != in_channels:
        pixels = without_alpha(pixels, where)
    bands = pixels.shape[2]
    if bands == 1 and in_channels == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    elif bands == 3 and in_channels == 1 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, :1]
    elif bands != in_channels:
        raise ValueError(
            f"{where}: got an image of {bands} channel(s), expected model.in_channels, "
            f"{in_channels}; convert the image, or train with model.in_channels={bands}"
        )
    channels: np.ndarray = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return channels / np.float32(np.iinfo(pixels.dtype).max)


def without_alpha(pixels: np.ndarray, where: str) -> np.ndarray:
    """Drop the last band of (H, W, bands), which must be the same everywhere.

    Raises:
        ValueError: beginning with `where`, if it is not.
    """
    alpha = pixels[:, :, -1]
    if alpha.min() != alpha.max():
        raise ValueError(
            f"{where}: got an alpha channel with values from {alpha.min()} to {alpha.max()}, "
            "expected a constant one, which means nothing; save the image without it"
        )
    return pixels[:, :, :-1]
