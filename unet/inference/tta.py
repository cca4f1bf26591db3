"""Test-time augmentation: an image seen in several ways, and the mean of what a model says."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.inference.predictor import Predictor
from unet.models.unet import argmax_classes

Kind = Literal["flips", "turns", "scales"]

KINDS: tuple[Kind, ...] = ("flips", "turns", "scales")

SCALES = (0.75, 1.0, 1.25)


class View(NamedTuple):
    """One way to see an image: mirrored left to right or not, then turned, then scaled."""

    turns: int = 0
    """By 90 degrees each, anticlockwise."""
    mirrored: bool = False
    scale: float = 1.0

    @property
    def reversed_axes(self) -> tuple[bool, bool]:
        """Whether the view has rows, and columns, of the image from their ends."""
        return self.turns in (2, 3), (self.turns in (1, 2)) != self.mirrored

    def show(self, image: Tensor) -> Tensor:
        """See an image (C, H, W) so."""
        seen = torch.rot90(image.flip(-1) if self.mirrored else image, self.turns, (-2, -1))
        return _resize(seen, [max(1, round(side * self.scale)) for side in seen.shape[1:]])

    def back(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Lay what a model gave for the view, (K, h, w), over the image of a size (H, W)."""
        height, width = size if self.turns % 2 == 0 else size[::-1]
        upright = torch.rot90(_resize(scores, [height, width]), -self.turns, (-2, -1))
        return upright.flip(-1) if self.mirrored else upright


def views(kinds: Sequence[Kind]) -> list[View]:
    """List the ways to see an image, each once.

    flips are 4: as it is, mirrored left to right, top to bottom, and both. turns are 4: by 0, 90,
    180 and 270 degrees. Both together are 8, each turn mirrored or not. scales are the image at
    0.75, 1 and 1.25 times its size, each with all of the others.
    """
    turns = range(4) if "turns" in kinds else (0, 2) if "flips" in kinds else (0,)
    mirrored = (False, True) if "flips" in kinds else (False,)
    scales = SCALES if "scales" in kinds else (1.0,)
    return [View(t, m, s) for t in turns for m in mirrored for s in scales]


@torch.inference_mode()
def probabilities(
    model: Predictor, image: Tensor, kinds: Sequence[Kind] = (), bar: str | None = None
) -> Tensor:
    """Give each class its mean probability over the views: (C, H, W) -> (K, H, W).

    Args:
        model: or several as one.
        image: from 0 to 1, of any size; a large one goes through in tiles.
        kinds: of views; none for the image as it is.
        bar: title of a progress bar of the tiles of each view; None for none.
    """
    size = (image.shape[1], image.shape[2])
    seen = views(kinds)
    total = torch.zeros((), device=model.device)
    for view in seen:
        total = total + view.back(model.logits(view.show(image), bar=bar).softmax(0), size)
    return total / len(seen)


def choose(probabilities: Tensor, threshold: float | None = None) -> np.ndarray:
    """Choose a class for every pixel: (K, H, W) -> ids (H, W) uint8.

    Args:
        probabilities: of the classes.
        threshold: of two classes, the second where it has at least this probability; None for the
            likeliest.
    """
    chosen = argmax_classes(probabilities) if threshold is None else probabilities[1] >= threshold
    ids: np.ndarray = chosen.to("cpu", torch.uint8).numpy()
    return ids


def _resize(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[1:]) == size:
        return maps
    resized: Tensor = F.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]
    return resized
