"""From a config to a trained model: checks, components, and then the loop in trainer.py."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
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
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.data.custom_transform import Transform
from unet.data.loader import worker_errors
from unet.data.masks import read_palette
from unet.data.normalization import Normalization
from unet.inference.predictor import Predictor
from unet.inspection.check import CheckedData, check_data, describe
from unet.models.custom import LossFunction
from unet.runtime import distributed
from unet.runtime.device import deterministic, memory_advice, pick_device, pick_dtype
from unet.runtime.text import format_list
from unet.training.custom_parts import CustomParts
from unet.training.duration import (
    describe_duration,
    measure_costs,
    plan_minutes,
    timing_seconds,
)
from unet.training.initial_weights import InitialWeights, read_initial_weights
from unet.training.logger import load_extras
from unet.training.messages import start_text, summary_text
from unet.training.precision import choose_precision
from unet.training.run_folder import find_state, locked, prepare_folder
from unet.training.step import TrainingStep, WeightAverage
from unet.training.trainer import Trainer


def train(
    config: Config | str | Path | Mapping[str, Any],
    *,
    network: nn.Module | None = None,
    loss: LossFunction | None = None,
    transform: Transform | None = None,
    resume: bool = False,
    overwrite: bool = False,
    proposal: str | None = None,
) -> Path:
    """Train a model; under torchrun, in all processes together.

    Args:
        config: of one run, its YAML file, or a dict; `train.seeds` is not used.
        network: of your own, images (N, C, H, W) -> logits (N, K, H, W); it is trained in place,
            from the weights that it has. None for the U-Net of the config.
        loss: of your own, logits (N, K, H, W) and target (N, H, W) int64, where 255 is ignored ->
            scalar. None for that of the config.
        transform: of your own, applied to training samples before `augment`, see `Transform`.
        resume: continue the run from its last.pt, if it exists.
        overwrite: delete an existing run of the same name first.
        proposal: text of a config to keep in the run's folder as proposed.yaml.

    Returns:
        The run's folder, with best.pt, last.pt and the previous.pt before it, config.yaml,
        metrics.csv, previews/ and, if their extras are installed, curves.png and tensorboard/.

    Raises:
        FileExistsError: if the run exists and is neither resumed nor overwritten, or if another
            process is training it.
        FileNotFoundError: if a folder or file is missing.
        FloatingPointError: if the loss or a gradient is not finite.
        MemoryError: with advice, if memory runs out.
        Stopped: after SIGINT or SIGTERM, when the step is done and saved.
        ValueError: if the data does not fit the config, or the run to resume had another config.
    """
    if not isinstance(config, Config):
        config = load_config(config)
    start = time.monotonic()
    parts = CustomParts(network, loss, transform)
    config = parts.record(config)
    distributed.initialize(config.train.timeout_minutes)
    run = Path(config.runs) / config.name
    with (
        locked(run),
        deterministic(config.train.deterministic),
        distributed.lost_process_errors(),
        memory_advice("use smaller model.widths"),
    ):
        device = pick_device(config.train.device)
        check_processes(config, device)
        config, state = find_state(run, config, resume, overwrite)
        initial = read_initial_weights(config) if state is None else InitialWeights()
        data = check_training_data(config)
        config = choose_precision(config, device, network)
        trainer = build_trainer(run, config, data, device, initial, state, parts)
        if state is None:
            with worker_errors():
                costs = measure_costs(trainer, timing_seconds(config))
            if config.train.minutes is not None:
                config = plan_minutes(config, costs, time.monotonic() - start)
                trainer.model = replace(trainer.model, config=config)
        else:
            trainer.resume(state)
        # Printed first: a closed pipe leaves no run.
        print(start_text(config, run, trainer.net, device, trainer.training_step.dtype))
        if state is None:
            duration = describe_duration(config, costs, trainer.steps_per_epoch)
            print(f"the training takes {duration}")
        prepare_folder(run, config, state is not None, proposal)
        if trainer.progress.step:
            print(f"resuming after step {trainer.progress.step} of {trainer.num_steps}")
        if trainer.is_finished:
            print("the run is complete: there is nothing left to train")
        else:
            load_extras()
            trainer.fit()
        print(summary_text(config, run, trainer.progress.history, data.skipped))
    return run


def estimate_duration(config: Config, data: CheckedData) -> str:
    """Describe how long `train` takes on this machine, from a few timed steps.

    Raises:
        ValueError: if the machine lacks the device, or the time is too short for a training.
    """
    if own := [name for name in vars(config.custom).values() if name is not None]:
        return f"the time of a training is not known: {', '.join(own)} is only given in Python"
    start = time.monotonic()
    device = pick_device(config.train.device)
    config = choose_precision(config, device)
    run = Path(config.runs) / config.name
    trainer = build_trainer(run, config, data, device, InitialWeights(), None)
    costs = measure_costs(trainer, timing_seconds(config))
    if config.train.minutes is not None:
        config = plan_minutes(config, costs, time.monotonic() - start)
        trainer.model = replace(trainer.model, config=config)
    duration = describe_duration(config, costs, trainer.steps_per_epoch)
    return f"a training on {device} takes {duration}"


@distributed.on_first_rank
def check_processes(config: Config, device: torch.device) -> None:
    """Raise ValueError if settings do not fit the number of processes or the device."""
    settings = config.train
    if config.data.names is not None:
        raise ValueError(
            "data.names: renames the classes of a trained model; to train, write the names in "
            "data.classes"
        )
    if settings.compile and device.type == "mps":
        raise ValueError("train.compile: got true with train.device mps, expected false")
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
    """Read all data once and describe it; raise ValueError with all errors found."""
    data = check_data(config)
    if data.errors:
        raise ValueError(format_list(data.errors))
    print(describe(config, data))
    for warning in data.warnings:
        print(f"warning: {warning}")
    return data


def build_trainer(
    run: Path,
    config: Config,
    data: CheckedData,
    device: torch.device,
    initial: InitialWeights,
    state: dict[str, Any] | None,
    parts: CustomParts = CustomParts(),  # noqa: B008 (immutable)
) -> Trainer:
    """Build everything that a training works with; a run to resume keeps its normalization."""
    settings = config.train
    if state is None:
        normalization = _choose_normalization(config, data, initial)
    else:
        # Computed again, it may have another last digit, with another version of NumPy.
        normalization = Normalization(**state["normalization"])
    reader, first = build_training_reader(config), data.train_pairs[0]
    palette = None if reader.mask_per_class else read_palette(first.masks[0], first.page)
    sizes, num_bytes = data.train.sizes, data.train.num_bytes
    dataset = build_dataset(
        config, data.train_pairs, reader, normalization, sizes, num_bytes, parts.transform
    )
    dtype = pick_dtype(settings.precision, device)
    torch.manual_seed(settings.seed)
    net = build_network(config, device, parts.network)
    initial.load_into(net, config)
    if settings.sync_batch_norm:
        # It replaces the layers inside and returns the same network.
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    average = WeightAverage(net, settings.ema_decay) if settings.ema_decay is not None else None
    return Trainer(
        run=run,
        net=net,
        average=average,
        model=Predictor(
            net=average.net if average else net,
            config=config,
            normalization=normalization,
            image_range=data.image_range,
            val_stems=tuple(pair.stem for pair in data.val_pairs),
            palette=palette,
            device=device,
            dtype=dtype,
        ),
        training_step=TrainingStep(
            net,
            build_loss(config, data.train.class_pixels.sum(0), parts.loss).to(device),
            build_optimizer(config, net),
            dtype=dtype,
            accumulate=settings.accumulate,
            clip_grad_norm=settings.clip_grad_norm,
            compiled=settings.compile,
            memory_format=memory_format(config),
            # A custom network may have weights that its output does not depend on.
            freezes=settings.freeze_encoder_epochs > 0 or parts.network is not None,
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
