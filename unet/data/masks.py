"""Mask files <-> class ids, and label images.

Files are read as `image_io.open_image` does; `size` is the (height, width) that a file must have,
None any. Functions that read raise FileNotFoundError if there is no such file, and ValueError if it
cannot be read, has another size or other values.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unet.data.classes import ClassMap, Colour
from unet.data.image_io import drop_alpha, open_image

Size = tuple[int, int]


def read_mask(
    path: str | Path, classes: ClassMap, size: Size | None = None, page: int | None = None
) -> np.ndarray:
    """Read a mask as class ids (H, W) uint8, `IGNORE_INDEX` for ignored values."""
    image = open_image(path, page)
    codes = _colour_codes(image, path) if classes.coloured else _grey_codes(image, path)
    if image.mode == "1" and not classes.coloured and 1 in classes and 255 not in classes:
        codes = codes // 255  # the classes are 0 and 1, not 0 and 255
    _check_size(codes, size, path)
    by_index = image.mode == "P" and not classes.coloured
    return classes.decode(codes, path, "palette index" if by_index else "mask value")


def read_class_masks(
    paths: Sequence[str | Path],
    names: Sequence[str],
    tolerance: int = 0,
    size: Size | None = None,
    page: int | None = None,
) -> np.ndarray:
    """Read a binary mask for each class except the first as class ids (H, W) uint8.

    In each mask, 1, 255 or 65535 means the class, 0 all others. No two may claim the same pixel.
    """
    ids: np.ndarray = np.empty(0)
    for i, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        codes = _grey_codes(open_image(path, page), path)
        _check_size(codes, size, path)
        highest = int(codes.max())
        value = 1 if highest <= 1 and not tolerance else 255 if highest <= 255 else 65535
        inside = ClassMap({f"not {name}": 0, name: value}, (), tolerance).decode(codes, path) == 1
        if i == 1:
            ids, size = np.zeros(codes.shape, np.uint8), (codes.shape[0], codes.shape[1])
        if len(taken := ids[inside & (ids != 0)]):
            raise ValueError(
                f"{path}: got {len(taken)} pixel(s) that {names[int(taken[0]) - 1]} claims too, "
                "expected one class for each pixel; correct one of the masks"
            )
        ids[inside] = i
    return ids


def read_label_image(
    path: str | Path, size: Size | None = None, page: int | None = None
) -> np.ndarray:
    """Read a label image (H, W): a number from 1 for each object, 0 for none."""
    image = open_image(path, page)
    if len(image.getbands()) > 1:
        raise ValueError(
            f"{path}: got a label image of Pillow's mode {image.mode}, expected one channel with a "
            "number for each object, 0 for none; convert it, such as to grey values of 16 bits"
        )
    numbers = _grey_codes(image, path)
    if numbers.min() < 0:
        raise ValueError(
            f"{path}: got the number {numbers.min()} for an object, expected numbers from 1 and 0 "
            "for none; correct it"
        )
    _check_size(numbers, size, path, "label image")
    return numbers


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
    image = open_image(path, page)
    if image.mode != "P":
        return None
    bands = image.getpalette() or []
    return tuple((r, g, b) for r, g, b in zip(*[iter(bands)] * 3, strict=True))


def _check_size(codes: np.ndarray, size: Size | None, path: str | Path, what: str = "mask") -> None:
    if size is not None and codes.shape != size:
        raise ValueError(
            f"{path}: got a {what} of {codes.shape[0]} x {codes.shape[1]} pixels (height x width), "
            f"expected {size[0]} x {size[1]} as its image; correct the one that is wrong"
        )


def _colour_codes(image: Image.Image, path: str | Path) -> np.ndarray:
    """Colours as (H, W) integers 0xRRGGBB."""
    if image.mode not in {"1", "L", "LA", "P", "RGB", "RGBA"}:
        raise ValueError(
            f"{path}: got a mask of Pillow's mode {image.mode}, expected colours, as data.classes "
            "gives colours; convert the mask or give grey values"
        )
    if image.mode in {"LA", "RGBA"}:
        drop_alpha(np.asarray(image), str(path))
    bands = np.asarray(image.convert("RGB"))
    codes = bands[:, :, 0].astype(np.int32)  # in place, as the image may be large
    for band in (1, 2):
        codes <<= 8
        codes |= bands[:, :, band]
    return codes


def _grey_codes(image: Image.Image, path: str | Path) -> np.ndarray:
    """Grey values or palette indices as (H, W) integers; 1 bit as 0 and 255."""
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in {"LA", "RGB", "RGBA"}:
        bands = np.asarray(image)
        if image.mode != "RGB":
            bands = drop_alpha(bands, str(path))
        if (bands != bands[:, :, :1]).any():
            raise ValueError(
                f"{path}: got a mask in colours, expected grey values, as data.classes gives "
                "numbers; write each class's colour as [R, G, B]"
            )
        return bands[:, :, 0]
    if image.mode == "F":
        numbers = np.asarray(image)
        whole = (np.abs(numbers) < 2**31) & (numbers == np.round(numbers))  # not NaN
        if not whole.all():
            raise ValueError(
                f"{path}: got {np.count_nonzero(~whole)} pixel(s) such as "
                f"{numbers[~whole][0]:g}, expected whole numbers in a mask; save it with integers"
            )
        return numbers.astype(np.int64)
    if image.mode not in {"L", "P", "I"} and not image.mode.startswith("I;16"):
        raise ValueError(
            f"{path}: got a mask of Pillow's mode {image.mode}, expected grey values, palette "
            "indices or RGB colours; convert the mask"
        )
    return np.asarray(image)
