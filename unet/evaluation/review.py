"""Rank the masks of a data set by how much models that have not seen them dispute them."""

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from unet.build import build_reader
from unet.config.loader import Overrides
from unet.data.classes import IGNORE_INDEX
from unet.data.dataset import SegmentationDataset
from unet.evaluation.folds import Predicted, find_folds, predict_folds
from unet.evaluation.report import data_url, link_files, make_environment, shrink
from unet.evaluation.review_score import (
    SUSPECT,
    Evidence,
    LabelNoise,
    Verdict,
    collect_evidence,
    estimate_noise,
    judge,
)
from unet.inference.predictor import Model
from unet.metrics.label_errors import FEATURE
from unet.runtime import distributed
from unet.runtime.files import check_writable, write_csv
from unet.runtime.optional import import_extra
from unet.runtime.text import plural
from unet.visualize import image_to_rgb, mask_to_rgb, overlay, save_picture

_FILES = ("review.html", "review.csv", "disputed")
_SHOWN = (10, 60)  # images in the report: at least, and at most
_DISPUTED = (255, 0, 160)  # a colour that images seldom have
_FEWEST = 3  # images of a group


@dataclass(frozen=True)
class Review:
    """The masks of a data set, the most suspicious first."""

    stems: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    folder: Path

    @property
    def num_suspects(self) -> int:
        """The number of masks with a score of at least `SUSPECT`."""
        return sum(verdict.score >= SUSPECT for verdict in self.verdicts)

    def __str__(self) -> str:
        """List the suspects, at most ten."""
        first = list(zip(self.stems, self.verdicts, strict=True))[: min(10, self.num_suspects)]
        lines = [f"{plural(self.num_suspects, 'mask')} of {len(self.stems)} to look at"]
        lines += [f"  {one.score:5.1f}  {stem}: {one.reason}" for stem, one in first]
        if self.num_suspects > len(first):
            lines.append(f"  and {self.num_suspects - len(first)} more")
        return "\n".join(lines)


def review(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    overrides: Overrides = (),
    overwrite: bool = False,
) -> Review:
    """Compare every mask with the prediction of a model that has not seen it.

    Args:
        runs: folders or checkpoints of all folds; of one run, the other folds next to it are found.
        out: folder for review.html, review.csv and disputed/, masks of the disputed regions.
        overrides: settings that a trained model allows to change.
        overwrite: replace an existing review.

    Raises:
        FileExistsError: if there is a review and not `overwrite`.
        FileNotFoundError: if a fold, an image or a mask is missing.
        ImportError: if SciPy is not installed.
        ValueError: if the runs are not the finished folds of one series.
    """
    folder = Path(out)
    check_review(folder, overwrite)
    model, images = predict_folds(find_folds(runs), overrides)
    noise = estimate_noise(images)
    evidence = collect_evidence(images, noise)
    stems = [image.pair.stem for image in images]
    verdicts = judge(evidence, model.classes.names, stems)
    order = sorted(range(len(images)), key=lambda i: -verdicts[i].score)
    result = Review(tuple(stems[i] for i in order), tuple(verdicts[i] for i in order), folder)
    images, evidence = [images[i] for i in order], [evidence[i] for i in order]
    _write(result, model, noise, images, evidence)
    return result


def check_review(folder: Path, overwrite: bool) -> None:
    """Raise unless a review can be written to a folder.

    Raises:
        FileExistsError: if there is one and not `overwrite`.
        ImportError: if SciPy is not installed.
        PermissionError: if the folder cannot be written to.
        ValueError: if there are several processes.
    """
    distributed.check_single("review")
    import_extra("scipy", FEATURE)
    check_writable(folder)
    existing = [folder / name for name in _FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{existing[0]}: exists; pass overwrite=True to replace it, or write to another folder"
        )


def _write(
    result: Review,
    model: Model,
    noise: LabelNoise,
    images: Sequence[Predicted],
    evidence: Sequence[Evidence],
) -> None:
    """Write all files, or none."""
    names, folder = model.classes.names, result.folder
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".") as temporary:
        new = Path(temporary)
        write_csv(new / "review.csv", _rows(result, names))
        (new / "disputed").mkdir()
        examples = []
        shown = min(max(result.num_suspects, _SHOWN[0]), _SHOWN[1])
        dataset = SegmentationDataset(
            [image.pair for image in images], build_reader(model.config), normalization=None
        )
        for i, (image, one, verdict) in enumerate(
            zip(images, evidence, result.verdicts, strict=True)
        ):
            if i >= max(shown, result.num_suspects):
                break
            region = _disputed(image, one, verdict)
            if verdict.score >= SUSPECT:
                path = new / "disputed" / f"{image.pair.stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_picture(path, region.astype(np.uint8) * 255)
            if i < shown:
                picture = image_to_rgb(dataset[0, i][0])
                examples.append(_example(image, verdict, picture, region, model, folder))
        text = _render(result, model, noise, images, examples)
        (new / "review.html").write_text(text, encoding="utf-8", errors="surrogateescape")
        for name in _FILES:
            old = folder / name
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
            (new / name).replace(old)


def _rows(result: Review, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for rank, (stem, one) in enumerate(zip(result.stems, result.verdicts, strict=True), 1):
        widths = {
            f"wider_{name}": "" if np.isnan(width) else width
            for name, width in zip(names[1:], one.widths, strict=True)
        }
        rows.append(
            {"rank": rank, "stem": stem, "score": round(one.score, 3), "reason": one.reason}
            | {"shift_down": one.shift[0], "shift_right": one.shift[1], **widths}
            | {"fit": round(one.fit, 4), "cost": round(one.cost, 4)}
        )
    return rows


def _disputed(image: Predicted, evidence: Evidence, verdict: Verdict) -> np.ndarray:
    """Where the mask is disputed, bool (H, W): its regions, or all that the model has otherwise."""
    p, target = image.arrays()
    if not verdict.of_regions:
        found: np.ndarray = (p.argmax(0) != target) & (target != IGNORE_INDEX)
        return found
    found = np.zeros(target.shape, bool)
    for region in evidence.regions:
        found[region.box] |= region.pixels
    return found


def _example(
    image: Predicted,
    verdict: Verdict,
    picture: np.ndarray,
    region: np.ndarray,
    model: Model,
    folder: Path,
) -> Mapping[str, Any]:
    p, target = image.arrays()
    colours = model.classes.colours
    marked = overlay(picture, region.astype(np.uint8), np.full_like(picture, _DISPUTED))
    masks = [mask_to_rgb(ids, colours) for ids in (target, p.argmax(0).astype(np.uint8))]
    return {
        "stem": image.pair.stem,
        "reason": verdict.reason,
        "score": verdict.score,
        "files": link_files(image.pair, folder),
        "pictures": [
            ("image", "photo", data_url(shrink(picture), "JPEG")),
            ("mask", "mask", data_url(shrink(masks[0], nearest=True), "PNG")),
            ("prediction", "mask", data_url(shrink(masks[1], nearest=True), "PNG")),
            ("disputed", "photo", data_url(shrink(marked), "JPEG")),
        ],
    }


def _render(
    result: Review,
    model: Model,
    noise: LabelNoise,
    images: Sequence[Predicted],
    examples: Sequence[Mapping[str, Any]],
) -> str:
    names = model.classes.names
    confused = [("mask", *names)]
    for name, row in zip(names, noise.fractions, strict=True):
        confused.append((name, *(f"{100 * x:.1f}" if x == x else "-" for x in row.tolist())))
    return (
        make_environment()
        .get_template("review.html")
        .render(
            title=f"Review of {model.config.name.partition('_fold')[0]}",
            numbers={"masks": len(result.stems), "to look at": result.num_suspects},
            suspects=result.num_suspects,
            legend=[*zip(names, model.classes.colours, strict=True), ("disputed", _DISPUTED)],
            examples=examples,
            groups=_group_rows(result, images, names),
            confused=confused,
        )
    )


def _group_rows(
    result: Review, images: Sequence[Predicted], names: Sequence[str]
) -> list[tuple[str, ...]]:
    """The groups of images that look alike, those with the widest masks first."""
    groups = defaultdict(list)
    for image, verdict in zip(images, result.verdicts, strict=True):
        groups[image.look].append(verdict)
    rows = []
    for look, members in groups.items():
        if len(members) < _FEWEST:
            continue
        widths = [
            [width for width in column if width == width]
            for column in zip(*(one.widths for one in members), strict=True)
        ]
        wide = [median(column) if column else 0.0 for column in widths]
        down, right = (median(one.shift[axis] for one in members) for axis in (0, 1))
        suspects = sum(one.score >= SUSPECT for one in members)
        rows.append((max(wide), look, len(members), suspects, down, right, wide))
    head = ("images", "number", "to look at", "down", "right", *(f"wider: {n}" for n in names[1:]))
    return [head] + [
        (look, str(count), str(suspects), *(f"{x:g}" for x in (down, right, *wide)))
        for _, look, count, suspects, down, right, wide in sorted(rows, reverse=True)
    ]
