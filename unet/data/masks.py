"""Mask files <-> class ids, and label images.

Values are the stored ones, as `image_io.read_stored` reads them. `size` is the (height, width)
that a file, or a window of it, must have, None any. Functions that read raise FileNotFoundError if
there is no such file, and ValueError if it cannot be read, has another size (unless the options
resize it) or other values.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unet.data.classes import IGNORE_INDEX, ClassMap, Colour, is_interior
from unet.data.image_io import read_stored
from unet.data.image_types import DEFAULT_OPTIONS, Header, ImageTypeError, ReadOptions, Window
from unet.runtime.text import plural

Size = tuple[int, int]


def read_mask(
    path: str | Path,
    classes: ClassMap,
    size: Size | None = None,
    page: int | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    missing: np.ndarray | None = None,
    window: Window | None = None,
) -> np.ndarray:
    """Read a mask as class ids (H, W) uint8, `IGNORE_INDEX` for ignored values.

    Where the image is `missing`, bool (H, W), the mask may have any value, and is ignored.
    """
    header, values = _read(path, page, options, window)
    codes = _colour_codes(header, values, path) if classes.coloured else _codes(values, path)
    codes = _fit(codes, size, path, options)
    what = "mask value"
    if header.palette is not None and not classes.coloured:
        what = "palette index"
    elif header.bits == 1 and not classes.coloured and 255 in classes and 1 not in classes:
        raise ImageTypeError(
            f"{path}: got a mask of 1 bit, whose values are 0 and 1, expected 255 as in "
            "data.classes; write 1 in place of 255"
        )
    if missing is None:
        return classes.decode(codes, path, what)
    ids = np.full(codes.shape, IGNORE_INDEX, np.uint8)
    ids[~missing] = classes.decode(codes[~missing], path, what)
    return ids


def read_class_masks(
    paths: Sequence[str | Path],
    names: Sequence[str],
    tolerance: int = 0,
    size: Size | None = None,
    page: int | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    window: Window | None = None,
) -> np.ndarray:
    """Read a binary mask for each class except the first as class ids (H, W) uint8.

    In each mask, 1, 255 or 65535 means the class, 0 all others. No two may claim the same pixel;
    but with a tolerance, masks may overlap along their edges, where the higher value decides.
    """
    ids: np.ndarray = np.empty(0)
    highest_codes: np.ndarray = np.empty(0)
    for i, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        codes = _codes(_read(path, page, options, window)[1], path)
        codes = _fit(codes, size, path, options)
        highest = int(codes.max())
        value = 1 if highest <= 1 and not tolerance else 255 if highest <= 255 else 65535
        inside = ClassMap({f"not {name}": 0, name: value}, (), tolerance).decode(codes, path) == 1
        if i == 1:
            ids, size = np.zeros(codes.shape, np.uint8), (codes.shape[0], codes.shape[1])
            highest_codes = np.zeros_like(codes)
        both = inside & (ids != 0)
        if tolerance:
            both &= is_interior(both)
            inside &= codes > np.where(ids, highest_codes, 0)
        if len(taken := ids[both]):
            raise ValueError(
                f"{path}: got {plural(len(taken), 'pixel')} that {names[int(taken[0]) - 1]} claims "
                "too, expected one class for each pixel; correct one of the masks"
            )
        ids[inside] = i
        highest_codes = np.where(inside, codes, highest_codes)
    return ids


def read_label_image(
    path: str | Path,
    size: Size | None = None,
    page: int | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> np.ndarray:
    """Read a label image (H, W): a number from 1 for each object, 0 for none."""
    header, values = _read(path, page, options)
    if values.shape[2] > 1:
        raise ImageTypeError(
            f"{path}: got a label image of mode {header.mode}, expected one channel with a number "
            "for each object, 0 for none; convert it, such as to grey values of 16 bits"
        )
    numbers = _codes(values, path)
    if numbers.min() < 0:
        raise ImageTypeError(
            f"{path}: got the number {numbers.min()} for an object, expected numbers from 1 and 0 "
            "for none; correct it"
        )
    return _fit(numbers, size, path, options, "label image")


def read_regions(
    path: str | Path, size: Size, options: ReadOptions = DEFAULT_OPTIONS
) -> np.ndarray:
    """Read a mask of regions as bool (H, W): whether a value is not 0."""
    regions: np.ndarray = (
        _fit(_codes(_read(path, None, options)[1], path), size, path, options) != 0
    )
    return regions


def read_codes(
    path: str | Path, page: int | None = None, options: ReadOptions = DEFAULT_OPTIONS
) -> tuple[Header, np.ndarray]:
    """Read the header of a mask and its values (H, W), or colours (H, W, 3), without alpha."""
    header, values = _read(path, page, options)
    return header, values[:, :, 0] if values.shape[2] == 1 else values


def to_8_bits(colours: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) of 16 bits that are colours of 8 bits as such; others unchanged."""
    if colours.dtype != np.uint16 or (colours % 257).any():
        return colours
    return (colours // 257).astype(np.uint8)


def draw_mask(
    ids: np.ndarray, classes: ClassMap, palette: Sequence[Colour] | None = None
) -> Image.Image:
    """Draw class ids (H, W) in the classes' values or colours, with a palette if given."""
    image = Image.fromarray(classes.encode(ids))
    if palette is not None and image.mode == "L":
        image.putpalette([band for colour in palette for band in colour])
    return image


def read_palette(path: str | Path, page: int | None = None) -> tuple[Colour, ...] | None:
    """Read the palette of a mask; None if it has none."""
    palette = read_stored(path, page)[0].palette
    return None if palette is None else tuple((r, g, b) for r, g, b in palette[:, :3].tolist())


def _read(
    path: str | Path, page: int | None, options: ReadOptions, window: Window | None = None
) -> tuple[Header, np.ndarray]:
    """Read stored values (H, W, bands) without alpha, which must mean nothing."""
    header, (values, _) = read_stored(path, page, options, window)
    if header.alpha or values.shape[2] in (2, 4):
        values = _drop_alpha(values, path)
    return header, values


def _drop_alpha(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Drop the last band unless it tells pixels of equal values apart."""
    alpha = values[:, :, -1]
    if alpha.min() == alpha.max():
        return values[:, :, :-1]
    pixels = np.unique(values.reshape(-1, values.shape[2]), axis=0)
    if len(np.unique(pixels[:, :-1], axis=0)) < len(pixels):
        raise ImageTypeError(
            f"{path}: got an alpha channel with values from {alpha.min()} to {alpha.max()} on "
            "pixels of the same value, expected one that adds nothing; save the mask without it"
        )
    return values[:, :, :-1]


def _fit(
    codes: np.ndarray,
    size: Size | None,
    path: str | Path,
    options: ReadOptions,
    what: str = "mask",
) -> np.ndarray:
    """Return codes (H, W) of a size, resized if the options say so; otherwise raise ValueError."""
    if size is None or codes.shape == size:
        return codes
    (height, width), advice = codes.shape, "correct the one that is wrong"
    alike = are_alike((height, width), size)
    if alike and options.resize_masks:
        rows = (2 * np.arange(size[0]) + 1) * height // (2 * size[0])
        columns = (2 * np.arange(size[1]) + 1) * width // (2 * size[1])
        resized: np.ndarray = codes[rows[:, None], columns]
        return resized
    if codes.shape == size[::-1]:
        advice += ", or set data.exif=ignore if EXIF has turned only the image"
    elif alike:
        advice += ", or set data.resize_masks=true, as the aspect ratios agree"
    raise ValueError(
        f"{path}: got a {what} of {height} x {width} pixels (height x width), expected {size[0]} x "
        f"{size[1]} as its image; {advice}"
    )


def are_alike(one: Size, other: Size) -> bool:
    """Whether two sizes have the same aspect ratio; rounding changes a side by less than 1."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def _colour_codes(header: Header, values: np.ndarray, path: str | Path) -> np.ndarray:
    """Colours as (H, W) integers 0xRRGGBB; a palette's colours, and grey values as greys."""
    if values.shape[2] == 1 and header.palette is not None:
        if (highest := int(values.max())) >= len(header.palette):
            raise ImageTypeError(
                f"{path}: got the index {highest}, expected one of the palette's "
                f"{len(header.palette)} colours; save the mask again"
            )
        values = header.palette[values[:, :, 0], :3]
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.shape[2] == 3:
        values = to_8_bits(values)
    if values.shape[2] not in (1, 3) or values.dtype.kind not in "ui" or values.max() > 255:
        raise ImageTypeError(
            f"{path}: got a mask of mode {header.describe()} with "
            f"{plural(values.shape[2], 'channel')}, "
            "expected colours of 8 bits, as data.classes gives colours; convert the mask, or give "
            "grey values"
        )
    codes = values[:, :, 0].astype(np.int32)  # in place, as the image may be large
    for band in (1, 2):
        codes <<= 8
        codes |= values[:, :, band % values.shape[2]].astype(np.int32)
    return codes


def _codes(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Grey values or palette indices as (H, W) integers."""
    if values.shape[2] > 1:
        if values.shape[2] != 3:
            raise ImageTypeError(
                f"{path}: got a mask of {values.shape[2]} channels, expected one; convert the mask"
            )
        if (values != values[:, :, :1]).any():
            raise ImageTypeError(
                f"{path}: got a mask in colours, expected grey values, as data.classes gives "
                "numbers; write each class's colour as [R, G, B]"
            )
    codes: np.ndarray = values[:, :, 0]
    if codes.dtype == bool:
        return codes.astype(np.uint8)
    if codes.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = (np.abs(codes) < 2**53) & (codes == np.round(codes))  # not NaN
        if not whole.all():
            raise ImageTypeError(
                f"{path}: got {plural(int(np.count_nonzero(~whole)), 'pixel')} such as "
                f"{codes[~whole][0]:g}, expected whole numbers in a mask; save it with integers"
            )
        return codes.astype(np.int64)
    if codes.dtype.kind not in "ui":
        raise ImageTypeError(f"{path}: got values of {codes.dtype}, expected integers in a mask")
    return codes.astype(np.int64) if codes.dtype.itemsize == 8 else codes
