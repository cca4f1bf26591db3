"""Mask files <-> class ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unet.atomic import atomic_path
from unet.images import open_image, without_alpha

Colour = tuple[int, int, int]
Value = int | Colour

IGNORE_INDEX = 255
"""The class id of pixels that are neither learned nor scored."""

# Distinct at a glance, and for the colour-blind: Okabe and Ito 2008, "Color Universal Design",
# with grey for the first class, which mostly is the background.
_PALETTE: tuple[Colour, ...] = (
    (90, 90, 90),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


class ClassMap:
    """Which mask value means which class; the class id is the place in the order given.

    Args:
        classes: name -> the value in mask files: a grey value or index (8 or 16 bits), or an RGB
            colour. All of one kind.
        ignore: values of the same kind whose pixels are neither learned nor scored.

    Raises:
        ValueError: if there are no or too many classes, values of two kinds, or a value twice.
    """

    def __init__(self, classes: Mapping[str, Value], ignore: Sequence[Value] = ()) -> None:
        self.names = tuple(classes)
        self.values = tuple(classes.values())
        self.ignore = tuple(ignore)
        if not 1 < len(self.names) < IGNORE_INDEX:
            raise ValueError(
                f"data.classes: got {len(self.names)} class(es), expected 2 to {IGNORE_INDEX - 1}"
            )
        known = (*self.values, *self.ignore)
        self.coloured = isinstance(known[0], tuple)
        for value in known:
            if isinstance(value, tuple) != self.coloured:
                raise ValueError(
                    f"data.classes: got both {known[0]} and {value}, expected grey values only or "
                    "colours [R, G, B] only, in data.ignore too"
                )
            if known.count(value) > 1:
                raise ValueError(
                    f"data.classes: got the value {value} twice, expected each value to mean one "
                    "class, in data.ignore too"
                )
        codes = np.array([self._code(value) for value in known], dtype=np.int64)
        ids = np.array([*range(len(self.values)), *[IGNORE_INDEX] * len(self.ignore)], np.uint8)
        order = np.argsort(codes)
        self._codes, self._ids = codes[order], ids[order]

    @property
    def colours(self) -> tuple[Colour, ...]:
        """A colour to draw each class in: its own in coloured masks, else one of a palette."""
        if self.coloured:
            return tuple(value for value in self.values if isinstance(value, tuple))
        # Past the palette's end its colours come again, darker.
        size = len(_PALETTE)
        return tuple(
            (r >> (i // size), g >> (i // size), b >> (i // size))
            for i in range(len(self.names))
            for r, g, b in [_PALETTE[i % size]]
        )

    def read(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """Read a mask file as class ids (H, W) uint8, `IGNORE_INDEX` for ignored values.

        Args:
            path: the file.
            size: (height, width) that it must have; None for any.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read, has another size, or holds a value that is neither
                class nor ignored.
        """
        codes = self._read_codes(path)
        if size is not None and codes.shape != size:
            height, width = codes.shape
            raise ValueError(
                f"{path}: got a mask of {height} x {width} pixels (height x width), expected "
                f"{size[0]} x {size[1]} as its image; correct the one that is wrong"
            )
        places = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        unknown = self._codes[places] != codes
        if unknown.any():
            values, counts = np.unique(codes[unknown], return_counts=True)
            found = ", ".join(
                f"{self._value(code)} ({count} pixel{'s' * (count > 1)})"
                for code, count in list(zip(values.tolist(), counts.tolist(), strict=True))[:5]
            )
            more, cure = "", "add the value to data.classes or data.ignore, or correct the mask"
            if len(values) > 5:
                more = f" and {len(values) - 5} more"
                cure = (
                    "a mask that was resized smoothly, or saved as JPEG, has lost its values: save "
                    "it again from the original"
                )
            expected = ", ".join(
                f"{name} {value}" for name, value in zip(self.names, self.values, strict=True)
            )
            ignored = f", ignored {', '.join(map(str, self.ignore))}" if self.ignore else ""
            raise ValueError(
                f"{path}: got the mask value {found}{more}, expected {expected}{ignored}; {cure}"
            )
        ids: np.ndarray = self._ids[places]
        return ids

    def write(self, path: Path, ids: np.ndarray) -> None:
        """Write class ids (H, W) as a PNG mask with the classes' values or colours."""
        values = np.array(self.values)
        dtype = np.uint8 if self.coloured or values.max() < 256 else np.uint16
        image = Image.fromarray(values.astype(dtype)[ids])
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG")

    def _read_codes(self, path: Path) -> np.ndarray:
        """(H, W) integers: the grey value, or the colour as 0xRRGGBB."""
        image = open_image(path)
        if image.mode == "1":
            image = image.convert("L")  # 0 and 255, as everywhere else
        if self.coloured:
            if image.mode not in {"L", "LA", "P", "RGB", "RGBA"}:
                raise ValueError(
                    f"{path}: got a mask of Pillow's mode {image.mode}, expected colours, as "
                    "data.classes gives colours; convert the mask or give grey values"
                )
            if image.mode in {"LA", "RGBA"}:
                without_alpha(np.asarray(image), str(path))
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int64), 2, 0)
            codes: np.ndarray = red << 16 | green << 8 | blue
            return codes
        if image.mode in {"LA", "RGB", "RGBA"}:
            bands = np.asarray(image)
            if image.mode != "RGB":
                bands = without_alpha(bands, str(path))
            if (bands != bands[:, :, :1]).any():
                raise ValueError(
                    f"{path}: got a mask in colours, expected grey values, as data.classes gives "
                    "numbers; write each class's colour as [R, G, B]"
                )
            return bands[:, :, 0].astype(np.int64)
        if image.mode not in {"L", "P", "I"} and not image.mode.startswith("I;16"):
            raise ValueError(
                f"{path}: got a mask of Pillow's mode {image.mode}, expected grey values, palette "
                "indices or RGB colours; convert the mask"
            )
        return np.asarray(image).astype(np.int64)

    @staticmethod
    def _code(value: Value) -> int:
        return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]

    def _value(self, code: int) -> Value:
        return (code >> 16, code >> 8 & 255, code & 255) if self.coloured else code
