"""Pictures for people: masks in colour, overlays, preview sheets, confusion matrices."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unet.data.classes import IGNORE_INDEX, Colour
from unet.runtime.files import atomic_path

IGNORED: Colour = (255, 255, 255)

DIFFERENCE: Colour = (230, 0, 126)
"""Of pixels whose prediction is not the target."""

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
    table = np.full((256, 3), IGNORED, dtype=np.uint8)
    table[: len(colours)] = colours
    table[IGNORE_INDEX] = IGNORED
    shown: np.ndarray = table[ids]
    return shown


def overlay(image: np.ndarray, ids: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Lay the classes' colours half-transparently over an image (H, W, 3) uint8."""
    both: np.ndarray = (image.astype(np.uint16) + mask_to_rgb(ids, colours)) // 2
    return both.astype(np.uint8)


def weights_to_rgb(weights: np.ndarray) -> np.ndarray:
    """Show weights (H, W) as (H, W, 3) uint8: 0 black, then red and yellow, the highest white."""
    scaled = 3 * weights[..., None] / max(float(weights.max(initial=0)), 1e-6) - np.arange(3)
    shown: np.ndarray = (255 * scaled.clip(0, 1)).astype(np.uint8)
    return shown


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
    weights: Sequence[np.ndarray] = (),
) -> Image.Image:
    """Draw a legend of the classes, then image | its mask over it | augmented ..., a row each.

    Args:
        rows: image (C, H, W) and target (H, W) as they are, then as augmented.
        names: the classes.
        colours: a colour for each class.
        weights: (H, W) of the pixels of each image, drawn beside its mask; none for none.
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
    titles = ["image", "mask over it", *["augmented"] * (len(rows[0]) - 1)]
    if weights:
        titles.insert(2, "border weights")
        for panel, one in zip(panels, weights, strict=True):
            panel.insert(2, weights_to_rgb(one))
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
        labels.append(("ignored", IGNORED))
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


def differences_to_rgb(image: np.ndarray, differs: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Show where ids differ in `DIFFERENCE` over the image (H, W, 3) in pale grey.

    Args:
        image: uint8.
        differs: how much of each pixel, (H, W) from 0 to 1.
        ignored: the pixels that the target ignores, bool (H, W), which are white elsewhere.
    """
    grey = (40 + image.mean(2) * 0.6).astype(np.uint8)
    shown = np.repeat(grey[..., None], 3, axis=2)
    shown[ignored] = IGNORED
    share = differs[..., None].astype(np.float32)
    mixed: np.ndarray = np.rint(shown + share * (np.array(DIFFERENCE) - shown)).astype(np.uint8)
    return mixed


def shares_of_target(matrix: np.ndarray) -> np.ndarray:
    """Return a confusion matrix (K, K) in shares of each row; NaN in one without pixels."""
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = matrix / matrix.sum(1, keepdims=True)
    return shares


def share_colour(share: float) -> tuple[Colour, Colour]:
    """Return the colours of a cell and of what is written in it, from white (0) to blue (1)."""
    red, green, blue = (round(255 + (full - 255) * share) for full in (0, 90, 160))
    return (red, green, blue), (255, 255, 255) if share > 0.5 else (20, 20, 20)


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix (K, K), rows targets, columns predictions, in % of each row."""
    gap, cell = 16, 96 if len(names) <= 4 else 64
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    shown = [name if len(name) <= 24 else f"{name[:22]}..." for name in names]
    widest = math.ceil(max(map(font.getlength, shown)))
    turned = widest > cell - 8
    left = gap + 28 + widest + 12
    top = gap + 2 * 28 + (widest if turned else 24) + 8
    heading = "% of each target class"
    width = max(left + cell * len(names), gap + math.ceil(font.getlength(heading))) + gap
    picture = Image.new("RGB", (width, top + cell * len(names) + gap), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((gap, gap), heading, font=font, fill=(90, 90, 90))
    middle = cell * len(names) / 2
    draw.text((left + middle, gap + 28), "prediction", font=font, fill="black", anchor="ma")
    _draw_upright(picture, "target", font, (gap + 10, round(top + middle)), "mm")
    for i, (name, row) in enumerate(zip(shown, shares_of_target(matrix).tolist(), strict=True)):
        y, x = top + i * cell, left + i * cell
        draw.text((left - 10, y + cell // 2), name, font=font, fill="black", anchor="rm")
        if turned:
            _draw_upright(picture, name, font, (x + cell // 2, top - 8), "mb")
        else:
            draw.text((x + cell // 2, top - 8), name, font=font, fill="black", anchor="mb")
        for j, share in enumerate(row):
            place = left + j * cell
            fill, ink = ((235, 235, 235), (20, 20, 20)) if share != share else share_colour(share)
            draw.rectangle((place, y, place + cell, y + cell), fill=fill, outline=(200, 200, 200))
            text = "-" if share != share else f"{100 * share:.1f}"
            draw.text(
                (place + cell // 2, y + cell // 2),
                text,
                font=font if cell > 64 else small,
                fill=ink,
                anchor="mm",
            )
    return picture


def _draw_upright(
    picture: Image.Image,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    place: tuple[int, int],
    anchor: Literal["mm", "mb"],
) -> None:
    """Write from below to above, the middle (mm) or the lower end (mb) at (x, y)."""
    left, upper, right, lower = font.getbbox(text)
    label = Image.new("RGB", (math.ceil(right - left) + 4, math.ceil(lower - upper) + 4), "white")
    ImageDraw.Draw(label).text((2 - left, 2 - upper), text, font=font, fill="black")
    label = label.rotate(90, expand=True)
    x, y = place
    shift = label.height // 2 if anchor == "mm" else label.height
    picture.paste(label, (x - label.width // 2, y - shift))
