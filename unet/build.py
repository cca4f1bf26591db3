"""Config -> components: readers, transforms, datasets, network, loss, optimizer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet.config.schema import Config, FixedNormalizationConfig
from unet.data.border_weights import Border
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import Normalization
from unet.data.pairing import Pair, find_pairs, read_table
from unet.data.reader import PairReader
from unet.data.transforms import Augment
from unet.models.losses import SegmentationLoss
from unet.models.unet import UNet
from unet.models.weights import encoder_numbers
from unet.runtime import distributed
from unet.runtime.optional import import_extra


def build_network(config: Config, device: torch.device) -> UNet:
    """Make the config's network with fresh weights on the device."""
    net = UNet(
        **vars(config.model),
        num_classes=len(config.data.classes),
        activation_checkpointing=config.train.activation_checkpointing,
    )
    return net.to(device, memory_format=memory_format(config))  # type: ignore[call-overload,no-any-return]


def memory_format(config: Config) -> torch.memory_format:
    """Return how a config lays out images and weights in memory."""
    return torch.channels_last if config.train.channels_last else torch.contiguous_format


def given_normalization(config: Config) -> Normalization | None:
    """Return the normalization that a config alone tells; None if it asks for other numbers."""
    match config.data.normalization:
        case FixedNormalizationConfig(mean=mean, std=std):
            return Normalization(mean=mean, std=std)
        case "image" | "percentiles" as method:
            return Normalization(method=method)
        case _:
            return None


def numbers_of_weights(config: Config) -> Normalization | None:
    """Return the normalization that an encoder's first weights bring along, if it is to be."""
    model, data = config.model, config.data
    if data.normalization != "auto" or config.train.encoder_weights is None:
        return None
    numbers = encoder_numbers(model.encoder, model.in_channels)
    return None if numbers is None else Normalization(mean=numbers[0], std=numbers[1])


def build_reader(config: Config) -> PairReader:
    """Return what reads the pairs of a config."""
    return PairReader(
        classes=build_classes(config),
        in_channels=config.model.in_channels,
        mask_per_class=isinstance(config.data.masks, dict),
    )


def build_training_reader(config: Config) -> PairReader:
    """Return what reads the pairs of a config to be learned: with border weights, if it has them.

    Raises:
        ValueError: if these need scipy, and it is not installed.
    """
    reader, border = build_reader(config), config.loss.border
    if border is None:
        return reader
    import_extra("scipy.ndimage", "loss.border")
    classes = tuple(reader.classes.names.index(name) for name in border.classes)
    return replace(reader, border=Border(**{**vars(border), "classes": classes}))


def build_classes(config: Config) -> ClassMap:
    """Return the classes of a config."""
    return ClassMap(config.data.classes, config.data.ignore, config.data.tolerance)


def build_transforms(config: Config) -> Augment:
    """Return what draws the training samples of a config."""
    geometry = config.model.geometry
    return Augment(
        **vars(config.augment),
        context=geometry.context,
        size_multiple=geometry.output_stride if geometry.context else 1,
        size_remainder=geometry.remainder,
    )


def find_root(root: str) -> Path:
    """Return `data.root` as a path.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"data.root: there is no folder {root}; set data.root=FOLDER to where the data is"
        )
    return Path(root)


def list_pairs(
    config: Config, notes: list[str] | None = None, instances: bool = False
) -> tuple[list[Pair], list[str]]:
    """Find the files of `data.images` and `data.masks`, or of the table.

    Args:
        config: of the data.
        notes: to be told of files that lie there, but that it does not name.
        instances: whether the pairs need their label images, if it names such.

    Returns:
        The pairs, and what is wrong.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        ValueError: if a pattern matches nothing.
    """
    data, root = config.data, find_root(config.data.root)
    if data.csv is not None:
        return read_table(root, data.csv, data.stacks)
    labels = data.instances if instances else None
    images = data.channels or [data.images]
    return find_pairs(root, images, _in_class_order(config, data.masks), data.stacks, notes, labels)


def list_validation_pairs(
    config: Config, notes: list[str] | None = None, instances: bool = False
) -> tuple[list[Pair], list[str]]:
    """Find the files of `data.validation.images` and `masks`, as `list_pairs`; [] without such."""
    validation, root = config.data.validation, find_root(config.data.root)
    if validation.images is None or validation.masks is None:
        return [], []
    labels = validation.instances if instances else None
    masks, stacks = _in_class_order(config, validation.masks), config.data.stacks
    return find_pairs(root, [validation.images], masks, stacks, notes, labels)


def _in_class_order(config: Config, masks: str | dict[str, str]) -> str | dict[str, str]:
    """Sort patterns per class by class id: their order in the file has no meaning."""
    if isinstance(masks, str):
        return masks
    return {name: masks[name] for name in config.data.classes if name in masks}


def build_dataset(
    config: Config,
    pairs: Sequence[Pair],
    reader: PairReader,
    normalization: Normalization,
    sizes: np.ndarray,
    num_bytes: np.ndarray,
) -> SegmentationDataset:
    """Make the dataset of training samples.

    Args:
        config: for sampling, augmentation, cache and seed.
        pairs: the N training pairs.
        reader: from `build_training_reader`.
        normalization: applied to each sample.
        sizes: height and width of each pair, (N, 2), for the cache.
        num_bytes: size of each decoded pair, (N,), for the cache.
    """
    sampling, names = config.sampling, reader.classes.names
    # Each process of a machine has a cache of its own.
    limit = config.data.cache_gib * 2**30 / distributed.local_world_size()
    return SegmentationDataset(
        pairs,
        reader,
        normalization,
        build_transforms(config),
        config.train.seed,
        sampling.crops_per_image,
        [names.index(name) for name in sampling.rare_classes],
        sampling.rare_fraction,
        DecodedCache(pairs, reader, sizes, num_bytes, limit),
    )


def build_loss(config: Config, class_pixels: np.ndarray) -> SegmentationLoss:
    """Make the loss; `class_pixels` (K,) counts the training pixels, for balanced weights."""
    loss = config.loss
    weights = loss.class_weights
    if weights == "balanced":  # a class with the mean number of pixels weighs 1, an absent one 0
        fractions = class_pixels / class_pixels.mean()
        weights = tuple(1 / fraction if fraction else 0.0 for fraction in fractions.tolist())
    return SegmentationLoss(loss.cross_entropy, loss.dice, weights)


def build_optimizer(config: Config, net: UNet) -> torch.optim.Optimizer:
    """Make the optimizer; an encoder with a learning rate of its own is the second group."""
    settings = config.optimizer
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if settings.encoder_lr is not None:
        rest = [p for module in (net.stem, net.decoder, net.head) for p in module.parameters()]
        encoder = list(net.encoder.parameters())
        groups = [{"params": rest}, {"params": encoder, "lr": settings.encoder_lr}]
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(
                groups,
                lr=settings.lr,
                betas=(settings.momentum, 0.999),
                weight_decay=settings.weight_decay,
            )
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                nesterov=True,
            )
