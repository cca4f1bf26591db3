"""The report of an evaluation: one HTML file, which opens offline and runs no program."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from unet.data.classes import IGNORE_INDEX, Colour
from unet.evaluation.measurements import (
    THRESHOLD_HEAD,
    Row,
    Summary,
    object_rows,
    object_title,
    rules,
    score_head,
    score_rows,
    show_score,
    threshold_rows,
)
from unet.metrics.precision_recall import Curve
from unet.visualize import (
    ERROR_COLOUR,
    IGNORED_COLOUR,
    errors_to_rgb,
    fraction_colours,
    mask_to_rgb,
    row_fractions,
)

_LONGEST = 512
"""Of the sides of a picture in the report, in pixels."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1c1e; --soft: #5b6168; --paper: #fff; --line: #d5d9de;
  --accent: #005aa0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a3abb3; --paper: #16181b;
  --line: #3a4048; --accent: #6cb6f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { max-width: 46rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 0 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; text-align: right; white-space: nowrap; }
tbody th, thead th:first-child { text-align: left; font-weight: normal; padding-left: 0; }
thead th { font-weight: 600; border-bottom: 1px solid var(--line); }
tr.first th, tr.first td { border-top: 1px solid var(--line); }
.settings td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.matrix td { text-align: center; min-width: 3.5rem; }
.matrix td, .settings td { padding: .35rem .6rem; }
.matrix thead th + th { text-align: center; }
.matrix thead th { vertical-align: bottom; }
.upright { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); }
dl { display: grid; grid-template-columns: 12rem 1fr; gap: .4rem 1rem; font-size: .9rem; }
dt { font-weight: 600; overflow-wrap: anywhere; }
dd { margin: 0; }
.soft { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; }
.swatch { display: inline-block; width: 1em; height: 1em; margin-right: .4em;
  vertical-align: -.12em; border: 1px solid var(--soft); }
figure { margin: 0 0 1.5rem; }
figcaption { overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .5rem; }
.panels div { font-size: .85rem; color: var(--soft); }
.panels img { display: block; width: 100%; height: auto; outline: 1px solid var(--line); }
.panels img.mask { image-rendering: pixelated; }
svg { display: block; width: 100%; max-width: 32rem; height: auto; color: var(--ink); }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
svg .axis { stroke: currentColor; fill: none; }
svg .grid { stroke: var(--line); fill: none; }
svg .bar { fill: var(--accent); }
svg .curve { stroke: var(--accent); stroke-width: 2; fill: none; }
@media (max-width: 40rem) {
  .panels { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .wide { font-size: .85rem; }
  th { white-space: normal; }
  th, td { padding: .15rem .3rem; }
  .matrix td { min-width: 3rem; padding: .3rem; }
  .matrix thead th { white-space: nowrap; }
  tbody th { position: sticky; left: 0; background: var(--paper); }
  dl { display: block; }
  dd { margin-bottom: .6rem; }
}
"""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image to be shown.

    Args:
        group: what it is an example of, such as "worst".
        stem: of its files.
        score: its mean IoU.
        pictures: of `example_pictures`.
    """

    group: str
    stem: str
    score: float
    pictures: tuple[str, str, str, str]


def choose_examples(ranking: Sequence[int], most: int = 4) -> dict[str, list[int]]:
    """Choose the worst, median and best of a ranking, worst first, none of them twice.

    Args:
        ranking: from the worst to the best.
        most: of each.
    """
    count = min(most, max(1, len(ranking) // 3))
    middle = (len(ranking) - count) // 2
    chosen: dict[str, list[int]] = {}
    for group, members in (
        ("worst", ranking[:count]),
        ("best", ranking[::-1][:count]),
        ("median", ranking[middle : middle + count]),
    ):
        before = [i for group_before in chosen.values() for i in group_before]
        chosen[group] = [i for i in members if i not in before]
    return {group: chosen[group] for group in ("worst", "median", "best") if chosen[group]}


def example_pictures(
    image: np.ndarray, target: np.ndarray, prediction: np.ndarray, colours: Sequence[Colour]
) -> tuple[str, str, str, str]:
    """Draw image | target | prediction | where they differ, as addresses that hold the picture.

    Args:
        image: (H, W, 3) uint8.
        target: class ids (H, W).
        prediction: class ids (H, W).
        colours: a colour for each class.
    """
    shown, ignored = _shrunk(image, Image.Resampling.BOX), target == IGNORE_INDEX
    differs = _shrunk_differences((prediction != target) & ~ignored, shown.shape[:2])
    nearest = Image.Resampling.NEAREST  # a mask's colours are not mixed
    return (
        _address(shown, "JPEG"),
        _address(_shrunk(mask_to_rgb(target, colours), nearest), "PNG"),
        _address(_shrunk(mask_to_rgb(prediction, colours), nearest), "PNG"),
        _address(errors_to_rgb(shown, differs, _shrunk(ignored, nearest)), "JPEG"),
    )


def html_report(
    summary: Summary,
    *,
    title: str,
    facts: Mapping[str, str],
    settings: Mapping[str, Any],
    colours: Sequence[Colour],
    examples: Sequence[Example],
) -> str:
    """Lay out the report.

    Args:
        summary: the scores.
        title: the heading.
        facts: what was scored on what, by name.
        settings: of the model, by their dotted paths.
        colours: a colour for each class.
        examples: of images, by group.
    """
    curve = summary.curve
    sections = [
        _section("Scores", _scores(summary)),
        _section("How each is averaged", _definitions(rules(summary))),
        _section("Confusion matrix", _confusion(summary)),
        '<div class="charts">\n',
        _section("Distribution over the images", _distribution(summary)),
        _section("Thresholds", _thresholds(curve, summary.names[1])) if curve is not None else "",
        "</div>\n",
        _section("Thresholds of objects", _object_thresholds(summary))
        if summary.at_thresholds
        else "",
        _section("Images", _examples(examples, summary, colours)),
        _section("Settings", _settings(settings)),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{_table(None, [Row(name, (text,)) for name, text in facts.items()], "settings")}
</header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>\n"


def _table(head: Row | None, rows: Sequence[Row], kind: str = "", first: int = 0) -> str:
    """A table that scrolls by itself if it is too wide; a line is drawn above row `first`."""
    lines = [f'<div class="wide"><table class="{kind}">']
    if head is not None:
        cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in (head.name, *head.cells))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
        above = ' class="first"' if first and i == first else ""
        lines.append(f'<tr{above}><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _scores(summary: Summary) -> str:
    parts = [
        _table(score_head(summary), score_rows(summary), first=len(summary.names)),
        f"<p>Pixel accuracy {show_score('pixel_accuracy', summary.overall['pixel_accuracy'])}.</p>",
    ]
    if summary.absent:
        parts.append(
            f"<p>{len(summary.absent)} of {len(summary.names)} classes in neither target nor "
            f"prediction, without a score: {escape(', '.join(summary.absent))}.</p>"
        )
    if rows := object_rows(summary):
        parts.append(f"<h3>{escape(object_title(summary))}</h3>")
        head = Row("measure", ("mean over images", "spread +-", "images without"))
        parts.append(_table(head, rows))
    return "\n".join(parts)


def _definitions(sentences: Mapping[str, str]) -> str:
    lines = [
        f"<dt>{escape(name)}</dt><dd>{escape(sentence)}</dd>"
        for name, sentence in sentences.items()
    ]
    return "\n".join(["<dl>", *lines, "</dl>"])


def _confusion(summary: Summary) -> str:
    matrix = summary.matrix.numpy()
    # Heads beside each other would make many columns wide.
    kind = "upright" if len(summary.names) > 4 else ""
    heads = "".join(
        f'<th scope="col"><span class="{kind}">{escape(name)}</span></th>' for name in summary.names
    )
    lines = [
        "<p>Rows are targets, columns predictions; in % of each target class.</p>",
        '<div class="wide"><table class="matrix">',
        f'<thead><tr><th scope="col">target</th>{heads}<th scope="col">pixels</th></tr></thead>',
        "<tbody>",
    ]
    for name, counts, shares in zip(
        summary.names, matrix.tolist(), row_fractions(matrix).tolist(), strict=True
    ):
        cells = "".join(map(_share_cell, counts, shares))
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="soft">{sum(counts):,}</td>'
            "</tr>"
        )
    return "\n".join([*lines, "</tbody></table></div>"])


def _share_cell(count: int, share: float) -> str:
    if share != share:
        return "<td>-</td>"
    fill, ink = fraction_colours(share)
    return (
        f'<td style="background: {_css(fill)}; color: {_css(ink)}" title="{count:,} pixels">'
        f"{100 * share:.1f}</td>"
    )


def _distribution(summary: Summary, num_bins: int = 20) -> str:
    """How many images have which mean IoU."""
    column = summary.columns["mean_iou"].numpy()
    having = column[~np.isnan(column)]
    without = len(column) - len(having)
    note = f" {without} image(s) have none, as no pixel counts." if without else ""
    if not len(having):
        return f"<p>No image has a score.{note}</p>"
    counts = np.histogram(having, num_bins, (0, 1))[0].tolist()
    left, right, top, bottom, highest = 40, 352, 24, 200, max(counts)
    width = (right - left) / num_bins
    bars = [
        f'<rect class="bar" x="{left + i * width + 1:.1f}" y="{bottom - height:.1f}" '
        f'width="{width - 2:.1f}" height="{height:.1f}"><title>{i / num_bins:.2f} to '
        f"{(i + 1) / num_bins:.2f}: {count} image(s)</title></rect>"
        for i, count in enumerate(counts)
        for height in [(bottom - top) * count / highest]
        if count
    ]
    axes = [
        *_axes(left, right, bottom, "mean IoU of the image", "images"),
        f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{highest}</text>',
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">0</text>',
    ]
    median = float(np.median(having))
    label = f"Histogram of the mean IoU of {len(having)} images"
    return (
        f"<p>The mean IoU of single images: lowest {having.min():.4f}, median {median:.4f}, "
        f"highest {having.max():.4f}.{note}</p>\n" + _svg(label, [*bars, *axes], 240)
    )


def _thresholds(curve: Curve, foreground: str) -> str:
    """Precision over recall, and the threshold of the best F1."""
    name = escape(foreground)
    if curve.best is None:
        return f"<p>No pixel of {name} is in the targets: there is no curve.</p>"
    left, right, top, bottom = 40, 352, 24, 300

    def place(recall: float, precision: float) -> str:
        return f"{left + (right - left) * recall:.1f},{bottom - (bottom - top) * precision:.1f}"

    # Steps: a recall is had at the precision of the threshold that reaches it.
    points, before = [], 0.0
    for recall, precision in zip(
        curve.recall[::-1].tolist(), curve.precision[::-1].tolist(), strict=True
    ):
        if precision == precision:  # else nothing is predicted
            points += [place(before, precision), place(recall, precision)]
            before = recall
    best = curve.best
    x, y = place(float(curve.recall[best]), float(curve.precision[best])).split(",")
    marks = [
        part
        for i in range(5)
        for height in [bottom - (bottom - top) * i / 4]
        for part in (
            f'<path class="grid" d="M{left},{height:.1f}H{right}"/>',
            f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">{i / 4:.2f}</text>',
        )
    ]
    picture = _svg(
        f"Precision over recall of {foreground}",
        [
            *marks,
            *_axes(left, right, bottom, "recall", "precision"),
            f'<polyline class="curve" points="{" ".join(points)}"/>',
            f'<circle class="bar" cx="{x}" cy="{y}" r="5"><title>best F1</title></circle>',
        ],
        340,
    )
    return (
        f"<p>Of {name}: average precision {curve.average_precision:.4f}; the best F1, "
        f"{curve.f1[best]:.4f}, is at the threshold {curve.thresholds[best]:.3f} (the dot), where "
        f"precision is {curve.precision[best]:.4f} and recall {curve.recall[best]:.4f}. All "
        f"thresholds are in thresholds.csv.</p>\n{picture}"
    )


def _object_thresholds(summary: Summary) -> str:
    """The best threshold of each measure of objects."""
    rows = threshold_rows(summary)
    if not rows:
        return "<p>No image has a score.</p>"
    return (
        f"<p>{escape(object_title(summary))}; a pixel is {escape(summary.names[1])} if the "
        "probability of that is at least the threshold. A threshold that is chosen on these images "
        "flatters on them. All thresholds are in "
        f"object_thresholds.csv.</p>\n{_table(THRESHOLD_HEAD, rows)}"
    )


def _axes(left: int, right: int, bottom: int, x_label: str, y_label: str) -> list[str]:
    ticks = [
        f'<text x="{left + (right - left) * i / 4:.1f}" y="{bottom + 15}" text-anchor="middle">'
        f"{i / 4:.2f}</text>"
        for i in range(5)
    ]
    return [
        f'<path class="axis" d="M{left},{bottom}H{right}"/>',
        *ticks,
        f'<text x="{(left + right) // 2}" y="{bottom + 32}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text x="{left - 34}" y="12">{escape(y_label)}</text>',
    ]


def _svg(label: str, parts: Iterable[str], height: int) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 370 {height}" role="img" aria-label="{escape(label)}">\n{inside}\n'
        "</svg>"
    )


def _examples(examples: Sequence[Example], summary: Summary, colours: Sequence[Colour]) -> str:
    if not examples:
        return "<p>No image has a score.</p>"
    swatches = list(zip(summary.names, colours, strict=True))
    if sum(height * width for height, width in summary.sizes) > int(summary.matrix.sum()):
        swatches.append(("ignored", IGNORED_COLOUR))
    swatches.append(("prediction differs from target", ERROR_COLOUR))
    lines = [
        "<p>By the mean IoU of each image by itself, over the classes in its target or prediction. "
        f"Sides of more than {_LONGEST} pixels are shown smaller; where little differs, it is then "
        "drawn at least 3 pixels wide, to be seen, else paler where it is a part of a pixel.</p>",
        '<ul class="legend">',
    ]
    lines += [
        f'<li><span class="swatch" style="background: {_css(colour)}"></span>{escape(name)}</li>'
        for name, colour in swatches
    ]
    lines.append("</ul>")
    for i, example in enumerate(examples):
        if i == 0 or example.group != examples[i - 1].group:
            lines.append(f"<h3>{escape(example.group.capitalize())}</h3>")
        lines.append(_example(example))
    return "\n".join(lines)


def _example(example: Example) -> str:
    stem = escape(example.stem)
    panels = "\n".join(
        f'<div><img class="{kind}" src="{source}" alt="{title} of {stem}">{title}</div>'
        for title, kind, source in zip(
            ("image", "target", "prediction", "difference"),
            ("photo", "mask", "mask", "photo"),
            example.pictures,
            strict=True,
        )
    )
    return (
        f'<figure>\n<div class="panels">\n{panels}\n</div>\n'
        f"<figcaption>{stem}: mean IoU {example.score:.4f}</figcaption>\n</figure>"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [Row(name, (str(value),)) for name, value in settings.items()]
    return (
        f"<details>\n<summary>All {len(rows)} settings of the run that trained the model</summary>"
        f"\n{_table(None, rows, 'settings')}\n</details>"
    )


def _css(colour: Sequence[int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _shrunk(pixels: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """A picture (H, W, 3) uint8, or mask (H, W), no larger than is shown."""
    scale = min(1.0, _LONGEST / max(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), resampling))


def _shrunk_differences(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """How much of each pixel of a smaller picture differs, from 0 to 1; bool mask (H, W).

    Where little does, 1 wherever a pixel does and beside: in its share few would not be seen.
    """
    if mask.shape == size:
        return mask
    rows, columns = (
        np.arange(small) * side // small for small, side in zip(size, mask.shape, strict=True)
    )
    shrunk = np.logical_or.reduceat(np.logical_or.reduceat(mask, rows, 0), columns, 1)
    grown = Image.fromarray(shrunk.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    if shrunk.mean() < 0.05:
        return np.asarray(grown, bool)
    return _shrunk(mask.astype(np.uint8) * 255, Image.Resampling.BOX) / 255


def _address(pixels: np.ndarray, kind: str) -> str:
    """A picture (H, W, 3) uint8 as an address that holds it."""
    file = io.BytesIO()
    options = {"quality": 82, "subsampling": 0} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
