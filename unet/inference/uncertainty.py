"""How unsure a model is of an image: numbers, a picture, and a table of what to label next."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from unet.data.image_io import missing_pixels
from unet.inference.jobs import FOLDERS, Job
from unet.inference.origin import IMAGE_DESCRIPTION
from unet.inference.predictor import Model
from unet.inference.tta import TtaMode, mean_probabilities
from unet.runtime.files import write_csv
from unet.visualize import image_to_rgb, weights_to_rgb

TABLE = "uncertain.csv"
"""The table of all images, next to their masks."""


class Uncertainty(NamedTuple):
    """The entropy (H, W) of each pixel, from 0 to 1, and means over the image by name."""

    entropy: Tensor
    means: dict[str, float]


@torch.inference_mode()
def predict_uncertainty(
    model: Model, image: Tensor, tta: Sequence[TtaMode] = (), bar: str | None = None
) -> tuple[Tensor, Uncertainty]:
    """Compute the probabilities (K, H, W) as `mean_probabilities`, and their uncertainty.

    Its means are `entropy`, and `disagreement` if the model has several members: the entropy of
    their mean probabilities minus the mean of their entropies, the mutual information of class and
    member. Both are divided by log K. Pixels that the image does not have are left out; NaN if it
    has none.

    Source: Houlsby, Huszar, Ghahramani and Lengyel 2011, arXiv 1112.5745, equation 2.
    """
    members = [mean_probabilities(one, image, tta, bar).cpu() for one in model.members]
    probabilities = torch.stack(members).mean(0)
    entropy = normalized_entropy(probabilities)
    missing = missing_pixels(image.numpy())
    known = torch.ones_like(entropy, dtype=torch.bool)
    known = known if missing is None else torch.from_numpy(~missing)
    means = {"entropy": _mean(entropy[known])}
    if len(members) > 1:
        own = torch.stack([normalized_entropy(one) for one in members]).mean(0)
        means["disagreement"] = _mean((entropy - own).clamp(min=0)[known])
    return probabilities, Uncertainty(entropy.where(known, 0), means)


def normalized_entropy(probabilities: Tensor) -> Tensor:
    """Compute the entropy of each pixel: probabilities (K, H, W) -> (H, W).

    It is 0 if one class is certain, and 1 if all K classes are equally probable.
    """
    entropy: Tensor = torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))
    return entropy


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def draw_uncertainty(image: Tensor, entropy: Tensor) -> np.ndarray:
    """Show entropy over an image (C, H, W) in dark grey: 0.5 is red and 1 yellow."""
    grey = image_to_rgb(image, stretch=False).mean(2, keepdims=True) / 2
    weights = entropy.numpy()
    colours, opacity = weights_to_rgb(weights, 1.5), np.sqrt(weights)[..., None]
    drawn: np.ndarray = (grey + opacity * (colours - grey)).round().astype(np.uint8)
    return drawn


def write_table(jobs: Sequence[Job], out: Path) -> list[dict[str, Any]]:
    """Write `TABLE` from the pictures of jobs that are done, and return its rows.

    The images, or pages of stacks, with the highest mean entropy come first.

    Raises:
        FileExistsError: if a picture has another origin.
        OSError: if a file cannot be read or written.
    """
    rows: list[dict[str, Any]] = [
        {"image": job.files[0], "page": "" if job.pages is None else page, **means}
        for job in jobs
        for page, means in enumerate(_read_means(job.outputs["uncertainty"]), 1)
    ]
    # Of equal ones the first; NaN is last.
    rows.sort(key=lambda row: math.inf if math.isnan(row["entropy"]) else -row["entropy"])
    write_csv(out / TABLE, rows)
    return rows


def describe_table(rows: Sequence[dict[str, Any]], out: Path) -> str:
    """Name the first images of `write_table`."""
    names = [
        f"{row['image']}{f' page {page}' if (page := row['page']) else ''} ({row['entropy']:.3f})"
        for row in rows[:3]
    ]
    return f"most uncertain: {', '.join(names)}; all {len(rows)} are in {out / TABLE}"


def _read_means(path: Path) -> Iterator[dict[str, float]]:
    """Read what `Uncertainty.means` were written into each page of a picture."""
    try:
        with Image.open(path) as picture:
            for page in ImageSequence.Iterator(picture):
                tags = getattr(page, "tag_v2", {IMAGE_DESCRIPTION: page.info.get("Description")})
                means = json.loads(tags[IMAGE_DESCRIPTION])
                yield {name: round(value, 6) for name, value in means.items()}
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        raise FileExistsError(
            f"{path}: exists, and nothing in it says how uncertain the model is; pass "
            f"overwrite=True to predict it again, or remove {FOLDERS['uncertainty']}"
        ) from error
