"""Test-time augmentation: the mean probabilities over several views of an image."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.inference.predictor import Model
from unet.models.unet import argmax_classes

TtaMode = Literal["flips", "turns", "scales"]
SCALES = (0.75, 1.0, 1.25)


class View(NamedTuple):
    """A view of an image: mirrored left to right or not, then rotated, then scaled."""

    turns: int = 0  # by 90 degrees, anticlockwise
    mirrored: bool = False
    scale: float = 1.0

    @property
    def reversed_axes(self) -> tuple[bool, bool]:
        """Whether rows and columns of the image are in reversed order in the view."""
        return self.turns in (2, 3), (self.turns in (1, 2)) != self.mirrored

    def apply(self, image: Tensor) -> Tensor:
        """Transform an image (C, H, W) into the view."""
        view = torch.rot90(image.flip(-1) if self.mirrored else image, self.turns, (-2, -1))
        return _resize(view, [max(1, round(side * self.scale)) for side in view.shape[1:]])

    def undo(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Transform scores (K, h, w) of the view back to an image of a size (H, W)."""
        height, width = size if self.turns % 2 == 0 else size[::-1]
        upright = torch.rot90(_resize(scores, [height, width]), -self.turns, (-2, -1))
        return upright.flip(-1) if self.mirrored else upright


def list_views(tta: Sequence[TtaMode]) -> list[View]:
    """List the views of test-time augmentation, each once; without any, the image itself.

    flips: the image, mirrored left to right, top to bottom, and both. turns: rotations by 0, 90,
    180 and 270 degrees. Both together: 8 views, each rotation mirrored or not. scales: all of these
    at 0.75, 1 and 1.25 times the size.

    Raises:
        ValueError: for an unknown mode.
    """
    known = get_args(TtaMode)
    if isinstance(tta, str) or not all(mode in known for mode in tta):
        raise ValueError(f"tta: got {tta!r}, expected a list of some of {', '.join(known)}")
    turns = range(4) if "turns" in tta else (0, 2) if "flips" in tta else (0,)
    mirrored = (False, True) if "flips" in tta else (False,)
    scales = SCALES if "scales" in tta else (1.0,)
    return [View(t, m, s) for t in turns for m in mirrored for s in scales]


@torch.inference_mode()
def mean_probabilities(
    model: Model, image: Tensor, tta: Sequence[TtaMode] = (), bar: str | None = None
) -> Tensor:
    """Average the probabilities of all views: image (C, H, W) from 0 to 1 -> (K, H, W).

    `bar` is that of `Predictor.logits`.
    """
    size = (image.shape[1], image.shape[2])
    views = list_views(tta)
    total: Any = 0.0
    for view in views:
        total = total + view.undo(model.logits(view.apply(image), bar).softmax(0), size)
    probabilities: Tensor = total / len(views)
    return probabilities


def choose_classes(
    probabilities: Tensor, threshold: float | None = None, class_id: int = 1
) -> np.ndarray:
    """Choose the most probable class of every pixel: probabilities (K, H, W) -> (H, W) uint8.

    With a threshold, a pixel is of the class `class_id` if the probability of this class is at
    least that, and otherwise of the most probable other class.
    """
    if threshold is not None:
        probabilities = probabilities.clone()
        # Above or below all probabilities.
        probabilities[class_id] = torch.where(probabilities[class_id] >= threshold, 2.0, -1.0)
    ids: np.ndarray = argmax_classes(probabilities).to("cpu", torch.uint8).numpy()
    return ids


def _resize(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[1:]) == size:
        return maps
    resized: Tensor = F.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]
    return resized
