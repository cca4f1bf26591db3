"""Checkpoints: one file that is all a model needs, to be used or trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet.build import build_classes, build_network, build_normalization, memory_format
from unet.checkpoint import load_checkpoint
from unet.config.data_schema import MayChange
from unet.config.loader import config_from_dict
from unet.config.schema import Config, tile_overlap, tiles_blend
from unet.config.values import changed_settings, config_to_dict
from unet.data.classes import ClassMap, Colour
from unet.data.normalization import Normalization
from unet.inference.sliding_window import sliding_window
from unet.models.fuse import fuse_batch_norm
from unet.models.unet import UNet, argmax_classes
from unet.runtime.device import memory_advice, pick_device, pick_dtype


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A U-Net together with what its images and masks need.

    Args:
        net: the network, on `device`.
        config: of the run that trained it.
        normalization: of the training images.
        val_stems: the images that were kept from training.
        palette: of the training masks, if they have one.
        device: where it runs.
        others: models of the same classes, whose probabilities are averaged with its own.
    """

    net: UNet
    config: Config
    normalization: Normalization
    val_stems: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    device: torch.device
    others: tuple["Predictor", ...] = ()

    @property
    def classes(self) -> ClassMap:
        """The classes and their mask values."""
        return build_classes(self.config)

    @property
    def members(self) -> tuple["Predictor", ...]:
        """This model without others, and these."""
        return (replace(self, others=()), *self.others)

    def contents(self) -> dict[str, Any]:
        """Return what a checkpoint of the model holds, training state apart."""
        return {
            "config": config_to_dict(self.config),
            "normalization": self.normalization.to_dict(),
            "val_stems": list(self.val_stems),
            "palette": self.palette,
            "model": self.net.state_dict(),
        }

    @torch.inference_mode()
    def logits(
        self,
        image: Tensor,
        device: torch.device | None = None,
        bar: str | None = None,
        surrounded: bool = False,
    ) -> Tensor:
        """Score every class: image (C, H, W) from 0 to 1 -> logits (K, H, W).

        Images larger than the config's `tiling.size` go through in tiles. With others, the logits
        are the logarithms of the mean probabilities.

        Args:
            image: of any size.
            device: where image and logits lie while tiles go through the network on its own
                device, such as the CPU for an image too large for a GPU; None for the network's.
            bar: title of a progress bar, if there are several tiles; None for none.
            surrounded: whether the image is as `UNet.mirror_context` gives it, with the network's context
                around what logits are asked for; not with others, which need another one.
        """
        if self.others:
            assert not surrounded
            scores = [model.logits(image, device, bar).softmax(0) for model in self.members]
            return torch.stack(scores).mean(0).log()
        return self._in_tiles(image, device, bar, surrounded)

    @torch.inference_mode()
    def predict(self, image: Tensor, bar: str | None = None) -> Tensor:
        """Choose a class for every pixel: image (C, H, W) from 0 to 1 -> ids (H, W), uint8.

        `bar` as in `logits`.
        """
        if self.others:
            return argmax_classes(self.logits(image, bar=bar)).cpu()
        # Without the logits of the whole image, which take four bytes for each class.
        return self._in_tiles(image, bar=bar, finish=argmax_classes).cpu()

    def _in_tiles(
        self,
        image: Tensor,
        device: torch.device | None = None,
        bar: str | None = None,
        surrounded: bool = False,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        self.net.eval()
        dtype, tiling = pick_dtype(self.config.train.precision, self.device), self.config.tiling

        def score(tiles: Tensor) -> Tensor:
            layout = memory_format(self.config)
            out: Tensor = self.net(tiles.to(self.device, memory_format=layout))
            return out

        with (
            torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32),
            memory_advice(
                f"an image of {image.shape[1]} x {image.shape[2]} pixels goes through in tiles of "
                f"at most {tiling.size[0]} x {tiling.size[1]}, {tiling.batch_size} together: lower "
                "tiling.size or tiling.batch_size"
            ),
        ):
            normalised = self.normalization(image).to(device or self.device)
            result = sliding_window(
                score,
                normalised if surrounded else self.net.mirror_context(normalised),
                size=tiling.size,
                overlap=tile_overlap(self.config),
                align=self.net.output_stride,
                blend=tiles_blend(self.config),
                context=self.net.context,
                remainder=self.net.geometry.remainder,
                batch_size=tiling.batch_size,
                bar=bar,
                finish=finish,
            )
        return result if surrounded else result[..., : image.shape[1], : image.shape[2]]


def load_model(
    path: str | Path | Sequence[str | Path],
    device: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load a trained model from its checkpoint alone, to predict with.

    Batch norm is folded into the convolutions, which is 1.17 times as fast (two CPU cores, a tile
    of 496 x 496, widths 32 to 256). To train on, set `train.init_from` instead.

    Args:
        path: a best.pt or last.pt; several for a model that
            averages their probabilities.
        device: auto, cpu, cuda or cuda:N; None for the config's `train.device`.
        overrides: changes to the config, such as `tiling.overlap=64`, of where files lie and how
            the model is run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, an override does not fit it, or several do not have the
            same classes, mask values and channels.
    """
    if not isinstance(path, str | Path):
        first, *others = (load_model(one, device, overrides) for one in path)
        for one, other in zip(path[1:], others, strict=True):
            ours, theirs = map(_agreed_on, (first, other))
            if ours != theirs:
                raise ValueError(
                    f"{one}: got {theirs}, expected those of {path[0]}, {ours}; only models that "
                    "agree are averaged"
                )
        return replace(first, others=tuple(others))
    contents = load_checkpoint(Path(path))
    config = _config_of(contents, overrides, str(path))
    chosen = pick_device(device or config.train.device)
    net = build_network(config, chosen)
    try:
        net.load_state_dict(contents["model"])
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit the model of the file's own config; it was changed "
            "after training, or is of another network"
        ) from error
    return Predictor(
        net=fuse_batch_norm(net),
        config=config,
        normalization=build_normalization(config) or Normalization(**contents["normalization"]),
        val_stems=tuple(contents["val_stems"]),
        palette=contents["palette"],
        device=chosen,
    )


def _config_of(contents: dict[str, Any], overrides: Sequence[str], where: str) -> Config:
    """The config of a checkpoint with what may be changed of it, changed."""
    trained = config_from_dict(contents["config"], (), where)
    config = config_from_dict(contents["config"], overrides, where)
    if changes := changed_settings(trained, config, MayChange.IN_USE):
        raise ValueError(
            f"{where}: a trained model keeps its settings, but {'; '.join(changes)}; leave that out"
        )
    return config


def _agreed_on(model: Predictor) -> str:
    """What models have in common that are averaged: the values, too, as masks have only one."""
    both = zip(model.classes.names, model.classes.values, strict=True)
    classes = ", ".join(f"{name}: {value}" for name, value in both)
    return f"the classes {classes} and {model.net.in_channels} channels"
