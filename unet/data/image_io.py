"""Image files -> arrays. What a file contains decides how it is read, not its name.

Functions of a path raise FileNotFoundError if there is no such file, and UnreadableError if it is
no image or is damaged. They and functions with `where`, which their messages start with, raise
ValueError if the image is of another type or shape than expected. `page` is the page of a stack,
from 0; None stands for the only page of a file.
"""

import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, EXTRASAMPLES, SAMPLESPERPIXEL, TiffImageFile

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"})
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")

# Pillow refuses twice as many: a small file that claims to be huge must not fill the memory.
Image.MAX_IMAGE_PIXELS = 125_000_000

# Errors of the machine, not of the file.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# Pillow keeps the high byte of 16-bit colours. Read in the other byte order, it keeps the low one.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

# Floats beyond are no brightness but mark missing data, such as -3.4e38.
_HUGE = 1e9

Item = TypeVar("Item")
Result = TypeVar("Result")


class UnreadableError(ValueError):
    """The file is no image or is damaged."""


def open_image(path: str | Path, page: int | None = None) -> Image.Image:
    """Decode an image file of at most 8 bits per colour, turned as its EXIF orientation says."""
    image, cut = _decode(Path(path), page)
    if cut:
        raise ValueError(f"{path}: got colours of 16 bits, expected 8; save it with 8 bits")
    return image


def read_pixels(path: str | Path, page: int | None = None) -> np.ndarray:
    """Read (H, W) or (H, W, C) of uint8, uint16 or float32; a palette becomes its colours."""
    image, cut = _decode(Path(path), page)
    pixels = to_pixels(image, str(path))
    if cut:
        low, _ = _decode(Path(path), page, low_bytes=True)
        pixels = pixels.astype(np.uint16) << 8 | np.asarray(low)
    return pixels


def read_image(
    paths: str | Path | Sequence[str | Path], in_channels: int, page: int | None = None
) -> np.ndarray:
    """Read an image (C, H, W) of uint8, uint16 or float32 from one file or one per channel."""
    paths = [paths] if isinstance(paths, str | Path) else paths
    if len(paths) == 1:
        return to_channels(read_pixels(paths[0], page), in_channels, str(paths[0]))
    if len(paths) != in_channels:
        raise ValueError(
            f"{paths[0]}: got {len(paths)} files as channels, expected model.in_channels, "
            f"{in_channels}"
        )
    channels = [to_channels(read_pixels(path, page), 1, str(path)) for path in paths]
    for path, channel in zip(paths, channels, strict=True):
        got, expected = (
            f"{one.shape[1]} x {one.shape[2]} pixels of {one.dtype}"
            for one in (channel, channels[0])
        )
        if got != expected:
            raise ValueError(
                f"{path}: got {got}, expected {expected} as in {paths[0]}, another "
                "channel of the image"
            )
    return np.concatenate(channels)


def to_float(channels: np.ndarray) -> np.ndarray:
    """Scale integers to float32, 0 to 1 for the whole range of their type; copy float32."""
    if channels.dtype == np.float32:
        return channels.copy()
    return channels.astype(np.float32) / np.float32(np.iinfo(channels.dtype).max)


def count_pages(path: str | Path) -> int:
    """Count the images of a file."""
    with _open(Path(path)) as file:
        return _count_pages(file)


def image_mode(path: str | Path) -> str:
    """Return Pillow's mode, such as RGBA, and whether EXIF turns the image."""
    with _open(Path(path)) as file:
        turned = file.getexif().get(Base.Orientation, 1) != 1
        return f"{file.mode}{', turned by EXIF' if turned else ''}"


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the header, before EXIF turns the image."""
    with _open(Path(path)) as file:
        return file.height, file.width


def skip_unreadable(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Read what is readable; `unet check` reports the rest."""
    for item in items:
        try:
            yield read(item)
        except UnreadableError:
            continue


def _count_pages(file: ImageFile) -> int:
    # MPO is a phone's JPEG with a second picture, which is not meant.
    return 1 if file.format == "MPO" else int(getattr(file, "n_frames", 1))


@contextmanager
def _open(path: Path) -> Iterator[ImageFile]:
    """Open a file. Errors of its format inside the block become `UnreadableError`."""
    if not path.is_file():
        found = "is a folder, expected an image" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{path}: {found}; check the path")
    try:
        # By name, Pillow would map an uncompressed TIFF by the size that it has after its turn.
        with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as file:
            yield file
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any class
        if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            raise
        advice = "replace or remove the file"
        if isinstance(error, PermissionError):
            reason, advice = "permission denied", "correct its permissions"
        elif isinstance(error, UnidentifiedImageError):
            reason = _why_unidentified(path)
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"{path}: cannot be read as an image ({reason}); {advice}") from error


def _why_unidentified(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start in {b"II*\0", b"MM\0*"}:
        return "a truncated TIFF, or one of unknown type, such as 64-bit numbers or 5 channels"
    return "no PNG, JPEG, TIFF, BMP, GIF or WebP" if start else "0 bytes"


def _decode(
    path: Path, page: int | None = None, low_bytes: bool = False
) -> tuple[Image.Image, bool]:
    """Decode a file; also whether Pillow cut its 16-bit colours to their high (or low) bytes."""
    with _open(path) as file:
        pages = _count_pages(file)
        if page is not None or pages == 1:
            file.seek(page or 0)
            cut = _is_cut(file)
            if file.format == "PNG":  # decoding does not compare all checksums
                with Image.open(path, formats=("PNG",)) as same:
                    same.verify()
            if low_bytes:
                file.tile = [_swap_bytes(tile) for tile in file.tile]
            return _turn(file), cut
    raise ValueError(
        f"{path}: got a file of {pages} pages, expected one image; save each page as a file, or, "
        "to train on stacks, set data.stacks=true"
    )


def _turn(image: Image.Image) -> Image.Image:
    """Decode an image, and turn it as its EXIF says; no copy if it stays as it is."""
    image.load()  # turns TIFFs
    if image.getexif().get(Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _is_cut(file: ImageFile) -> bool:
    """Whether Pillow will keep only the high bytes; raise an error if the low ones are lost."""
    if "LA;16" in str(file.tile):
        raise ValueError("grey with alpha of 16 bits; save it without the alpha channel")
    cut = file.mode in {"RGB", "RGBA"} and ";16" in str(file.tile)
    if isinstance(file, TiffImageFile):
        if 0 in file.tag_v2.get(EXTRASAMPLES, ()):
            raise ValueError(
                f"{file.tag_v2.get(SAMPLESPERPIXEL)} channels without the meaning of the last one; "
                "save each channel as a file, or the image without it"
            )
        # The tiles of separate colour planes do not tell their bits.
        bits = max(file.tag_v2.get(BITSPERSAMPLE, (8,)))
        if not cut and file.mode in {"RGB", "RGBA"} and bits > 8:
            raise ValueError(f"planes of {bits} bits; interleave the colours")
    return cut


def _swap_bytes(tile: Any) -> Any:
    """Change the byte order in Pillow's description of packed pixels, such as RGB;16B."""
    packing, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
    packing = packing[:-1] + _OTHER_BYTE[packing[-1]]
    return tile._replace(args=packing if isinstance(tile.args, str) else (packing, *rest))


def to_pixels(image: Image.Image, where: str) -> np.ndarray:
    """Convert an image to (H, W) or (H, W, C) of uint8, uint16 or float32, turned by its EXIF."""
    if image.mode in {"LA", "RGB", "RGBA"} and ";16" in str(getattr(image, "tile", "")):
        raise ValueError(
            f"{where}: got an open image with colours of 16 bits, which Pillow cuts to 8; give its "
            "path instead"
        )
    try:
        image = _turn(image)
    except OSError as error:
        raise ValueError(f"{where}: cannot be decoded ({error}); open another file") from error
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in {"L", "LA", "RGB", "RGBA", "F"}:
        return np.asarray(image)
    if image.mode != "I" and not image.mode.startswith("I;16"):
        raise ValueError(
            f"{where}: got an image of Pillow's mode {image.mode}, expected grey, RGB or RGBA of "
            "8 bits, grey of 16 bits or of floating-point numbers; convert the image"
        )
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(
            f"{where}: got values from {pixels.min()} to {pixels.max()}, expected 0 to 65535; "
            "save the image with 16 bits"
        )
    return pixels.astype(np.uint16)


def to_channels(pixels: np.ndarray, in_channels: int, where: str) -> np.ndarray:
    """Convert (H, W) or (H, W, bands) of uint8, uint16 or float32 to (C, H, W).

    Only lossless conversions: a grey image is repeated to three channels, three equal channels
    become one, and a constant alpha channel is dropped.
    """
    if (
        pixels.dtype not in (np.uint8, np.uint16, np.float32)
        or pixels.ndim not in (2, 3)
        or not pixels.size
    ):
        raise ValueError(
            f"{where}: got an array of shape {pixels.shape} and dtype {pixels.dtype}, expected "
            "(H, W) or (H, W, C) of uint8, uint16 or float32"
        )
    if pixels.dtype == np.float32 and (wrong := np.count_nonzero(~(np.abs(pixels) < _HUGE))):
        raise ValueError(
            f"{where}: got {wrong} pixel(s) of NaN, infinity or beyond {_HUGE:g}, expected "
            "values of an image; replace the mark of missing data, or declare it as a TIFF's nodata"
        )
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] in (2, 4) and pixels.shape[2] != in_channels:
        pixels = drop_alpha(pixels, where)
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
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def drop_alpha(pixels: np.ndarray, where: str) -> np.ndarray:
    """Drop the last band of (H, W, bands), which must be constant."""
    alpha = pixels[:, :, -1]
    if alpha.min() != alpha.max():
        raise ValueError(
            f"{where}: got an alpha channel with values from {alpha.min()} to {alpha.max()}, "
            "expected a constant one, which means nothing; save the image without it"
        )
    return pixels[:, :, :-1]
