"""Augmentation of image and target together: one map of pixels, resampled once."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unet.data.image_types import Window, cut


@dataclass(frozen=True)
class Placement:
    """Where a crop lies in an image, and the window of the image that it needs.

    `grid` is the place in the image of each pixel of the crop: (h, w, 2) as (x, y) for grid_sample.
    """

    grid: Tensor
    size: tuple[int, int]  # of the image
    window: Window

    def resample(self, window: Tensor, mode: str) -> Tensor:
        """Resample the window of an image (C, h, w) float32 to the crop."""
        image = self._in_place(window)[None]
        return F.grid_sample(
            image, self.grid[None], mode=mode, padding_mode="reflection", align_corners=False
        )[0]

    def _in_place(self, window: Tensor) -> Tensor:
        """View a window as the image (C, H, W), whose other pixels have no memory of their own.

        The rounding of grid_sample depends on the size of the image, not only on its pixels.
        """
        (channels, rows, columns), (height, width) = window.shape, self.size
        if (rows, columns) == self.size:
            return window
        start, plane = self.window.top * columns + self.window.left, rows * columns
        memory = window.new_empty((channels - 1) * plane + (height - 1) * columns + width)
        memory[start : start + window.numel()] = window.flatten()
        return memory.as_strided((channels, height, width), (plane, columns, 1))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of the geometry and the values of a sample.

    All geometric transforms are composed into one map from the crop to the image, which resamples
    the image once (bilinear) and the target once (nearest). Outside, both are mirrored.

    Source: the elastic deformation is that of Ronneberger, Fischer and Brox 2015,
    arXiv 1505.04597, section 3.1.
    """

    crop: tuple[int, int] | None = None  # (height, width) in pixels; None keeps the image's size
    scale: tuple[float, float] = (1.0, 1.0)  # magnification, drawn log-uniformly
    flip_horizontal: bool = False  # with probability 0.5
    flip_vertical: bool = False
    quarter_turns: bool = False  # 0, 90, 180 or 270 degrees; without a crop only 0 or 180
    rotate: float = 0.0  # largest rotation in degrees, to either side
    elastic_std: float = 0.0  # standard deviation of the displacements in pixels
    elastic_spacing: int = 64  # pixels between displaced points; in between, bicubic interpolation
    brightness: float = 0.0  # largest shift to either side, in standard deviations of the data
    contrast: float = 0.0  # largest change to either side, as a fraction
    gamma: float = 0.0  # the values' exponent is from 1 / (1 + gamma) to 1 + gamma
    color: float = 0.0  # largest change of each channel's brightness and contrast by itself
    blur: float = 0.0  # largest standard deviation of a Gaussian blur, in pixels
    noise: float = 0.0  # largest standard deviation of Gaussian noise, in those of the data
    jpeg: int | None = None  # lowest quality of a JPEG compression; None for no compression
    # Pixels on each side for which an unpadded network has no logits. The crop includes them, but
    # its place is chosen without them. Without a crop they are added.
    context: int = 0
    # Without a crop, H and W without context are rounded up to a multiple plus a remainder.
    size_multiple: int = 1
    size_remainder: int = 0

    def __call__(
        self,
        image: Tensor,
        target: Tensor,
        rng: np.random.Generator,
        around: tuple[int, int] | None = None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Augment one sample at random: image (C, H, W), class ids (H, W), weights (H, W) if given.

        The image is float32, normalised to mean 0 and standard deviation 1. The pixel `around`
        (y, x) comes into the middle half of the crop, if the image's borders allow.
        """
        place = self.place((image.shape[1], image.shape[2]), rng, around)
        parts = [
            cut(one, place.window)
            for one in (image, target, *(() if weights is None else (weights,)))
        ]
        return self.apply(place, rng, *parts)

    def place(
        self, size: tuple[int, int], rng: np.random.Generator, around: tuple[int, int] | None = None
    ) -> Placement:
        """Draw the place of a crop in an image of a size (H, W), the first half of a call."""
        grid = self._grid(*size, rng, around)
        spans = [
            _needed_pixels(((grid[..., 1 - axis] + 1) * side - 1) / 2, side)
            for axis, side in enumerate(size)
        ]
        return Placement(grid, size, Window(*spans[0], *spans[1]))

    def apply(
        self,
        place: Placement,
        rng: np.random.Generator,
        image: Tensor,
        target: Tensor,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Augment the windows that a placement needs, the second half of a call."""
        smooth = image if weights is None else torch.cat([image, weights[None]])
        smooth = place.resample(smooth, "bilinear")
        # Class ids are at most 255, which float32 holds exactly.
        target = place.resample(target[None].float(), "nearest")[0].long()
        gain = 1 + rng.uniform(-self.contrast, self.contrast)
        shift = rng.uniform(-self.brightness, self.brightness)
        changed = self.change_values(smooth[: len(image)] * gain + shift, rng)
        return (changed, target) if weights is None else (changed, target, smooth[-1])

    def change_values(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Change the values of an image (C, H, W) by gamma, color, blur, noise and jpeg.

        With their defaults, no random number is drawn.
        """
        if self.gamma:
            image = _bend(image, math.exp(rng.uniform(-1, 1) * math.log1p(self.gamma)))
        if self.color:
            gains, shifts = rng.uniform(-self.color, self.color, (2, len(image), 1, 1))
            image = image * torch.from_numpy(1 + gains).float() + torch.from_numpy(shifts).float()
        if self.blur and (sigma := rng.uniform(0, self.blur)) > 0.1:
            size = 2 * math.ceil(3 * sigma) + 1
            if size // 2 < min(image.shape[-2:]):  # it is mirrored at the borders
                # Slow to import, and most runs do not need it.
                from torchvision.transforms.v2.functional import gaussian_blur

                image = gaussian_blur(image, [size, size], [sigma, sigma])
        if self.noise:
            noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, self.noise)
            image = image + torch.from_numpy(noise.astype(np.float32))
        if self.jpeg is not None:
            image = _compress(image, int(rng.integers(self.jpeg, 101)))
        return image

    def _grid(
        self, height: int, width: int, rng: np.random.Generator, around: tuple[int, int] | None
    ) -> Tensor:
        """The place in the image of each pixel of the crop: (h, w, 2) as (x, y) for grid_sample."""
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

        # Exact integers, so that flips and quarter turns alone do not interpolate.
        turn_cos, turn_sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[turn_cos, -turn_sin], [turn_sin, turn_cos]], dtype=torch.float32)
        rotation = torch.tensor([[cos, -sin], [sin, cos]])
        flip = torch.diag(torch.tensor([-1.0 if flip_y else 1.0, -1.0 if flip_x else 1.0]))
        source = torch.einsum("ij,jhw->ihw", turn @ rotation @ flip / scale, offsets)

        # The crop's window starts at a whole pixel of the image; a larger one is centred.
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


def _needed_pixels(coordinates: Tensor, side: int) -> tuple[int, int]:
    """The range of pixels, mirrored at the borders, that interpolation at coordinates needs."""
    low, high = (int(one.floor()) for one in coordinates.aminmax())
    low, high = low - 1, high + 2  # the next pixel, and a margin for rounding
    if low < -side or high >= 2 * side:
        return 0, side
    start, stop = low, high + 1
    if low < 0:
        start, stop = 0, max(stop, -low)
    if high >= side:
        start, stop = min(start, 2 * side - 1 - high), side
    return start, min(stop, side)


def _bend(image: Tensor, exponent: float) -> Tensor:
    """Raise values to a power, between the smallest and the largest of the image."""
    low, high = image.min(), image.max()
    span = (high - low).clamp(min=1e-6)
    return ((image - low) / span) ** exponent * span + low


def _compress(image: Tensor, quality: int) -> Tensor:
    """Write the image as JPEG and read it again, with three channels together or one by one."""
    low, high = image.min(), image.max()
    span = (high - low).clamp(min=1e-6)
    pixels = ((image - low) / span * 255).round().to(torch.uint8).numpy()
    groups = [pixels.transpose(1, 2, 0)] if len(pixels) == 3 else list(pixels)
    read = []
    for group in groups:
        buffer = io.BytesIO()
        Image.fromarray(group).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as picture:
            read.append(np.array(picture).reshape(*image.shape[-2:], -1))
    changed = torch.from_numpy(np.concatenate(read, 2).transpose(2, 0, 1).astype(np.float32))
    return changed / 255 * span + low
