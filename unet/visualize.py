"""Pictures for people: masks in colour, overlays, sheets of samples, confusion matrices.

Masks are class ids (H, W). Pictures are uint8 RGB (H, W, 3) or Pillow images.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unet.data.classes import IGNORE_INDEX, Colour
from unet.runtime.files import atomic_path

IGNORED_COLOUR: Colour = (255, 255, 255)

ERROR_COLOUR: Colour = (230, 0, 126)  # the prediction differs from the target

_BACKGROUND: Colour = (32, 32, 32)
_GREY: Colour = (90, 90, 90)
_GAP, _HEIGHT = 8, 256  # pixels between panels, and of a panel


def image_to_rgb(image: Tensor) -> np.ndarray:
    """Show an image (C, H, W), stretched so that its minimum is black and its maximum white.

    Only the first channel is shown, in grey, unless there are three.
    """
    pixels = image.numpy() if image.shape[0] == 3 else image[:1].expand(3, -1, -1).numpy()
    low, high = float(pixels.min()), float(pixels.max())
    stretched = (pixels - low) * (255 / max(high - low, 1e-6))
    shown: np.ndarray = stretched.round().astype(np.uint8).transpose(1, 2, 0)
    return shown


def mask_to_rgb(mask: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Show each class in its colour and ignored pixels in white."""
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    table[IGNORE_INDEX] = IGNORED_COLOUR
    shown: np.ndarray = table[mask]
    return shown


def weights_to_rgb(weights: np.ndarray) -> np.ndarray:
    """Show weights (H, W): 0 is black, higher ones red, then yellow, the highest white."""
    scaled = 3 * weights[..., None] / max(float(weights.max(initial=0)), 1e-6) - np.arange(3)
    shown: np.ndarray = (255 * scaled.clip(0, 1)).astype(np.uint8)
    return shown


def errors_to_rgb(image: np.ndarray, errors: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Show errors (H, W), the fraction of each pixel that is wrong, over a picture in pale grey.

    Pixels of `ignored`, bool (H, W), are white.
    """
    grey = (40 + image.mean(2) * 0.6).astype(np.uint8)
    shown = np.repeat(grey[..., None], 3, axis=2)
    shown[ignored] = IGNORED_COLOUR
    fraction = errors[..., None].astype(np.float32)
    mixed: np.ndarray = np.rint(shown + fraction * (np.array(ERROR_COLOUR) - shown))
    return mixed.astype(np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Blend a picture and the colours of a mask, half each."""
    both: np.ndarray = (image.astype(np.uint16) + mask_to_rgb(mask, colours)) // 2
    return both.astype(np.uint8)


def save_picture(
    path: Path, picture: np.ndarray | Image.Image, description: str | None = None
) -> None:
    """Write a PNG with a text that describes it, completely or not at all."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    texts = PngInfo()
    if description is not None:
        texts.add_text("Description", description)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=texts)


def draw_preview_sheet(
    rows: Sequence[tuple[Tensor, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """Draw a legend of the classes, then rows of image (C, H, W), target and prediction (H, W)."""
    panels = [
        [image_to_rgb(image), mask_to_rgb(target, colours), mask_to_rgb(prediction, colours)]
        for image, target, prediction in rows
    ]
    ignored = any((target == IGNORE_INDEX).any() for _, target, _ in rows)
    return _draw_sheet(panels, ("image", "target", "prediction"), names, colours, ignored)


def draw_sample_sheet(
    rows: Sequence[Sequence[tuple[Tensor, np.ndarray]]],
    names: Sequence[str],
    colours: Sequence[Colour],
    weights: Sequence[np.ndarray] = (),
) -> Image.Image:
    """Draw a legend of the classes, then image | mask over image | augmented ... in each row.

    Args:
        rows: image (C, H, W) and target (H, W): the original pair, then augmented ones.
        names: the classes.
        colours: one for each class.
        weights: border weights (H, W) of each original pair, drawn after its mask; empty for none.
    """
    panels = []
    for row in rows:
        # Images under masks are grey, so that every colour is that of a class.
        grey = [(image_to_rgb(image.mean(0, keepdim=True)), target) for image, target in row]
        panels.append([image_to_rgb(row[0][0]), *(overlay(*pair, colours) for pair in grey)])
    titles = ["image", "mask over image", *["augmented"] * (len(rows[0]) - 1)]
    if weights:
        titles.insert(2, "border weights")
        for panel, one in zip(panels, weights, strict=True):
            panel.insert(2, weights_to_rgb(one))
    ignored = any((target == IGNORE_INDEX).any() for row in rows for _, target in row)
    return _draw_sheet(panels, titles, names, colours, ignored)


def add_legend(picture: np.ndarray, names: Sequence[str], colours: Sequence[Colour]) -> Image.Image:
    """Draw a legend of the classes below a picture, whose pixels keep their places."""
    height, width = picture.shape[:2]
    legend = _draw_legend(names, colours, ignored=False, width=width)
    both = Image.new("RGB", (max(width, legend.width), height + legend.height), color=_BACKGROUND)
    both.paste(Image.fromarray(picture))
    both.paste(legend, (0, height))
    return both


def _draw_legend(
    names: Sequence[str], colours: Sequence[Colour], ignored: bool, width: int
) -> Image.Image:
    """Draw the classes in lines of at most this width, unless a single name is wider."""
    font, labels = ImageFont.load_default(16), list(zip(names, colours, strict=True))
    if ignored:
        labels.append(("ignored", IGNORED_COLOUR))
    places, x, y, right = [], _GAP, _GAP, width
    for name, colour in labels:
        label_width = 24 + round(font.getlength(name)) + 16
        if x + label_width > width and x > _GAP:
            x, y = _GAP, y + 24
        places.append((x, y, name, colour))
        x += label_width
        right = max(right, x)
    legend = Image.new("RGB", (right, y + 24 + _GAP), color=_BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + 16, y + 18), fill=colour, outline=(160, 160, 160))
        draw.text((x + 24, y), name, font=font, fill="white")
    return legend


def _draw_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    names: Sequence[str],
    colours: Sequence[Colour],
    ignored: bool,
) -> Image.Image:
    """Draw a legend, then a row of panels for each sample, with a title above each column."""
    strips = [[_fit(*panel) for panel in zip(row, titles, strict=True)] for row in rows]
    widths = [max(panel.width for panel in column) for column in zip(*strips, strict=True)]
    lefts = [_GAP + sum(widths[:i]) + i * _GAP for i in range(len(widths) + 1)]
    heights = [max(panel.height for panel in strip) for strip in strips]
    legend = _draw_legend(names, colours, ignored, max(lefts[-1], 480))
    top = legend.height + 24
    size = (legend.width, top + sum(heights) + len(heights) * _GAP)
    sheet = Image.new("RGB", size, color=_BACKGROUND)
    sheet.paste(legend)
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, legend.height), title, font=ImageFont.load_default(16), fill="white")
    for i, strip in enumerate(strips):
        for left, panel in zip(lefts, strip, strict=False):
            sheet.paste(panel, (left, top + sum(heights[:i]) + i * _GAP))
    return sheet


def _fit(panel: np.ndarray, title: str) -> Image.Image:
    """Scale a panel to `_HEIGHT`, or less where it would be more than twice as wide."""
    height, width = panel.shape[:2]
    scale = min(_HEIGHT / height, 2 * _HEIGHT / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    is_mask = title in {"target", "prediction"}  # whose colours are not mixed
    resampling = Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR
    return Image.fromarray(panel).resize(size, resampling)


def row_fractions(matrix: np.ndarray) -> np.ndarray:
    """Divide each row of a confusion matrix (K, K) by its sum; NaN where the sum is 0."""
    with np.errstate(invalid="ignore"):
        fractions: np.ndarray = matrix / matrix.sum(1, keepdims=True)
    return fractions


def fraction_colours(fraction: float) -> tuple[Colour, Colour]:
    """Return a background, from white (0) to blue (1) or grey (NaN), and its text colour."""
    if math.isnan(fraction):
        return (235, 235, 235), (0, 0, 0)
    red, green, blue = (round(255 + (full - 255) * fraction) for full in (0, 90, 160))
    return (red, green, blue), (255, 255, 255) if fraction > 0.8 else (0, 0, 0)


def draw_confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draw a matrix (K, K), rows targets, columns predictions, as percentages of each row."""
    margin, side, font = 16, 72, ImageFont.load_default(16)
    shown = [name if len(name) <= 24 else f"{name[:22]}..." for name in names]
    widest = math.ceil(max(map(font.getlength, shown)))
    upright = widest > side - 8
    left, top = margin + 28 + widest + 12, margin + 64 + (widest + 12 if upright else 24)
    heading = "% of each target class"
    width = max(left + side * len(names), margin + math.ceil(font.getlength(heading))) + margin
    picture = Image.new("RGB", (width, top + side * len(names) + margin), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((margin, margin), heading, font=font, fill=_GREY)
    middle = side * len(names) // 2
    draw.text((left + middle, margin + 28), "prediction", font=font, fill=_GREY, anchor="ma")
    _draw_upright(draw, "target", margin, top + middle + 24, _GREY)
    for i, (name, row) in enumerate(zip(shown, row_fractions(matrix).tolist(), strict=True)):
        y, x = top + i * side, left + i * side
        draw.text((left - 10, y + side // 2), name, font=font, fill="black", anchor="rm")
        if upright:
            _draw_upright(draw, name, x + side // 2 - 8, top - 8, (0, 0, 0))
        else:
            draw.text((x + side // 2, top - 8), name, font=font, fill="black", anchor="mb")
        for j, fraction in enumerate(row):
            x, (fill, ink) = left + j * side, fraction_colours(fraction)
            text = "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"
            draw.rectangle((x, y, x + side, y + side), fill=fill, outline=(200, 200, 200))
            draw.text((x + side // 2, y + side // 2), text, font=font, fill=ink, anchor="mm")
    return picture


def _draw_upright(
    draw: ImageDraw.ImageDraw, text: str, left: int, bottom: int, colour: Colour
) -> None:
    font = ImageFont.TransposedFont(ImageFont.load_default(16), Image.Transpose.ROTATE_90)
    draw.text((left, bottom - font.getbbox(text)[3]), text, font=font, fill=colour)
