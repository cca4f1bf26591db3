"""Open image files: stored pixels, whole or in windows, and where they are valid.

Plain TIFFs and all other formats are read by Pillow, other TIFFs by tifffile, so that a file has
the same pixels whatever is installed. Values are the stored ones: no palette, look-up table or
photometric interpretation changes them.
"""

import atexit
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import UnidentifiedImageError

from unet.data.image_types import (
    DEFAULT_OPTIONS,
    Decoder,
    Header,
    ImageTypeError,
    Pixels,
    ReadOptions,
    UnreadableError,
    Window,
)
from unet.data.npy_decoder import START as NPY_START
from unet.data.npy_decoder import open_npy
from unet.data.pillow_decoder import open_pillow
from unet.data.tiff_decoder import open_tiff
from unet.data.tiff_tags import (
    COLOURS_TAG,
    NODATA_TAG,
    PLACE_TAGS,
    colours_of,
    declared_nodata,
    is_plain,
)
from unet.data.tiff_tags import STARTS as TIFF_STARTS
from unet.runtime.text import plural

# Errors of the machine, not of the file.
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_BYTES_PER_PIXEL = 8  # of the images that are decoded, at most on average

_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # brands

_NIFTI = "a NIfTI volume; save its slices as images, for example with med2image"


class ImageFile:
    """An open image file."""

    def __init__(
        self, path: Path, decoder: Decoder, mask: "ImageFile | None", options: ReadOptions
    ) -> None:
        self.path, self._decoder, self._mask, self._options = path, decoder, mask, options
        self._first = decoder.header

    def rewind(self) -> None:
        """Describe the first page again."""
        self._decoder.header = self._first

    @property
    def header(self) -> Header:
        """The description of the page that was read last, at first of the first."""
        header = self._decoder.header
        return replace(header, orientation=1) if self._options.exif == "ignore" else header

    @property
    def can_miss(self) -> bool:
        """Whether pixels can be missing: by a nodata value, NaN, alpha or a mask."""
        header = self.header
        declared = (header.nodata, self._options.nodata, self._mask)
        return header.alpha or header.has_mask or any(one is not None for one in declared)

    def read(self, page: int | None = None, window: Window | None = None) -> Pixels:
        """Read an image upright, or a window of it.

        Raises:
            UnreadableError: if the file is damaged.
            ImageTypeError: if `page` is None and there are several, or the image claims more than
                `ReadOptions.max_pixels`, or is to be turned and read in windows.
        """
        self._check(page, window)
        with _format_errors(self.path):
            values, valid = self._decoder.read(page or 0, window)
            known = [] if valid is None else [valid]
            if self._mask is not None:
                known.append(self._mask.read(window=window).values > 0)
            known += [~one for one in self._find_missing(values)]
            valid = known[0] if known else None
            for one in known[1:]:
                valid = valid & one
        orientation = self.header.orientation
        if valid is not None:
            valid = None if valid.all() else turn(valid, orientation)
        return Pixels(turn(values, orientation), valid)

    def _check(self, page: int | None, window: Window | None) -> None:
        header, (height, width) = self.header, self.header.size
        limit, num_bytes = self._options.max_pixels, header.bands * header.dtype.itemsize
        if page is None and header.pages > 1 and self._options.windows:
            raise ImageTypeError(
                f"{self.path}: got {header.pages} pages (axes {header.axes}), expected one image, "
                "as it is read in windows; turn windows off to read it page by page"
            )
        if page is None and header.pages > 1:
            raise ImageTypeError(
                f"{self.path}: got {header.pages} pages (axes {header.axes}), expected one image; "
                "set data.stacks=true if each page is an image, data.axes=CYX or similar if they "
                "are channels, or save each page as a file"
            )
        if page is not None and page >= header.pages:
            raise ImageTypeError(
                f"{self.path}: got {plural(header.pages, 'page')}, expected a page {page + 1}"
            )
        if window is not None and header.orientation != 1:
            raise ImageTypeError(
                f"{self.path}: got an EXIF orientation, expected an upright image, as it is read "
                "in windows; save it rotated, or turn windows off to read it whole, without "
                "georeference"
            )
        if window is None and height * width * max(1, num_bytes / _BYTES_PER_PIXEL) > limit:
            raise ImageTypeError(
                f"{self.path}: got {height} x {width} pixels of {plural(header.bands, 'band')}, "
                f"expected at most {limit:,} pixels of {_BYTES_PER_PIXEL} bytes; if the file is "
                "right, raise data.max_pixels"
            )

    def _find_missing(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yield where values (H, W, bands) are nodata.

        A float band can lack pixels that others have. A nodata value of integers can also be a
        brightness, so there a pixel is missing only if all its bands are.
        """
        is_float = values.dtype.kind == "f"
        for nodata in (self.header.nodata, self._options.nodata):
            if nodata is not None and (same := _equals(values, nodata)) is not None:
                yield same if is_float else np.asarray(same.all(2, keepdims=True))
        if is_float and (missing := np.isnan(values)).any():
            yield missing


def _equals(values: np.ndarray, nodata: float | tuple[float, ...]) -> np.ndarray | None:
    """Whether values (H, W, bands) are nodata; None if their dtype cannot hold it."""
    declared = np.array(nodata, np.float64)
    if declared.ndim and declared.size != values.shape[2]:
        declared = declared[:1]
    with np.errstate(over="ignore", invalid="ignore"):
        stored = declared.astype(values.dtype)
    # -3.4028235e38 is declared with fewer digits than the stored number has.
    tolerance = 1e-6 if values.dtype.kind == "f" else 0
    if not np.isclose(stored.astype(np.float64), declared, tolerance, 0).any():
        return None
    same: np.ndarray = values == stored
    return same


# Stacks that stay open, because to open one takes a time in proportion to its pages: by number,
# what identifies the file, and the open file. A stack in use is not among them.
_stacks: dict[int, tuple[tuple[Any, ...], ImageFile, ExitStack]] = {}
_numbers = count()
_MOST_STACKS = 16


@contextmanager
def open_image(path: str | Path, options: ReadOptions = DEFAULT_OPTIONS) -> Iterator[ImageFile]:
    """Open an image file. A stack of pages is kept open for the next time."""
    path = Path(path)
    found = _find_file(path)
    # A forked process shares the positions in its open files with its parent.
    key = (path, options, os.getpid(), found.st_ino, found.st_size, found.st_mtime_ns)
    file, files = _take_stack(key) or _open_file(path, options)
    with files:
        yield file
        if file.header.pages > 1:
            _stacks[next(_numbers)] = key, file, files.pop_all()
    while len(_stacks) > _MOST_STACKS:
        if (oldest := _stacks.pop(min(list(_stacks)), None)) is not None:
            oldest[2].close()


@atexit.register
def _close_stacks() -> None:
    for _, _, files in _stacks.values():
        files.close()


def _take_stack(key: tuple[Any, ...]) -> tuple[ImageFile, ExitStack] | None:
    for number, (other, _, _) in list(_stacks.items()):
        # Another thread may take it at the same time.
        if other == key and (taken := _stacks.pop(number, None)) is not None:
            taken[1].rewind()
            return taken[1:]
    return None


def _open_file(path: Path, options: ReadOptions) -> tuple[ImageFile, ExitStack]:
    with ExitStack() as files:
        with _format_errors(path):
            decoder = files.enter_context(_open_decoder(path, options))
        mask, second = None, f"{path}.msk"  # GDAL's mask of valid pixels
        is_tiff = second.lower().endswith((".tif.msk", ".tiff.msk"))
        if is_tiff and os.path.isfile(second):  # noqa: PTH113 (a Path takes longer to make)
            mask = files.enter_context(open_image(second, options))
        return ImageFile(path, decoder, mask, options), files.pop_all()


@contextmanager
def _open_decoder(path: Path, options: ReadOptions) -> Iterator[Decoder]:
    with ExitStack() as files:
        stream = files.enter_context(io.FileIO(path))
        start = stream.read(8)
        stream.seek(0)
        if start.startswith(NPY_START):
            yield files.enter_context(open_npy(path, options))
        elif start.startswith(TIFF_STARTS):
            is_big = b"+" in start  # Pillow warns of its own reading of BigTIFFs
            plain = None if options.windows or is_big else _open_plain_tiff(path, stream, files)
            yield plain or files.enter_context(open_tiff(path, options))
        else:
            yield files.enter_context(open_pillow(path, stream))


def _open_plain_tiff(path: Path, stream: io.FileIO, files: ExitStack) -> Decoder | None:
    """Open a TIFF by Pillow if that reads it as tifffile does; return None for others."""
    try:
        decoder = files.enter_context(open_pillow(path, stream, is_tiff=True))
    except (UnidentifiedImageError, ImageTypeError):
        return None
    tags = decoder.tiff_tags
    if not is_plain(path, tags):
        return None
    decoder.set_fields(
        nodata=declared_nodata(path, tags.get(NODATA_TAG)),
        has_place=any(tag in tags for tag in PLACE_TAGS),
    )
    if COLOURS_TAG in tags:
        decoder.set_fields(palette=colours_of(np.array(tags[COLOURS_TAG]).reshape(3, -1)))
    return decoder


def _find_file(path: Path) -> os.stat_result:
    """Raise FileNotFoundError for what is no regular file; opening a pipe would wait for ever."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:  # such as a link to itself, or a name with a null byte
        if isinstance(error, PermissionError):
            raise UnreadableError(
                f"{path}: cannot be read (permission denied); correct its permissions"
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise FileNotFoundError(f"{path}: cannot be found ({reason}); check the path") from None
    if not stat.S_ISREG(found.st_mode):
        what = "is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file"
        raise FileNotFoundError(f"{path}: {what}, expected an image; check the path")
    return found


@contextmanager
def _format_errors(path: Path) -> Iterator[None]:
    """Raise the errors of decoders inside the block, which are of any class, as `UnreadableError`.

    Errors that name the path are ours and stay as they are.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        ours = isinstance(error, ValueError) and str(error).startswith(f"{path}")
        if ours or (isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES):
            raise
        advice = "replace or remove the file"
        if isinstance(error, PermissionError):
            reason, advice = "permission denied", "correct its permissions"
        elif isinstance(error, UnidentifiedImageError):
            reason = _why_unidentified(path)
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableError(f"{path}: cannot be read as an image ({reason}); {advice}") from error


def _why_unidentified(path: Path) -> str:
    if path.stat().st_size == 0:
        return "0 bytes"
    unknown = "of an unknown format; PNG, TIFF, JPEG, .npy and others are known"
    return other_format(path) or unknown


def other_format(path: Path) -> str | None:
    """Name a known format that is not read, and how to convert the file; None if unknown."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _NIFTI
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as stream:
            start = stream.read(352)
    except OSError:
        return None
    if start[344:347] in (b"n+1", b"ni1"):
        return _NIFTI
    if start[128:132] == b"DICM":
        return "a DICOM file; save it as a PNG or TIFF, for example with dcmj2pnm of DCMTK"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file; save its arrays as images or .npy files"
    if start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "a JPEG XL file; save it as a PNG, for example with djxl of libjxl"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        return "a HEIC file; save it as a PNG, for example with heif-dec of libheif"
    if start.startswith(b"MATLAB"):
        return "a MATLAB file; save its arrays as .npy files, for example with scipy.io.loadmat"
    if start[:2] in (b"P4", b"P5", b"P6") and start[2:3].isspace():
        return "a PNM file; save it as a PNG"
    return None


def find_other_format(paths: Iterable[str]) -> str | None:
    """Name a file of another known format, of the first of each ending, and how to convert it."""
    firsts = {path.rpartition(".")[2]: path for path in sorted(paths, reverse=True)}
    formats = ((path, other_format(Path(path))) for path in sorted(firsts.values()))
    return next((f"{path} is {what}" for path, what in formats if what is not None), None)


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, ...) upright, as an EXIF orientation of 1 to 8 says."""
    if orientation > 4:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array
