"""Pictures for people: masks in colour, overlays, preview sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unet.atomic import atomic_path
from unet.masks import IGNORE_INDEX, Colour

_IGNORED: Colour = (255, 255, 255)

_BACKGROUND: Colour = (32, 32, 32)


def image_to_rgb(image: Tensor) -> np.ndarray:
    """Show an image (C, H, W) as (H, W, 3) uint8, its darkest value black, its brightest white.

    Images of other than three channels show their first.
    """
    pixels = image.numpy() if image.shape[0] == 3 else image[:1].expand(3, -1, -1).numpy()
    low, high = float(pixels.min()), float(pixels.max())
    stretched = (pixels - low) * (255 / max(high - low, 1e-6))
    shown: np.ndarray = stretched.round().astype(np.uint8).transpose(1, 2, 0)
    return shown


def mask_to_rgb(ids: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Show class ids (H, W) as (H, W, 3) uint8, ignored pixels white."""
    table = np.full((256, 3), _IGNORED, dtype=np.uint8)
    table[: len(colours)] = colours
    table[IGNORE_INDEX] = _IGNORED
    shown: np.ndarray = table[ids]
    return shown


def overlay(image: np.ndarray, ids: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Lay the classes' colours half-transparently over an image (H, W, 3) uint8."""
    both: np.ndarray = (image.astype(np.uint16) + mask_to_rgb(ids, colours)) // 2
    return both.astype(np.uint8)


def save_picture(path: Path, picture: np.ndarray | Image.Image) -> None:
    """Write (H, W, 3) uint8 or a Pillow image as PNG, whole or not at all."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def preview_sheet(
    rows: Sequence[tuple[Tensor, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[Colour],
    height: int = 256,
) -> Image.Image:
    """Draw a legend of the classes, then image | target | prediction, a row each.

    Args:
        rows: image (C, H, W), target (H, W) and prediction (H, W) as class ids.
        names: the classes.
        colours: a colour for each class.
        height: of each row in pixels.
    """
    panels = [
        [image_to_rgb(image), mask_to_rgb(target, colours), mask_to_rgb(prediction, colours)]
        for image, target, prediction in rows
    ]
    ignored = any((target == IGNORE_INDEX).any() for _, target, _ in rows)
    return _sheet(panels, ("image", "target", "prediction"), names, colours, ignored, height)


def sample_sheet(
    rows: Sequence[Sequence[tuple[Tensor, np.ndarray]]],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """Draw a legend of the classes, then image | its mask over it | augmented ..., a row each.

    Args:
        rows: image (C, H, W) and target (H, W) as they are, then as augmented.
        names: the classes.
        colours: a colour for each class.
    """
    panels = [
        [
            image_to_rgb(row[0][0]),
            # In grey, so that the colours are the classes' alone.
            *(
                overlay(image_to_rgb(image.mean(0, keepdim=True)), target, colours)
                for image, target in row
            ),
        ]
        for row in rows
    ]
    ignored = any((target == IGNORE_INDEX).any() for row in rows for _, target in row)
    titles = ("image", "mask over it", *["augmented"] * (len(rows[0]) - 1))
    return _sheet(panels, titles, names, colours, ignored)


def with_legend(
    picture: np.ndarray, names: Sequence[str], colours: Sequence[Colour]
) -> Image.Image:
    """Draw a legend of the classes below a picture (H, W, 3) uint8, whose pixels stay in place."""
    height, width = picture.shape[:2]
    legend = _legend(names, colours, ignored=False, width=width)
    both = Image.new("RGB", (max(width, legend.width), height + legend.height), color=_BACKGROUND)
    both.paste(Image.fromarray(picture))
    both.paste(legend, (0, height))
    return both


def _legend(
    names: Sequence[str], colours: Sequence[Colour], ignored: bool, width: int
) -> Image.Image:
    """Draw the classes in as many lines as they need, wider only if a single one is."""
    gap, font = 8, ImageFont.load_default(16)
    labels = list(zip(names, colours, strict=True))
    if ignored:
        labels.append(("ignored", _IGNORED))
    places, x, y, right = [], gap, gap, width
    for name, colour in labels:
        label_width = 24 + round(font.getlength(name)) + 16
        if x + label_width > width and x > gap:
            x, y = gap, y + 24
        places.append((x, y, name, colour))
        x += label_width
        right = max(right, x)
    legend = Image.new("RGB", (right, y + 24 + gap), color=_BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + 16, y + 18), fill=colour, outline=(160, 160, 160))
        draw.text((x + 24, y), name, font=font, fill="white")
    return legend


def _sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    names: Sequence[str],
    colours: Sequence[Colour],
    ignored: bool,
    height: int = 256,
) -> Image.Image:
    """Draw a legend, then panels (H, W, 3) scaled to a height, a column for each title."""
    gap, font = 8, ImageFont.load_default(16)
    strips = [
        [
            Image.fromarray(panel).resize(
                (max(1, round(height * panel.shape[1] / panel.shape[0])), height),
                # A mask's colours are not mixed.
                Image.Resampling.NEAREST
                if title in {"target", "prediction"}
                else Image.Resampling.BILINEAR,
            )
            for panel, title in zip(panels, titles, strict=True)
        ]
        for panels in rows
    ]
    columns = [max(panel.width for panel in column) for column in zip(*strips, strict=True)]
    lefts = [gap + sum(columns[:i]) + i * gap for i in range(len(columns) + 1)]
    sheet_width = max(lefts[-1], 480)
    legend = _legend(names, colours, ignored, sheet_width)
    top = legend.height
    sheet = Image.new(
        "RGB", (sheet_width, top + 24 + len(strips) * (height + gap)), color=_BACKGROUND
    )
    sheet.paste(legend)
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, top), title, font=font, fill="white")
    for i, strip in enumerate(strips):
        for left, panel in zip(lefts, strip, strict=False):
            sheet.paste(panel, (left, top + 24 + i * (height + gap)))
    return sheet
