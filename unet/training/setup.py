"""Everything that happens before the loop: checks, and the components built from a config."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unet.build import (
    build_dataset,
    build_loss,
    build_network,
    build_optimizer,
    build_training_reader,
    memory_format,
)
from unet.config.schema import Config
from unet.data.dataset import SegmentationDataset
from unet.data.masks import read_palette
from unet.data.normalization import Normalization
from unet.inference.predictor import Predictor
from unet.inspection.check import CheckedData, check_data, describe
from unet.models.unet import UNet
from unet.runtime import distributed
from unet.runtime.device import pick_dtype
from unet.runtime.text import format_list
from unet.training.initial_weights import InitialWeights
from unet.training.step import TrainingStep, WeightAverage


@distributed.on_first_rank
def check_processes(config: Config, device: torch.device) -> None:
    """Raise ValueError if settings do not fit the number of processes or the device."""
    settings = config.train
    if settings.batch_size % distributed.world_size():
        raise ValueError(
            f"train.batch_size: got {settings.batch_size}, expected a multiple of the "
            f"{distributed.world_size()} processes, which share each batch equally"
        )
    if settings.sync_batch_norm and device.type != "cuda":
        raise ValueError(
            f"train.sync_batch_norm: needs CUDA, but the device is {device}; set it to false, or "
            "use model.norm=group, which needs no synchronisation"
        )


@distributed.on_first_rank
def check_training_data(config: Config) -> CheckedData:
    """Read all data and print a description; raise ValueError if there are errors."""
    data = check_data(config)
    if data.errors:
        raise ValueError(format_list(data.errors))
    print(describe(config, data))
    for warning in data.warnings:
        print(f"warning: {warning}")
    return data


@dataclass(frozen=True, kw_only=True)
class Components:
    """What a training works with.

    Args:
        net: the network that is trained.
        average: moving average of its weights; None without `train.ema_decay`.
        model: what is validated and saved, with the network `average.net` or else `net`.
        training_step: updates `net`.
        dataset: training samples.
        data: the checked data.
    """

    net: UNet
    average: WeightAverage | None
    model: Predictor
    training_step: TrainingStep
    dataset: SegmentationDataset
    data: CheckedData


def build_components(
    config: Config,
    data: CheckedData,
    device: torch.device,
    initial: InitialWeights,
    state: dict[str, Any] | None,
) -> Components:
    """Build everything that a training works with.

    The state of a run to resume is needed for its normalization: computed again, by another version
    of NumPy, it may have another last digit.
    """
    settings, reader = config.train, build_training_reader(config)
    if state is None:
        normalization = _choose_normalization(config, data, initial)
    else:
        normalization = Normalization(**state["normalization"])
    dataset = build_dataset(
        config, data.train_pairs, reader, normalization, data.train.sizes, data.train.num_bytes
    )
    torch.manual_seed(settings.seed)
    net = build_network(config, device)
    initial.load_into(net, config)
    if settings.sync_batch_norm:
        # It replaces the layers inside and returns the same network.
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    average = WeightAverage(net, settings.ema_decay) if settings.ema_decay is not None else None
    first = data.train_pairs[0]
    return Components(
        net=net,
        average=average,
        model=Predictor(
            net=average.net if average else net,
            config=config,
            normalization=normalization,
            val_stems=tuple(pair.stem for pair in data.val_pairs),
            palette=None if reader.mask_per_class else read_palette(first.masks[0], first.page),
            device=device,
        ),
        training_step=TrainingStep(
            net,
            build_loss(config, data.train.class_pixels.sum(0)).to(device),
            build_optimizer(config, net),
            dtype=pick_dtype(settings.precision, device),
            accumulate=settings.accumulate,
            clip_grad_norm=settings.clip_grad_norm,
            compiled=settings.compile,
            memory_format=memory_format(config),
            freezes=settings.freeze_encoder_epochs > 0,
        ),
        dataset=dataset,
        data=data,
    )


def _choose_normalization(
    config: Config, data: CheckedData, initial: InitialWeights
) -> Normalization:
    if config.data.normalization != "auto" or initial.normalization is None:
        return data.normalization(config)
    print(
        f"note: data.normalization: {initial.normalization}, as in the training of the initial "
        "weights; set it to dataset to use statistics of the training images"
    )
    return initial.normalization
