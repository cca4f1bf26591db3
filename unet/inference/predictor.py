"""Trained models: images -> logits and class ids."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.build import build_classes, memory_format
from unet.checkpoint import Calibration
from unet.config.schema import Config, tile_overlap, tiles_blend
from unet.config.values import config_to_dict
from unet.data.classes import ClassMap, Colour
from unet.data.image_range import ImageRange
from unet.data.normalization import Normalization, normalize
from unet.data.resize import resize_area, scaled_size
from unet.inference.sliding_window import Tiles, sliding_window
from unet.models.network import Network
from unet.models.unet import argmax_classes
from unet.runtime.device import memory_advice

# Above, a batch is slower on a CPU than its images one by one: its activations leave the cache.
_CPU_BATCH_PIXELS = 128 * 128


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A network with everything that its images and masks need.

    Args:
        net: the network, on `device`, or an `OnnxNetwork`.
        config: the config of its run.
        normalization: applied to every image, on the CPU.
        image_range: brightness of the training images; None if it is unknown.
        val_stems: stems of the run's validation images.
        palette: palette of the training masks; None if they have none.
        device: where the network takes images.
        weights: the state dict before batch norm was fused in `net`; None if it is not fused.
        dtype: in which the network computes.
        calibration: what `unet calibrate` found; None without.
    """

    net: Network
    config: Config
    normalization: Normalization
    image_range: ImageRange | None
    val_stems: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    device: torch.device
    weights: Mapping[str, Tensor] | None = None
    dtype: torch.dtype = torch.float32
    calibration: Calibration | None = None

    @property
    def classes(self) -> ClassMap:
        """The classes and their mask values."""
        return build_classes(self.config)

    @property
    def members(self) -> "tuple[Predictor, ...]":
        """This model alone, as `Ensemble.members`."""
        return (self,)

    @property
    def tiles(self) -> Tiles:
        """How large images are cut into tiles."""
        return Tiles(
            self.config.tiling.size,
            tile_overlap(self.config),
            align=self.net.geometry.output_stride,
            blend=tiles_blend(self.config),
            context=self.net.context,
            remainder=self.net.geometry.remainder,
            batch_size=self.config.tiling.batch_size,
        )

    def batch_size(self, size: tuple[int, int]) -> int:
        """Return the number of images of a size (H, W) that `batch_logits` takes together."""
        tiling = self.config.tiling
        # The network pads an image to two pixels of its deepest level.
        sides = [max(side + 2 * self.net.context, 2 * self.net.output_stride) for side in size]
        is_tile = all(side <= tile for side, tile in zip(sides, tiling.size, strict=True))
        if self.config.data.scale != 1 or not is_tile:
            return 1
        pixels = _CPU_BATCH_PIXELS if self.device.type == "cpu" else math.prod(tiling.size)
        return max(tiling.batch_size, pixels // math.prod(sides))

    def compare_range(self, image: Tensor) -> str | None:
        """Describe an image (C, H, W) that is far from the training images; None for others.

        Images that are normalised by their own statistics never are.
        """
        if self.image_range is None or self.normalization.method != "given":
            return None
        return self.image_range.compare(image.numpy())

    def contents(self) -> dict[str, Any]:
        """Return the contents of a checkpoint, without training state."""
        return {
            "config": config_to_dict(self.config),
            "normalization": self.normalization.to_dict(),
            "image_range": self.image_range and self.image_range.to_dict(),
            "val_stems": list(self.val_stems),
            "palette": self.palette,
            "calibration": self.calibration and asdict(self.calibration),
            "model": self.net.state_dict() if self.weights is None else dict(self.weights),
        }

    @torch.inference_mode()
    def logits(
        self,
        image: Tensor,
        bar: str | None = None,
        has_context: bool = False,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Compute the logits of an image (C, H, W) from 0 to 1 -> (K, H, W) float32.

        Images larger than the config's `tiling.size` go through the network in tiles.

        Args:
            image: the image, of any size.
            bar: title of the progress bar of the tiles; None for no bar.
            has_context: whether the image already has the context that `UNet.mirror_context` adds;
                the logits are that much smaller.
            finish: as in `sliding_window`.
        """
        if self.config.data.scale != 1 and not has_context:
            return self._scaled_logits(image, bar, finish)
        return self._logits(image, bar, has_context, finish)

    @torch.inference_mode()
    def batch_logits(self, images: Sequence[Tensor]) -> Tensor:
        """Compute the logits of images of one size (C, H, W) -> (N, K, H, W) float32.

        At most `batch_size` of them, and more than one. Their rounding differs from `logits`.
        """
        size = height, width = images[0].shape[1], images[0].shape[2]
        advice = (
            f"{len(images)} images of {height} x {width} pixels were predicted together: lower "
            "tiling.size or tiling.batch_size"
        )
        assert 1 < len(images) <= self.batch_size(size)
        with self._autocast(), memory_advice(advice):
            x = torch.stack([normalize(self.normalization, image) for image in images])
            logits = self._run(self.net.mirror_context(x))
        return logits[..., :height, :width].float()

    def _run(self, images: Tensor) -> Tensor:
        layout = memory_format(self.config)
        logits: Tensor = self.net.eval()(images.to(self.device, memory_format=layout))
        return logits if self.calibration is None else logits / self.calibration.temperature

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _scaled_logits(
        self, image: Tensor, bar: str | None, finish: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Compute the logits of an image that is resized by `data.scale`, at its own size."""
        size = image.shape[1], image.shape[2]
        small = resize_area(image, scaled_size(size, self.config.data.scale))
        logits = self._logits(small, bar, False, None)
        resized = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        return resized if finish is None else finish(resized)

    def _logits(
        self,
        image: Tensor,
        bar: str | None,
        has_context: bool,
        finish: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        tiling, (height, width) = self.config.tiling, image.shape[1:]
        with (
            self._autocast(),
            memory_advice(
                f"an image of {height} x {width} pixels was predicted in batches of "
                f"{tiling.batch_size} tiles of at most {tiling.size[0]} x {tiling.size[1]}: lower "
                "tiling.size or tiling.batch_size"
            ),
        ):
            x = normalize(self.normalization, image).to(self.device)
            x = x if has_context else self.net.mirror_context(x)
            result = sliding_window(self._run, x, self.tiles, bar, finish)
        return result if has_context else result[..., :height, :width]

    def predict(self, image: Tensor, bar: str | None = None) -> Tensor:
        """Choose the class of every pixel: image (C, H, W) from 0 to 1 -> (H, W) uint8 on the CPU.

        `bar` is that of `logits`.
        """
        # The logits of the whole image, four bytes for each class, are never in memory.
        return self.logits(image, bar, finish=argmax_classes).cpu()


@dataclass(frozen=True)
class Ensemble:
    """Several models whose probabilities are averaged, with the methods of a `Predictor`.

    Raises:
        ValueError: if the models differ in classes, mask values or channels.
    """

    members: tuple[Predictor, ...]

    def __post_init__(self) -> None:
        check_agreement(self.members, [f"member {i}" for i in range(len(self.members))])

    @property
    def config(self) -> Config:
        """The config of the first member."""
        return self.members[0].config

    @property
    def val_stems(self) -> tuple[str, ...]:
        """The validation images of the first member."""
        return self.members[0].val_stems

    @property
    def classes(self) -> ClassMap:
        """The classes and their mask values."""
        return self.members[0].classes

    @property
    def palette(self) -> tuple[Colour, ...] | None:
        """The palette of the first member."""
        return self.members[0].palette

    @torch.inference_mode()
    def logits(self, image: Tensor, bar: str | None = None) -> Tensor:
        """Compute the logarithms of the mean probabilities, as `Predictor.logits`."""
        probabilities = [model.logits(image, bar).softmax(0) for model in self.members]
        return torch.stack(probabilities).mean(0).log()

    def batch_size(self, size: tuple[int, int]) -> int:
        """Return the number of images that all members take together."""
        return min(model.batch_size(size) for model in self.members)

    @torch.inference_mode()
    def batch_logits(self, images: Sequence[Tensor]) -> Tensor:
        """Compute the logarithms of the mean probabilities, as `Predictor.batch_logits`."""
        probabilities = [model.batch_logits(images).softmax(1) for model in self.members]
        return torch.stack(probabilities).mean(0).log()

    def predict(self, image: Tensor, bar: str | None = None) -> Tensor:
        """Choose the class of every pixel, as `Predictor.predict`."""
        return argmax_classes(self.logits(image, bar)).cpu()


Model = Predictor | Ensemble


def check_agreement(models: Sequence[Predictor], names: Sequence[str]) -> None:
    """Raise ValueError if models differ in classes, mask values or channels."""

    def describe(model: Predictor) -> str:
        pairs = zip(model.classes.names, model.classes.values, strict=True)
        classes = ", ".join(f"{name}: {value}" for name, value in pairs)
        return f"the classes {classes} and {model.config.model.in_channels} channels"

    expected = describe(models[0])
    for name, got in zip(names, map(describe, models), strict=True):
        if got != expected:
            raise ValueError(
                f"{name}: got {got}, expected {expected} as in {names[0]}; an ensemble averages "
                "models of the same classes and channels"
            )
