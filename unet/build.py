"""From a config to components: files, readers, data sets, network, loss and optimizer.

Components take plain arguments; this module alone knows both them and the config.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unet.config.data_schema import FixedNormalizationConfig
from unet.config.schema import Config
from unet.data.augmentation import Augmentation
from unet.data.border_weights import Border
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.custom_transform import Transform
from unet.data.dataset import SegmentationDataset
from unet.data.image_types import ReadOptions
from unet.data.normalization import Normalization
from unet.data.pairing import MaskPlaces, Pair, Places, find_pairs
from unet.data.reader import PairReader
from unet.data.regions import add_regions
from unet.data.splits import (
    TRAIN,
    VAL,
    read_stems,
    split_by_stems,
    split_by_table,
    split_randomly,
)
from unet.data.table import read_table
from unet.models.custom import CustomLoss, CustomNetwork, LossFunction
from unet.models.losses import SegmentationLoss
from unet.models.network import Network
from unet.models.unet import UNet
from unet.models.weights import encoder_normalization
from unet.runtime import distributed
from unet.runtime.optional import import_extra


def find_root(root: str) -> Path:
    """Return the folder `data.root`.

    Raises:
        FileNotFoundError: if it does not exist.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"data.root: there is no folder {root}; set data.root=FOLDER to where the data is"
        )
    return Path(root)


def list_pairs(
    config: Config, warnings: list[str] | None = None, instances: bool = False
) -> tuple[list[Pair], list[str]]:
    """List the pairs of `data.images` and `data.masks`, or of `data.csv`.

    Args:
        config: its section data is used.
        warnings: files that no setting names are reported here.
        instances: whether to add the label images of `data.instances`, if it is set.

    Returns:
        The pairs, and errors.

    Raises:
        FileNotFoundError: if a folder or the table is missing.
        ValueError: if a pattern matches no file.
    """
    data, root = config.data, find_root(config.data.root)
    labels = data.instances if instances else None
    images: Sequence[Places] = data.channels or [data.images]
    masks = _in_class_order(config, data.masks)
    options, left_out = build_read_options(config), (data.exclude, data.skip_unlabelled)
    if data.csv is not None:
        pairs, errors = read_table(root, data.csv, data.stacks, options)
    else:
        pairs, errors = find_pairs(
            root, images, masks, data.stacks, warnings, labels, options, *left_out
        )
    return add_regions(pairs, config.data.ignore_regions), errors


def list_validation_pairs(
    config: Config, warnings: list[str] | None = None, instances: bool = False
) -> tuple[list[Pair], list[str]]:
    """List the pairs of `data.validation.images` as `list_pairs`; none if it is not set."""
    validation, root = config.data.validation, find_root(config.data.root)
    if validation.images is None or validation.masks is None:
        return [], []
    labels = validation.instances if instances else None
    masks, stacks = _in_class_order(config, validation.masks), config.data.stacks
    options, places = build_read_options(config), [validation.images]
    left_out = config.data.exclude, config.data.skip_unlabelled
    pairs, errors = find_pairs(root, places, masks, stacks, warnings, labels, options, *left_out)
    return add_regions(pairs, config.data.ignore_regions), errors


def list_all_pairs(config: Config, warnings: list[str]) -> tuple[list[Pair], list[Pair], list[str]]:
    """List the pairs of `data`, those of `data.validation.images`, and errors, as `list_pairs`."""
    validation = config.data.validation
    if validation.folds is not None and validation.fold is None:
        raise ValueError(
            f"data.validation.fold: got null, expected one of 0 to {validation.folds - 1}; set it, "
            "or train every fold with all_folds=True"
        )
    pairs, errors = list_pairs(config, warnings, instances=True)
    val_pairs, val_errors = list_validation_pairs(config, warnings, instances=True)
    errors += val_errors
    if {pair.images for pair in pairs} & {pair.images for pair in val_pairs}:
        errors.append(
            f"data.validation.images: got {validation.images}, which contains files of "
            "data.images, expected other files; correct one of the two"
        )
    return pairs, val_pairs, errors


def split_pairs(
    config: Config, pairs: Sequence[Pair], kept: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """Split the pairs of `list_pairs` as `data.validation` says.

    Args:
        config: its section data is used.
        pairs: all pairs.
        kept: indices of the N pairs to split, those that can be read.
        present: whether each of them has pixels of a class, (N, K).

    Returns:
        TRAIN, VAL or UNUSED for each of the N pairs.

    Raises:
        FileNotFoundError: if the file of `data.validation.stems` is missing.
        ValueError: if the pairs cannot be split like this.
    """
    validation, root = config.data.validation, find_root(config.data.root)
    chosen = [pairs[i] for i in kept.tolist()]
    if validation.none:
        return np.full(len(chosen), TRAIN)
    if validation.fraction is not None:
        fractions = (1 - validation.fraction, validation.fraction)
        return split_randomly(chosen, present, fractions, validation.seed, validation.group)
    if validation.folds is not None:
        equal = (1 / validation.folds,) * validation.folds
        folds = split_randomly(chosen, present, equal, validation.seed, validation.group)
        return np.where(folds == validation.fold, VAL, TRAIN)
    if validation.split is not None:
        return split_by_table(chosen, validation.split)
    stems = validation.stems
    assert stems is not None  # the config has one of these
    if isinstance(stems, str):
        stems = tuple(read_stems(root / stems))
    return np.where(split_by_stems(pairs, stems)[kept], VAL, TRAIN)


def _in_class_order(config: Config, masks: MaskPlaces) -> MaskPlaces:
    """Sort patterns per class by class id: their order in the file has no meaning."""
    if not isinstance(masks, Mapping):
        return masks
    return {name: masks[name] for name in config.data.classes if name in masks}


def build_classes(config: Config) -> ClassMap:
    """Return the classes and their mask values."""
    data, names = config.data, config.data.names or {}
    classes = {names.get(name, name): value for name, value in data.classes.items()}
    colours = {names.get(name, name): one for name, one in (data.colours or {}).items()}
    return ClassMap(classes, data.ignore, data.tolerance, colours)


def build_read_options(config: Config) -> ReadOptions:
    """Return how image files are read."""
    data = config.data
    return ReadOptions(
        nodata=data.nodata,
        axes=data.axes,
        exif=data.exif,
        max_pixels=data.max_pixels,
        resize_masks=data.resize_masks,
    )


def build_reader(config: Config) -> PairReader:
    """Return the reader of images and masks."""
    return PairReader(
        classes=build_classes(config),
        in_channels=config.model.in_channels,
        mask_per_class=isinstance(config.data.masks, dict),
        options=build_read_options(config),
    )


def build_training_reader(config: Config) -> PairReader:
    """Return the reader of training pairs: with `data.scale`, and weights of `loss.border`.

    Raises:
        ValueError: if scikit-image is needed, and not installed.
    """
    reader, border = replace(build_reader(config), scale=config.data.scale), config.loss.border
    if border is None:
        return reader
    import_extra("skimage.measure", "loss.border")
    classes = tuple(reader.classes.names.index(name) for name in border.classes)
    return replace(reader, border=Border(**{**vars(border), "classes": classes}))


def build_normalization(config: Config) -> Normalization | None:
    """Return the normalization if the config alone determines it, otherwise None."""
    match config.data.normalization:
        case FixedNormalizationConfig(mean=mean, std=std):
            return Normalization(mean=mean, std=std)
        case "image" | "percentiles" as method:
            return Normalization(method=method)
        case _:
            return None


def build_encoder_normalization(config: Config) -> Normalization | None:
    """Return the normalization that `train.encoder_weights` were trained with, if it is used."""
    model, data = config.model, config.data
    if data.normalization != "auto" or config.train.encoder_weights is None:
        return None
    numbers = encoder_normalization(model.encoder, model.in_channels)
    return None if numbers is None else Normalization(mean=numbers[0], std=numbers[1])


def build_transforms(config: Config) -> Augmentation:
    """Return the augmentation of training samples."""
    geometry = config.model.geometry
    return Augmentation(
        **vars(config.augment),
        context=geometry.context,
        size_multiple=geometry.output_stride if geometry.context else 1,
        size_remainder=geometry.remainder,
    )


def build_dataset(
    config: Config,
    pairs: Sequence[Pair],
    reader: PairReader,
    normalization: Normalization,
    sizes: np.ndarray,
    num_bytes: np.ndarray,
    transform: Transform | None = None,
) -> SegmentationDataset:
    """Return the data set of training samples, with its cache.

    Args:
        config: its sections data, sampling, augment and train are used.
        pairs: the N training pairs.
        reader: from `build_training_reader`.
        normalization: applied to each image.
        sizes: height and width of each pair, (N, 2), for the cache.
        num_bytes: size of each decoded pair, (N,), for the cache.
        transform: of the user, applied before the augmentation.
    """
    sampling, names = config.sampling, reader.classes.names
    # Each process of a machine has its own cache.
    limit = config.data.cache_gib * 2**30 / distributed.local_world_size()
    return SegmentationDataset(
        pairs,
        reader,
        normalization,
        augment=build_transforms(config),
        seed=config.train.seed,
        crops_per_image=sampling.crops_per_image,
        rare_classes=[names.index(name) for name in sampling.rare_classes],
        rare_fraction=sampling.rare_fraction,
        cache=DecodedCache(pairs, reader, sizes, num_bytes, limit),
        transform=transform,
    )


def build_network(
    config: Config, device: torch.device, network: nn.Module | None = None
) -> Network:
    """Return the network on a device: with random weights, or the user's as it is."""
    net: Network
    num_classes = len(config.data.classes)
    if network is not None:
        net = CustomNetwork(network, config.model.in_channels, num_classes)
    else:
        net = UNet(
            **vars(config.model),
            num_classes=num_classes,
            activation_checkpointing=config.train.activation_checkpointing,
        )
    return net.to(device, memory_format=memory_format(config))  # type: ignore[call-overload,no-any-return]


def memory_format(config: Config) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if config.train.channels_last else torch.contiguous_format


def build_loss(
    config: Config, class_pixels: np.ndarray, loss: LossFunction | None = None
) -> SegmentationLoss | CustomLoss:
    """Return the loss of the config, or the user's.

    `class_pixels` (K,) counts the training pixels, for balanced weights.
    """
    if loss is not None:
        return CustomLoss(loss)
    arguments = dict(vars(config.loss))
    del arguments["border"]  # border weights come with the samples
    if config.loss.class_weights == "balanced":
        # A class with the mean number of pixels weighs 1, a class without pixels 0.
        fractions = (class_pixels / class_pixels.mean()).tolist()
        arguments["class_weights"] = tuple(1 / x if x else 0.0 for x in fractions)
    return SegmentationLoss(**arguments)


def build_optimizer(config: Config, net: Network) -> torch.optim.Optimizer:
    """Return the optimizer; with `optimizer.encoder_lr` the encoder is its second group."""
    settings = config.optimizer
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if settings.encoder_lr is not None:
        assert isinstance(net, UNet)  # a custom network has no encoder that the config knows
        encoder = list(net.encoder.backbone.parameters())
        modules = net.encoder.stem, net.decoder, net.head
        rest = [parameter for module in modules for parameter in module.parameters()]
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
