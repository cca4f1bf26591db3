"""Augmentation of image and target together: one map of pixels, resampled once."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Augment:
    """Random crop, scale, flips, turns, rotation, elastic deformation, brightness and contrast.

    Everything that moves pixels is composed into one map from the crop to the image, so that an
    image is interpolated once (bilinear) and its target picked once (nearest: no new classes).
    Where the map leaves the image, image and target are mirrored alike. Weights of the pixels go
    the image's way.

    Args:
        crop: (height, width) of the result in pixels; None keeps the image's size.
        scale: smallest and largest magnification, drawn log-uniformly.
        flip_horizontal: mirror left and right, half of the time.
        flip_vertical: mirror top and bottom, half of the time.
        quarter_turns: turn by 0, 90, 180 or 270 degrees; without a crop only by 0 or 180.
        rotate: largest rotation to either side in degrees.
        elastic_std: standard deviation in pixels of the elastic displacements; 0 for none.
        elastic_spacing: pixels between the points that are displaced; bicubic in between.
        brightness: largest shift to either side, in standard deviations of the image data.
        contrast: largest change of contrast to either side, as a fraction.
        context: pixels on each side of the result for which an unpadded network has no logits. The
            crop includes them, but only its middle is drawn from the image; without a crop the
            image is mirrored into them.
        size_multiple: without a crop, the image is also mirrored below and to the right until H
            and W without context are a multiple of this number plus size_remainder.
        size_remainder: see size_multiple.

    Source: the elastic deformation is that of Ronneberger, Fischer and Brox 2015,
    arXiv 1505.04597, section 3.1.
    """

    def __init__(
        self,
        crop: tuple[int, int] | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        flip_horizontal: bool = False,
        flip_vertical: bool = False,
        quarter_turns: bool = False,
        rotate: float = 0.0,
        elastic_std: float = 0.0,
        elastic_spacing: int = 64,
        brightness: float = 0.0,
        contrast: float = 0.0,
        context: int = 0,
        size_multiple: int = 1,
        size_remainder: int = 0,
    ) -> None:
        self.crop = crop
        self.scale = scale
        self.flip_horizontal = flip_horizontal
        self.flip_vertical = flip_vertical
        self.quarter_turns = quarter_turns
        self.rotate = rotate
        self.elastic_std = elastic_std
        self.elastic_spacing = elastic_spacing
        self.brightness = brightness
        self.contrast = contrast
        self.context = context
        self.size_multiple = size_multiple
        self.size_remainder = size_remainder

    def __call__(
        self,
        image: Tensor,
        target: Tensor,
        rng: np.random.Generator,
        around: tuple[int, int] | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Draw one augmentation from `rng` and apply it.

        Args:
            image: (C, H, W) float32, normalised to mean 0 and standard deviation 1.
            target: (H, W) class ids.
            rng: the only source of randomness.
            around: (y, x) of a pixel that the crop is drawn around; it will not be near its border
                unless it is near the image's.
            weights: (H, W) float32 of the pixels; None for none.

        Returns:
            Image (C, h, w), target (h, w), and weights (h, w) if there are any, of the crop's size.
        """
        height, width = image.shape[-2:]
        grid = self._grid(height, width, rng, around)[None]
        smooth = image if weights is None else torch.cat([image, weights[None]])
        smooth = F.grid_sample(
            smooth[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )[0]
        # Class ids are at most 255: float32 holds them exactly, and nearest only picks.
        target = F.grid_sample(
            target[None, None].float(),
            grid,
            mode="nearest",
            padding_mode="reflection",
            align_corners=False,
        )[0, 0].long()
        gain = 1 + rng.uniform(-self.contrast, self.contrast)
        shift = rng.uniform(-self.brightness, self.brightness)
        changed = smooth[: len(image)] * gain + shift
        return (changed, target) if weights is None else (changed, target, smooth[-1])

    def _grid(
        self, height: int, width: int, rng: np.random.Generator, around: tuple[int, int] | None
    ) -> Tensor:
        """Where each pixel of the crop comes from: (h, w, 2) as (x, y) in grid_sample's units."""
        crop_height, crop_width = self.crop or (self._full_side(height), self._full_side(width))
        scale = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        flip_x = self.flip_horizontal and rng.random() < 0.5
        flip_y = self.flip_vertical and rng.random() < 0.5
        turns = int(rng.integers(4)) if self.quarter_turns else 0
        if self.crop is None:
            turns -= turns % 2  # the result keeps the image's height and width

        # Offsets from the crop's centre, in pixels.
        y = torch.arange(crop_height) + 0.5 - crop_height / 2
        x = torch.arange(crop_width) + 0.5 - crop_width / 2
        offsets = torch.stack(torch.meshgrid(y, x, indexing="ij"))
        if self.elastic_std:
            offsets = offsets + self._displacements(crop_height, crop_width, rng)

        # A quarter turn's cosine and sine are whole numbers: a crop that is only flipped and
        # turned picks pixels instead of mixing them.
        turn_cos, turn_sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[turn_cos, -turn_sin], [turn_sin, turn_cos]], dtype=torch.float32)
        rotation = torch.tensor([[cos, -sin], [sin, cos]])
        flip = torch.diag(torch.tensor([-1.0 if flip_y else 1.0, -1.0 if flip_x else 1.0]))
        source = torch.einsum("ij,jhw->ihw", turn @ rotation @ flip / scale, offsets)

        # The crop's window in the image, whole pixels from its border; centred if it is larger.
        window = [crop_height - 2 * self.context, crop_width - 2 * self.context]
        if turns % 2:
            window.reverse()
        for axis, (size, image_size) in enumerate(zip(window, (height, width), strict=True)):
            free = image_size - size / scale
            low, high = 0, int(free)
            if around is not None:  # between a quarter and three quarters of the window
                low = min(max(0, math.ceil(around[axis] - 0.75 * size / scale)), high)
                high = max(min(high, math.floor(around[axis] - 0.25 * size / scale)), low)
            start = int(rng.integers(low, high + 1)) if free > 0 else math.floor(free / 2)
            source[axis] += start + size / scale / 2
            source[axis] = 2 * source[axis] / image_size - 1
        return source.flip(0).permute(1, 2, 0)

    def _full_side(self, pixels: int) -> int:
        """Side of the result without a crop."""
        multiple, remainder = self.size_multiple, self.size_remainder
        return math.ceil((pixels - remainder) / multiple) * multiple + remainder + 2 * self.context

    def _displacements(self, height: int, width: int, rng: np.random.Generator) -> Tensor:
        """Smooth random displacements (2, height, width) as (y, x) in pixels."""
        spans = height - 1, width - 1
        points = [max(2, math.ceil(span / self.elastic_spacing) + 1) for span in spans]
        coarse = torch.from_numpy(rng.normal(0, self.elastic_std, (1, 2, *points))).float()
        return F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)[0]
