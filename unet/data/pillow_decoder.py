"""Read image files by Pillow: all formats but NumPy's and TIFFs that are not plain."""

import io
import logging
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from unet.data.image_types import PILLOW_FORMATS, Header, ImageTypeError, Pixels, Window

# What Pillow logs of files that another decoder reads would be printed once for each file.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# `ReadOptions.max_pixels` is the limit: Pillow's own is the same for all files of a process.
Image.MAX_IMAGE_PIXELS = None

# Pillow keeps the high byte of 16-bit colours. Read in the other byte order, it keeps the low one.
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

# Where JPEG 2000 (marker SIZ) and AVIF (box av1C) say how many bits values have: the marker, and
# the offset of a byte.
_DEPTHS = {"JPEG2000": (b"\xff\x51", 40), "AVIF": (b"av1C", 6)}

_MODES = {"1": "grey", "L": "grey", "I": "grey", "F": "grey", "P": "palette", "CMYK": "CMYK"}
_NAMES = {"LA": "grey with alpha", "RGB": "RGB", "RGBA": "RGBA"}


class PillowDecoder:
    """An image file that Pillow has opened."""

    def __init__(self, file: ImageFile, path: Path) -> None:
        self._file, self._path = file, path
        # MPO is a phone's JPEG with a second picture, which is not meant; plain TIFFs have one.
        is_single = file.format in {"MPO", "TIFF"}
        self._pages = 1 if is_single else int(getattr(file, "n_frames", 1))
        # Packed pages of an animation, once they are read in another order than the file's: Pillow
        # decodes each from those before it.
        self._packed: list[tuple[Header, bytes]] | None = None
        bits = self._check_depth()
        self.header = replace(_read_header(file), pages=self._pages)
        if bits is not None:
            self.set_fields(bits=bits)

    @property
    def tiff_tags(self) -> ImageFileDirectory_v2:
        """The tags of a TIFF."""
        assert isinstance(self._file, TiffImageFile)
        return self._file.tag_v2

    def set_fields(self, **fields: Any) -> None:
        """Set fields of the header that Pillow does not read."""
        self.header = replace(self.header, **fields)

    def read(self, page: int, window: Window | None) -> Pixels:
        """Read the stored values of a page, or of a window of it."""
        if self._packed is None and page < self._file.tell():
            self._packed = []
        values = self._decode(page) if self._packed is None else self._unpack(self._packed, page)
        if window is not None:
            values = values[window.top : window.bottom, window.left : window.right]
        return Pixels(values, None)

    def _unpack(self, packed: list[tuple[Header, bytes]], page: int) -> np.ndarray:
        for i in range(len(packed), page + 1):
            values = self._decode(i)
            packed.append((self.header, zlib.compress(values.tobytes(), 1)))
        self.header, contents = packed[page]
        values = np.frombuffer(zlib.decompress(contents), self.header.dtype)
        return values.reshape(*self.header.size, self.header.bands)

    def _decode(self, page: int) -> np.ndarray:
        """Decode the values (H, W, bands) of a page, and describe it."""
        file = self._file
        if self._pages > 1:
            file.seek(page)  # a GIF's pages differ in mode
            self.header = replace(_read_header(file), pages=self._pages)
        if file.format == "PNG":  # decoding does not compare all checksums
            _compare_checksums(file)
        packing = _packing(file)
        file.load()
        if file.format == "PNG":
            self.header = replace(self.header, orientation=_orientation(file))
        values = _to_array(file, packing)
        if file.format == "JPEG2000":  # Pillow shifts values of fewer bits
            values = values >> (8 * values.itemsize - self.header.bits)
        if file.mode in {"RGB", "RGBA"} and ";16" in packing:
            with Image.open(self._path, formats=tuple(PILLOW_FORMATS)) as low:
                low.tile = [_swap_bytes(tile) for tile in low.tile]
                low.load()
                values = values.astype(np.uint16) << 8 | np.asarray(low)
        return values.reshape(*values.shape[:2], -1)

    def _check_depth(self) -> int | None:
        """Return the bits of the values of a JPEG 2000, else None.

        Raises:
            ImageTypeError: for values that Pillow would change.
        """
        file, change, bits = self._file, "", None
        if "LA;16" in _packing(file):
            change = "grey with alpha of 16 bits"
        elif file.format in _DEPTHS:
            marker, place = _DEPTHS[file.format]
            with self._path.open("rb") as stream:
                head = stream.read(65536)
            start = head.find(marker)
            depth = head[start + place] if 0 <= start < len(head) - place else 7
            is_grey = len(file.getbands()) == 1
            if file.format == "AVIF":
                change = "" if is_grey or not depth & 64 else "AVIF in colours of more than 8 bits"
            elif depth & 128:
                change = "JPEG 2000 of values with a sign"
            elif not is_grey and depth != 7:
                change = f"JPEG 2000 in colours of {depth + 1} bits"
            elif depth > 15:
                change = f"JPEG 2000 of {depth + 1} bits"
            else:
                bits = depth + 1
        if change:
            raise ImageTypeError(
                f"{self._path}: got {change}, which Pillow changes, expected another type; save it "
                "as a TIFF"
            )
        return bits


class _Stream(io.BufferedReader):
    """A file whose reads need no more memory than it has bytes, whatever it claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


@contextmanager
def open_pillow(path: Path, raw: io.FileIO, is_tiff: bool = False) -> Iterator[PillowDecoder]:
    """Decode an open file by Pillow."""
    # Pillow reads the many small tags of a TIFF one by one, and large ones in blocks.
    kind = io.BufferedReader if is_tiff else _Stream
    # By name, Pillow would map an uncompressed TIFF by the size that it has after its turn.
    with kind(raw) as stream, Image.open(stream, formats=tuple(PILLOW_FORMATS)) as file:
        yield PillowDecoder(file, path)


def pixels_of(image: Image.Image) -> tuple[Header, np.ndarray]:
    """Return the header and the values (H, W, bands) of an image of Pillow."""
    header, packing = _read_header(image), _packing(image)
    if ";16" in packing and len(image.getbands()) > 1:
        raise ImageTypeError(
            "got an open image with colours of 16 bits, which Pillow cuts to 8; give its path "
            "instead"
        )
    image.load()
    values = _to_array(image, packing)
    return header, values.reshape(*values.shape[:2], -1)


def _read_header(file: Image.Image) -> Header:
    bits, packing, mode = 8, _packing(file), file.mode
    dtype = np.dtype({"1": bool, "F": np.float32, "I": np.int32}.get(mode, np.uint8))
    if mode.startswith("I;16") or (mode == "I" and file.format == "PNG") or ";16" in packing:
        dtype, bits = np.dtype(np.uint16), 16
    elif mode in ("I", "F"):
        bits = 32
    elif mode == "1":
        bits = 1
    elif packing[:3] in ("L;2", "L;4"):
        bits = int(packing[2])
    bands = 3 if mode == "CMYK" else len(file.getbands())
    header = Header(
        size=(file.height, file.width),
        dtype=dtype,
        bits=bits,
        bands=bands,
        mode=_MODES.get(mode, _NAMES.get(mode, "grey" if mode.startswith("I;16") else mode)),
        alpha=mode in {"LA", "RGBA"},
        orientation=_orientation(file),
    )
    transparent = file.info.get("transparency")
    if mode == "P":
        return replace(header, palette=_read_palette(file))
    if mode == "CMYK":
        return replace(header, note="converted from CMYK to RGB")
    if isinstance(transparent, int | tuple) and mode in {"1", "L", "I", "I;16", "RGB"}:
        return replace(header, nodata=transparent if mode != "1" else float(transparent != 0))
    return header


def _orientation(file: Image.Image) -> int:
    is_loaded = not getattr(file, "tile", None)
    if file.format == "TIFF" or (
        file.format == "PNG" and "exif" not in file.info and not is_loaded
    ):
        return 1  # plain TIFFs are upright; Pillow would decode a PNG to look behind its pixels
    found = file.getexif().get(Base.Orientation, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _read_palette(file: Image.Image) -> np.ndarray:
    assert file.palette is not None
    packing, data = file.palette.getdata()  # such as BGRX, or RGB;L: all reds first
    mode = "RGBA" if "transparency" in file.info else "RGB"
    indices = np.arange(len(data) // len(packing.partition(";")[0]), dtype=np.uint8)
    strip = Image.fromarray(indices[None])
    strip.putpalette(data, packing)
    strip.info = {key: file.info[key] for key in ("transparency",) if key in file.info}
    colours: np.ndarray = np.asarray(strip.convert(mode))[0]
    return colours


def _compare_checksums(file: ImageFile) -> None:
    """Raise OSError if a part of a PNG is damaged or missing."""
    stream = file.fp
    assert stream is not None
    place = stream.tell()
    stream.seek(0)
    contents, start, name = memoryview(stream.read()), 8, b""
    stream.seek(place)
    while name != b"IEND":
        end = start + 8 + int.from_bytes(contents[start : start + 4], "big")
        name = bytes(contents[start + 4 : start + 8])
        checksum = int.from_bytes(contents[end : end + 4], "big")
        if end + 4 > len(contents) or zlib.crc32(contents[start + 4 : end]) != checksum:
            raise OSError(f"its chunk {name.decode(errors='replace')} is damaged or cut off")
        start = end + 4


def _packing(file: Image.Image) -> str:
    """Pillow's name of how the values are packed in the file, such as L;I or RGB;16B."""
    tiles = getattr(file, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    return arguments if isinstance(arguments, str) else str((arguments or ("",))[0])


def _to_array(image: Image.Image, packing: str) -> np.ndarray:
    """Stored values (H, W) or (H, W, bands) of a loaded image; of 16-bit colours the high byte."""
    if image.mode == "CMYK":
        image = image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "1":  # Pillow stores 255 for True
        values = values.view(np.uint8) > 0
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = values.astype(np.uint16)
    elif image.format == "PNG" and packing in {"L;2", "L;4"}:  # which Pillow scales to 8 bits
        values = values // np.uint8(85 if packing == "L;2" else 17)
    elif image.format == "TIFF" and packing in {"L;I", "1;I"}:  # which Pillow inverts
        values = ~values
    return values


def _swap_bytes(tile: Any) -> Any:
    """Change the byte order in Pillow's description of packed pixels, such as RGB;16B."""
    packing, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
    packing = packing[:-1] + _OTHER_BYTE[packing[-1]]
    return tile._replace(args=packing if isinstance(tile.args, str) else (packing, *rest))
