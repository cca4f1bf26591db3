"""Image files -> arrays; stacks of pages written."""

import errno
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, TiffTags, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    SAMPLESPERPIXEL,
    STRIPOFFSETS,
    AppendingTiffWriter,
    ImageFileDirectory_v2,
    TiffImageFile,
)

from unet.runtime.files import atomic_path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"})
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")

# Pillow refuses twice as many: a small file that claims to be huge must not fill the memory.
Image.MAX_IMAGE_PIXELS = 125_000_000


# Pillow keeps the high byte of 16-bit colours. Read in the other byte order, it keeps the low one.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


# No brightness, but a mark of missing data, such as -3.4e38.
_HUGE = 1e9

# The machine's errors, not the file's: too many open files, no memory.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

Item = TypeVar("Item")
Result = TypeVar("Result")

# Bytes of pixels in a TIFF, which ends at 4 GiB; the rest is for what is around them.
_LARGEST_TIFF = 4_000_000_000


class UnreadableError(ValueError):
    """A file that is no image or is damaged."""


def open_image(path: str | Path, page: int | None = None) -> Image.Image:
    """Open and decode one image file, turned as its EXIF orientation says.

    Args:
        path: the file; what it holds decides how it is read, not its name.
        page: which one of a stack, from 0; None for the only one.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableError: if the file is no image or is damaged.
        ValueError: if it holds several pages and `page` is None, or colours of 16 bits, which
            Pillow's images cannot hold.
    """
    image, cut = _decode(Path(path), page)
    if cut:
        raise ValueError(f"{path}: got colours of 16 bits, expected 8; save it with 8 bits")
    return image


def read_pixels(path: str | Path, page: int | None = None) -> np.ndarray:
    """Read one image file: (H, W) or (H, W, bands), uint8, uint16 or float32.

    A palette becomes its colours.

    Raises:
        FileNotFoundError, UnreadableError, ValueError: as `open_image`; also if the values are of
            another kind.
    """
    image, cut = _decode(Path(path), page)
    pixels = to_pixels(image, str(path))
    if cut:
        low, _ = _decode(Path(path), page, low_bytes=True)
        pixels = pixels.astype(np.uint16) << 8 | np.asarray(low)
    return pixels


def read_image(
    paths: str | Path | Sequence[str], in_channels: int, page: int | None = None
) -> np.ndarray:
    """Read an image (C, H, W) of uint8, uint16 or float32, as `to_channels` gives it.

    Args:
        paths: its file, or one file for each channel.
        in_channels: C.
        page: as `open_image`.

    Raises:
        FileNotFoundError, UnreadableError, ValueError: if a file cannot be read as such.
    """
    if isinstance(paths, str | Path):
        return to_channels(read_pixels(paths, page), in_channels, str(paths))
    if len(paths) == 1:
        return read_image(paths[0], in_channels, page)
    if len(paths) != in_channels:
        raise ValueError(
            f"{paths[0]}: got {len(paths)} files as channels, expected model.in_channels, "
            f"{in_channels}"
        )
    channels = [to_channels(read_pixels(path, page), 1, path) for path in paths]
    for path, channel in zip(paths, channels, strict=True):
        if channel.shape != channels[0].shape or channel.dtype != channels[0].dtype:
            raise ValueError(
                f"{path}: got {channel.shape[1]} x {channel.shape[2]} pixels of {channel.dtype}, "
                f"expected those of {paths[0]}, {channels[0].shape[1]} x {channels[0].shape[2]} of "
                f"{channels[0].dtype}, as both are channels of one image"
            )
    return np.concatenate(channels)


def to_float(channels: np.ndarray) -> np.ndarray:
    """Scale integers to float32 from 0 to 1, the whole range of their bits; floats stay."""
    if channels.dtype == np.float32:
        return channels.copy()
    return channels.astype(np.float32) / np.float32(np.iinfo(channels.dtype).max)


def count_pages(path: str | Path) -> int:
    """How many images a file holds.

    Raises:
        FileNotFoundError, UnreadableError: as `open_image`.
    """
    with _open(Path(path)) as file:
        return _pages(file)


def image_mode(path: str | Path) -> str:
    """Pillow's name of a file's kind of pixels, such as RGBA, and whether its EXIF turns it.

    Raises:
        FileNotFoundError, UnreadableError: as `open_image`.
    """
    with _open(Path(path)) as file:
        turned = file.getexif().get(Base.Orientation, 1) != 1
        return f"{file.mode}{', turned by EXIF' if turned else ''}"


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels as the file's header says, before any turn by its EXIF.

    Raises:
        FileNotFoundError, UnreadableError: as `open_image`.
    """
    with _open(Path(path)) as file:
        return file.height, file.width


def skip_unreadable(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What can be read of some files; `unet check` names the others."""
    for item in items:
        try:
            yield read(item)
        except UnreadableError:
            continue


@contextmanager
def stack_writer(path: Path, num_bytes: int) -> Iterator[Callable[[Image.Image], None]]:
    """Give a function that adds a page to a TIFF, which is whole or not at all in the end.

    It is deflated, or a BigTIFF, which Pillow does not compress.

    Args:
        path: the file.
        num_bytes: of the pixels of all pages together; above 4 GB the file is a BigTIFF.

    Raises:
        ValueError: if there were more, and the file is full.
    """
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate"}
    if num_bytes > _LARGEST_TIFF:
        # Pillow moves a page to its place in the file, and has room for where that is in 64 bits
        # only if it is of this type from the beginning.
        tags = ImageFileDirectory_v2()
        tags.tagtype[STRIPOFFSETS] = TiffTags.LONG8
        tags[STRIPOFFSETS] = 0
        options = {"big_tiff": True, "tiffinfo": tags}
    with (
        atomic_path(path) as temporary,
        temporary.open("w+b") as stream,
        AppendingTiffWriter(stream) as file,
    ):

        def add(page: Image.Image) -> None:
            try:
                page.save(file, format="TIFF", **options)
                file.newFrame()
            except struct.error as error:  # no 32 bits for where the page is
                raise ValueError(
                    f"{path}: got more than 4 GiB, expected pages of the size of the first; save "
                    "pages of other sizes as files of their own"
                ) from error

        yield add


def _pages(file: ImageFile) -> int:
    # MPO is a phone's JPEG with a second picture in it, which is not meant.
    return 1 if file.format == "MPO" else int(getattr(file, "n_frames", 1))


@contextmanager
def _open(path: Path) -> Iterator[ImageFile]:
    """Open a file, and say of whatever goes wrong with it that it cannot be read."""
    if not path.is_file():
        what = "is a folder, expected an image" if path.is_dir() else "there is no such file"
        raise FileNotFoundError(f"{path}: {what}; check the path")
    try:
        # By name, Pillow would map an uncompressed TIFF by the size that it has after its turn.
        with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as file:
            yield file
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise errors of any class
        if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            raise
        reason, cure = (
            " ".join(str(error).split()) or type(error).__name__,
            "replace or remove the file",
        )
        if isinstance(error, UnidentifiedImageError):
            with path.open("rb") as stream:
                head = stream.read(4)
            reason = "no PNG, JPEG, TIFF, BMP, GIF or WebP" if head else "0 bytes"
            if head in {b"II*\0", b"MM\0*"}:
                reason = "a TIFF that is cut off, or of a kind such as 64-bit numbers or 5 channels"
        elif isinstance(error, PermissionError):
            reason, cure = "permission denied", "correct its rights"
        raise UnreadableError(f"{path}: cannot be read as an image ({reason}); {cure}") from error


def _decode(
    path: Path, page: int | None = None, low_bytes: bool = False
) -> tuple[Image.Image, bool]:
    """Decode a file; say whether its colours have 16 bits, of which this is the high (low) byte."""
    with _open(path) as file:
        pages = _pages(file)
        if page is not None or pages == 1:
            file.seek(page or 0)
            cut = _is_cut(file)
            if file.format == "PNG":  # whose checksums decoding passes over
                with Image.open(path, formats=("PNG",)) as same:
                    same.verify()
            if low_bytes:
                file.tile = [_swap_bytes(tile) for tile in file.tile]
            file.load()
            return ImageOps.exif_transpose(file), cut
    raise ValueError(
        f"{path}: got a file of {pages} pages, expected one image; save each page as a file, or, "
        "to train on stacks, set data.stacks=true"
    )


def _is_cut(file: ImageFile) -> bool:
    """Whether Pillow will keep only the high byte of this file's colours."""
    if "LA;16" in str(file.tile):
        raise ValueError("grey with alpha of 16 bits; save it without the alpha channel")
    if isinstance(file, TiffImageFile) and 0 in file.tag_v2.get(EXTRASAMPLES, ()):
        raise ValueError(
            f"{file.tag_v2.get(SAMPLESPERPIXEL)} channels, of which it does not say what the last "
            "is; save each channel as a file, or the image without it"
        )
    cut = file.mode in {"RGB", "RGBA"} and ";16" in str(file.tile)
    # TIFFs that hold their colours apart do not say so in the tiles.
    if isinstance(file, TiffImageFile) and not cut and file.mode in {"RGB", "RGBA"}:
        bits = file.tag_v2.get(BITSPERSAMPLE, (8,))
        if max(bits) > 8:
            raise ValueError(f"planes of {max(bits)} bits; interleave the colours")
    return cut


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
    """Pillow image -> (H, W) or (H, W, bands), uint8, uint16 or float32.

    Raises:
        ValueError: beginning with `where`, if the image has another kind of values.
    """
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in {"L", "LA", "RGB", "RGBA"}:
        return np.asarray(image)
    if image.mode == "F":
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
    """(H, W) or (H, W, bands) of uint8, uint16 or float32 -> (C, H, W) of the same.

    Only what loses nothing is converted: a grey image is repeated to three channels, three equal
    channels are read as one, a constant alpha channel is dropped.

    Raises:
        ValueError: beginning with `where`, if the image has other channels, an alpha channel that
            means something, or floating-point values that are no brightness.
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
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
