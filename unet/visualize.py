"""Pictures for people: masks in colour, overlays, sheets of samples, confusion matrices.

Masks are class ids (H, W). Pictures are uint8 RGB (H, W, 3) or Pillow images.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from unet.data.classes import IGNORE_INDEX, Colour
from unet.metrics.confusion import row_fractions
from unet.runtime.files import atomic_path

IGNORED_COLOUR: Colour = (255, 255, 255)

# Of the errors, unless a class has nearly the same. The first three are unlike the palette.
_ERROR_COLOURS: tuple[Colour, ...] = (
    *((0, 255, 255), (230, 0, 126), (120, 60, 255)),
    *((170, 255, 0), (255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 0, 255)),
)

_BACKGROUND, _GREY = (32, 32, 32), (90, 90, 90)
_GAP, _SIDE, _LINE = 8, 256, 24  # pixels: between panels, of a square panel, of a line of text
_FILL = 0.25  # fraction of a class's colour inside its contours

Row = tuple[str, Sequence[Image.Image]]
"""The caption of a row of a sheet, and its panels."""


def image_to_rgb(image: Tensor, stretch: bool = True) -> np.ndarray:
    """Show an image (C, H, W) as (H, W, 3) uint8; missing pixels, which are NaN, are black.

    Only the first channel is shown, in grey, unless there are three.

    Args:
        image: floating-point numbers.
        stretch: whether its 0.2 % darkest pixels become black and its 0.2 % brightest white. If
            not, values from 0 to 1 are shown as they are, unless the image is dark.
    """
    pixels = image.numpy() if image.shape[0] == 3 else image[:1].expand(3, -1, -1).numpy()
    step = 1 + max(pixels.shape[1:]) // 1024
    known = pixels[:, ::step, ::step]
    known = known[np.isfinite(known)]
    low, high = np.percentile(known, (0.2, 99.8)) if known.size else (0.0, 1.0)
    if not stretch and high >= 0.25 and known.min(initial=0) >= 0 and known.max(initial=1) <= 1:
        low, high = 0.0, 1.0
    stretched = np.nan_to_num((pixels - low) * (255 / max(high - low, 1e-6))).clip(0, 255)
    shown: np.ndarray = stretched.round().astype(np.uint8).transpose(1, 2, 0)
    return shown


def mask_to_rgb(mask: np.ndarray, colours: Sequence[Colour]) -> np.ndarray:
    """Show each class in its colour and ignored pixels in white."""
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    table[IGNORE_INDEX] = IGNORED_COLOUR
    return np.asarray(table[mask])


def objects_to_rgb(numbers: np.ndarray) -> np.ndarray:
    """Show objects (H, W), numbered from 1, in bright colours, different for successive numbers."""
    hues = np.arange(int(numbers.max(initial=0)) + 1) * 0.618034 % 1  # the golden section
    table = np.full((len(hues), 3), (0, 190, 255), np.uint8)  # hue, saturation, value
    table[:, 0] = hues * 255
    picture = Image.frombytes("HSV", (len(hues), 1), table.tobytes())
    colours = np.asarray(picture.convert("RGB"))[0]
    return np.asarray(colours[numbers])


def weights_to_rgb(weights: np.ndarray, highest: float) -> np.ndarray:
    """Show weights (H, W): 0 is black, higher ones red, then yellow, `highest` and above white."""
    scaled = 3 * weights[..., None] / max(highest, 1e-6) - np.arange(3)
    return np.asarray(255 * scaled.clip(0, 1), dtype=np.uint8)


def find_errors(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Find wrong pixels, bool (3, H, W), in the order of `error_colours`.

    Missed: the first class, the background, instead of another. Invented: another class instead of
    the background. Wrong class: another class instead of another. Ignored pixels have no errors.
    """
    wrong = (prediction != target) & (target != IGNORE_INDEX)
    missed, invented = wrong & (prediction == 0), wrong & (target == 0)
    return np.stack([missed, invented, wrong & ~missed & ~invented])


def error_colours(classes: Sequence[Colour]) -> dict[str, Colour]:
    """Name the errors that `find_errors` can find, each with a colour unlike those of classes."""

    def is_like_a_class(colour: Colour) -> bool:
        return min(math.dist(colour, one) for one in classes) < 100

    names = ("missed", "invented", "wrong class")[: 3 if len(classes) > 2 else 2]
    return dict(zip(names, sorted(_ERROR_COLOURS, key=is_like_a_class), strict=False))


def errors_to_rgb(
    image: np.ndarray, errors: np.ndarray, ignored: np.ndarray, colours: Iterable[Colour]
) -> np.ndarray:
    """Show errors over a picture (H, W, 3) in pale grey.

    Args:
        image: the picture.
        errors: (3, H, W), from `find_errors`, or the fraction of each pixel that is wrong.
        ignored: bool (H, W), pixels to show in white.
        colours: one for each error, from `error_colours`.
    """
    grey = (40 + image.mean(2) * 0.6).astype(np.uint8)
    shown = np.repeat(grey[..., None], 3, axis=2)
    shown[ignored] = IGNORED_COLOUR
    for colour, one in zip(colours, errors, strict=False):
        fraction = one[..., None].astype(np.float32)
        shown = np.rint(shown + fraction * (np.array(colour) - shown)).astype(np.uint8)
    return shown


def overlay(image: np.ndarray, regions: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Draw the contours of regions over a picture, and a light fill; region 0 is left as it is.

    Args:
        image: the picture (H, W, 3).
        regions: class ids, or numbers of objects (H, W).
        colours: (H, W, 3), of each pixel's region, from `mask_to_rgb` or `objects_to_rgb`.
    """
    shown, inside = image.copy(), regions != 0
    shown[inside] = np.rint((1 - _FILL) * image[inside] + _FILL * colours[inside])
    lines = inside & _contours(regions)
    shown[lines] = colours[lines]
    return shown


def _contours(regions: np.ndarray) -> np.ndarray:
    """Where a pixel is near another region, bool (H, W); lines are wider in large pictures."""
    contours = np.zeros(regions.shape, bool)
    for distance in range(1, 2 + max(regions.shape) // 800):
        for one, lines in ((regions, contours), (regions.T, contours.T)):
            differ = one[distance:] != one[:-distance]
            lines[distance:] |= differ
            lines[:-distance] |= differ
    return contours


def save_picture(
    path: Path, picture: np.ndarray | Image.Image, description: str | None = None
) -> None:
    """Write a PNG with a text that describes it, completely or not at all."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    texts = PngInfo()
    if description is not None:
        texts.add_text("Description", description)
    with atomic_path(path, flush=False) as temporary:
        image.save(temporary, format="PNG", pnginfo=texts)


def draw_preview_sheet(
    rows: Sequence[tuple[str, Tensor, np.ndarray, np.ndarray]],
    names: Sequence[str],
    colours: Sequence[Colour],
) -> Image.Image:
    """Draw a legend, then rows of image, target, prediction and errors.

    Args:
        rows: name, image (C, H, W), target and prediction (H, W).
        names: the classes.
        colours: one for each class.
    """
    wrong = error_colours(colours)
    drawn: list[Row] = []
    for name, image, target, prediction in rows:
        photo = _fit(image_to_rgb(image), Image.Resampling.BILINEAR)
        ids = [_fit_mask(one) for one in (target, prediction)]
        masks = [mask_to_rgb(one, colours) for one in ids]
        ignored = ids[0] == IGNORE_INDEX
        errors = errors_to_rgb(photo, find_errors(*ids), ignored, wrong.values())
        drawn.append((name, [Image.fromarray(one) for one in (photo, *masks, errors)]))
    labels = _label_classes(names, colours, [target for _, _, target, _ in rows])
    labels += [(f"error: {name}", colour) for name, colour in wrong.items()]
    return _draw_sheet(drawn, ("image", "target", "prediction", "errors"), labels)


def draw_sample_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[Tensor, np.ndarray]]]],
    names: Sequence[str],
    colours: Sequence[Colour],
    weights: Sequence[np.ndarray] = (),
) -> Image.Image:
    """Draw a legend, then image | mask over image | augmented ... in each row.

    Args:
        rows: name, and pairs of image (C, H, W) and target (H, W): the original, then augmented.
        names: the classes.
        colours: one for each class.
        weights: border weights (H, W) of each original pair, drawn after its mask; empty for none.
    """
    drawn: list[Row] = []
    highest = max((float(one.max(initial=0)) for one in weights), default=0.0)
    for i, (name, pairs) in enumerate(rows):
        photos = [_fit(image_to_rgb(image), Image.Resampling.BILINEAR) for image, _ in pairs]
        masks = [_fit_mask(target) for _, target in pairs]
        panels = [photos[0]]
        for photo, mask in zip(photos, masks, strict=True):
            panels.append(overlay(photo, mask, mask_to_rgb(mask, colours)))
        if weights:
            fitted = _fit(weights[i].astype(np.float32), Image.Resampling.BILINEAR)
            panels.insert(2, weights_to_rgb(fitted, highest))
        drawn.append((name, list(map(Image.fromarray, panels))))
    titles = ["image", "mask over image", *["augmented"] * (len(rows[0][1]) - 1)]
    if weights:
        titles.insert(2, "border weights")
    targets = [target for _, pairs in rows for _, target in pairs]
    sheet = _draw_sheet(drawn, titles, _label_classes(names, colours, targets))
    return _add_scale(sheet, highest) if weights else sheet


def draw_legend(labels: Sequence[tuple[str, Colour]], width: int = 3 * _SIDE) -> Image.Image:
    """Draw names and colours in lines of at most this width, unless a single name is wider."""
    font, places, x, y, right = _font(), [], _GAP, _GAP, width
    for name, colour in labels:
        label_width = 24 + round(font.getlength(name)) + 16
        if x + label_width > width and x > _GAP:
            x, y = _GAP, y + _LINE
        places.append((x, y, name, colour))
        x += label_width
        right = max(right, x)
    legend = Image.new("RGB", (right, y + _LINE + _GAP), color=_BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for x, y, name, colour in places:
        draw.rectangle((x, y + 2, x + 16, y + 18), fill=colour, outline=(160, 160, 160))
        draw.text((x + 24, y), name, font=font, fill="white")
    return legend


def _label_classes(
    names: Sequence[str], colours: Sequence[Colour], targets: Sequence[np.ndarray]
) -> list[tuple[str, Colour]]:
    labels = list(zip(names, colours, strict=True))
    ignored = any((target == IGNORE_INDEX).any() for target in targets)
    return [*labels, ("ignored", IGNORED_COLOUR)] if ignored else labels


def _draw_sheet(
    rows: Sequence[Row], titles: Sequence[str], labels: Sequence[tuple[str, Colour]]
) -> Image.Image:
    """Draw a legend, then each row: its caption, the titles of its panels, the panels."""
    widths = [_GAP + sum(panel.width + _GAP for panel in panels) for _, panels in rows]
    legend = draw_legend(labels, max(*widths, 2 * _SIDE))
    heights = [2 * _LINE + max(panel.height for panel in panels) + _GAP for _, panels in rows]
    sheet = Image.new("RGB", (legend.width, legend.height + sum(heights)), color=_BACKGROUND)
    sheet.paste(legend)
    draw, top = ImageDraw.Draw(sheet), legend.height
    for (caption, panels), height in zip(rows, heights, strict=True):
        draw.text((_GAP, top), _cut(caption, sheet.width - 2 * _GAP), font=_font(), fill="white")
        left = _GAP
        for panel, title in zip(panels, titles, strict=True):
            text = _cut(title, panel.width)
            draw.text((left, top + _LINE), text, font=_font(14), fill=(190, 190, 190))
            sheet.paste(panel, (left, top + 2 * _LINE))
            left += panel.width + _GAP
        top += height
    return sheet


def _add_scale(sheet: Image.Image, highest: float) -> Image.Image:
    """Draw the scale of `weights_to_rgb` below a sheet."""
    both = Image.new("RGB", (sheet.width, sheet.height + _LINE + _GAP), color=_BACKGROUND)
    both.paste(sheet)
    draw, x = ImageDraw.Draw(both), _GAP
    for text in ("border weights: 0", f"{highest:.3g}"):
        draw.text((x, sheet.height), text, font=_font(), fill="white")
        x += math.ceil(_font().getlength(text)) + _GAP
        if text.endswith(" 0"):
            ramp = np.tile(np.linspace(0, highest, _SIDE), (16, 1))
            both.paste(Image.fromarray(weights_to_rgb(ramp, highest)), (x, sheet.height + 2))
            x += _SIDE + _GAP
    return both


def _font(size: int = 16) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _cut(text: str, width: int) -> str:
    """Replace the middle of a text that is wider than so many pixels."""
    shown, keep = text, len(text)
    while _font().getlength(shown) > width and keep > 1:
        keep -= 1
        shown = f"{text[: (keep + 1) // 2]}...{text[len(text) - keep // 2 :]}"
    return shown


def _fit_mask(ids: np.ndarray) -> np.ndarray:
    return _fit(ids.astype(np.uint8), Image.Resampling.NEAREST)


def _fit(panel: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """Scale a panel to the area of a square of `_SIDE`, and at most twice as wide or high."""
    height, width = panel.shape[:2]
    scale = min(_SIDE / math.sqrt(height * width), 2 * _SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(panel).resize(size, resampling))


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
