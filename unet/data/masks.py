"""Mask files <-> class ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unet.data.classes import ClassMap, Colour
from unet.data.image_io import drop_alpha, open_image
from unet.runtime.files import atomic_path


def read_mask(
    path: str | Path,
    classes: ClassMap,
    size: tuple[int, int] | None = None,
    page: int | None = None,
) -> np.ndarray:
    """Read a mask file as class ids (H, W) uint8, `IGNORE_INDEX` for ignored values.

    Args:
        path: the file.
        classes: what its values mean.
        size: (height, width) that it must have; None for any.
        page: which one of a stack, from 0; None for the only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, has another size, or holds a value that is neither
            class nor ignored.
    """
    image = open_image(path, page)
    codes = _colour_codes(image, path) if classes.coloured else _grey_codes(image, path)
    if image.mode == "1" and not classes.coloured and 1 in classes and 255 not in classes:
        codes = codes // 255  # 0 and 1 are meant, not 0 and 255
    _check_size(codes, size, path)
    of_palette = image.mode == "P" and not classes.coloured
    return classes.ids_of(codes, path, "palette index" if of_palette else "mask value")


def draw_mask(
    ids: np.ndarray, classes: ClassMap, palette: Sequence[Colour] | None = None
) -> Image.Image:
    """Draw class ids (H, W) with the classes' values or colours.

    Args:
        ids: (H, W).
        classes: their values.
        palette: colours of the indices, for a mask with a palette.
    """
    image = Image.fromarray(classes.encode(ids))
    if palette is not None and image.mode == "L":
        image.putpalette([band for colour in palette for band in colour])
    return image


def write_mask(
    path: Path, ids: np.ndarray, classes: ClassMap, palette: Sequence[Colour] | None = None
) -> None:
    """Write class ids (H, W) as a PNG mask, see `draw_mask`."""
    with atomic_path(path) as temporary:
        draw_mask(ids, classes, palette).save(temporary, format="PNG")


def read_class_masks(
    paths: Sequence[str | Path],
    names: Sequence[str],
    tolerance: int = 0,
    size: tuple[int, int] | None = None,
    page: int | None = None,
) -> np.ndarray:
    """Read a mask that lies in several files, one for each class, as class ids (H, W) uint8.

    In each, 0 is not the class, and 1, 255 or 65535 is. Class 0 is where none is.

    Args:
        paths: a file for each class but the first.
        names: of these classes.
        tolerance: as `ClassMap`.
        size: (height, width) that they must have; None for any.
        page: which one of a stack, from 0; None for the only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if one cannot be read, has another size or other values, or two classes claim
            a pixel.
    """
    ids: np.ndarray | None = None
    for i, (path, name) in enumerate(zip(paths, names, strict=True), start=1):
        codes = _grey_codes(open_image(path, page), path)
        _check_size(codes, size, path)
        # 0 and 1, 0 and 255, or 0 and 65535.
        highest = int(codes.max())
        full = 1 if highest <= 1 and not tolerance else 255 if highest <= 255 else 65535
        there = ClassMap({f"not {name}": 0, name: full}, (), tolerance).ids_of(codes, path) == 1
        if ids is None:
            ids, size = np.zeros(codes.shape, np.uint8), (codes.shape[0], codes.shape[1])
        both = there & (ids != 0)
        if both.any():
            other = names[int(ids[both][0]) - 1]
            raise ValueError(
                f"{path}: got {np.count_nonzero(both)} pixel(s) that {other} claims too, expected "
                "one class for each pixel; correct one of the masks"
            )
        ids[there] = i
    assert ids is not None
    return ids


def read_label_image(
    path: str | Path, size: tuple[int, int] | None = None, page: int | None = None
) -> np.ndarray:
    """Read a label image (H, W): a number for each object, 0 for none.

    Args:
        path: the file.
        size: (height, width) that it must have; None for any.
        page: which one of a stack, from 0; None for the only one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, has another size, or holds anything but whole numbers
            from 0.
    """
    image = open_image(path, page)
    if len(image.getbands()) > 1:
        raise ValueError(
            f"{path}: got a label image of Pillow's mode {image.mode}, expected one channel with a "
            "number for each object, 0 for none; convert it, such as to grey values of 16 bits"
        )
    numbers = _grey_codes(image, path)
    if numbers.size and numbers.min() < 0:
        raise ValueError(
            f"{path}: got the number {numbers.min()} for an object, expected numbers from 1 and 0 "
            "for none; correct it"
        )
    _check_size(numbers, size, path, "label image")
    return numbers


def palette_of(path: str | Path, page: int | None = None) -> tuple[Colour, ...] | None:
    """The palette of a mask file; None if it has none."""
    image = open_image(path, page)
    if image.mode != "P":
        return None
    bands = image.getpalette() or []
    return tuple((r, g, b) for r, g, b in zip(*[iter(bands)] * 3, strict=True))


def _check_size(
    codes: np.ndarray, size: tuple[int, int] | None, path: str | Path, what: str = "mask"
) -> None:
    if size is not None and codes.shape != size:
        height, width = codes.shape
        raise ValueError(
            f"{path}: got a {what} of {height} x {width} pixels (height x width), expected "
            f"{size[0]} x {size[1]} as its image; correct the one that is wrong"
        )


def _colour_codes(image: Image.Image, path: str | Path) -> np.ndarray:
    """(H, W) integers 0xRRGGBB."""
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
    """(H, W) integers: the grey value or the palette's index; 1 bit as 0 and 255."""
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
