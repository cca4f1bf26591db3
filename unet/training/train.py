"""The composition root of training: a config -> a trained model in runs/<name>/."""

from contextlib import ExitStack
from pathlib import Path

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
from unet.checkpoint import load_checkpoint
from unet.config.schema import Config, TrainConfig
from unet.data.masks import read_palette
from unet.data.normalization import Normalization
from unet.inference.predictor import Predictor
from unet.inspection.check import CheckedData, check_data, describe
from unet.models.weights import load_encoder_weights
from unet.runtime import distributed
from unet.runtime.device import deterministic, memory_advice, pick_device, pick_dtype
from unet.runtime.text import listed
from unet.training.initial_weights import load_initial_weights
from unet.training.run_folder import Progress, check_same, find_run, hold, make_folder
from unet.training.step import TrainingStep, WeightAverage
from unet.training.trainer import Trainer


def train(config: Config, resume: bool = False, overwrite: bool = False) -> Path:
    """Train a model as the config says; under torchrun, in all processes together.

    Args:
        config: of the run; its `train.seeds` is not looked at.
        resume: whether to continue the run from its last.pt, if there is one.
        overwrite: whether to delete a run of the same name first.

    Returns:
        The run's folder, with config.yaml, metrics.csv, best.pt, last.pt and the previous.pt before
        it, previews/, and where their extras are installed curves.png and tensorboard/.

    Raises:
        FileExistsError: if the run exists and is neither resumed nor overwritten, or if another
            process is training it.
        FileNotFoundError: if a folder is missing.
        FloatingPointError: if the loss or a gradient is no longer a finite number.
        MemoryError: with advice, if there is too little.
        Stopped: after SIGINT or SIGTERM, once the step is done and saved.
        ValueError: if the data is not as the config says, or the run to resume had another config.
    """
    distributed.initialize()
    run = Path(config.runs) / config.name
    with (
        deterministic(config.train.deterministic),
        distributed.lost_process_errors(),
        memory_advice("use smaller model.widths"),
        ExitStack() as until,
    ):
        distributed.run_on_first_rank(lambda: hold(run, until))
        return _train(run, config, resume, overwrite)


def _train(run: Path, config: Config, resume: bool, overwrite: bool) -> Path:
    settings = config.train
    world_size = distributed.world_size()
    device = pick_device(settings.device)
    distributed.run_on_first_rank(lambda: _refuse_for_processes(settings, device))
    state = distributed.run_on_first_rank(lambda: find_run(run, config, resume, overwrite))
    begin = None
    if settings.init_from is not None and state is None:
        begin = load_checkpoint(Path(settings.init_from))
    pretrained = None
    if settings.encoder_weights is not None and state is None:
        pretrained = distributed.run_on_first_rank(lambda: _encoder_weights(config))
    dtype = pick_dtype(settings.precision, device)
    if dtype == torch.float16 and device.type == "cpu":
        print("note: float16 is slow on CPUs; bfloat16 and float32 are not")
    reader = build_training_reader(config)

    # The data, read once in full: what is wrong with it is said now.
    data = distributed.run_on_first_rank(lambda: _checked_data(config))
    normalization = data.normalization(config)
    if config.data.normalization == "auto" and begin is not None:
        normalization = Normalization(**begin["normalization"])
        print(
            f"note: data.normalization: {normalization}, as these weights know images; set it to "
            "dataset for the numbers of the training images"
        )
    if state is not None:
        distributed.run_on_first_rank(lambda: check_same(state, run, dtype, data))
        # The very numbers: another version of NumPy may differ in the last digit.
        normalization = Normalization(**state["normalization"])
    print(describe(config, data))
    for warning in data.warnings:
        print(f"warning: {warning}")
    dataset = build_dataset(
        config,
        data.train_pairs,
        reader,
        normalization,
        data.train.sizes,
        data.train.num_bytes,
    )

    # The model, and all that learns with it.
    torch.manual_seed(settings.seed)
    net = build_network(config, device)
    if begin is not None:
        said = load_initial_weights(net, begin, str(settings.init_from), config)
        print(f"train.init_from: {said}")
    if pretrained is not None:
        net.encoder.backbone.load_state_dict(pretrained)
    if settings.sync_batch_norm:
        # It replaces the norms inside and returns the same network.
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    average = WeightAverage(net, settings.ema_decay) if settings.ema_decay is not None else None
    first = data.train_pairs[0]
    model = Predictor(
        net=average.net if average else net,
        config=config,
        normalization=normalization,
        val_stems=tuple(pair.stem for pair in data.val_pairs),
        palette=None if reader.mask_per_class else read_palette(first.masks[0], first.page),
        device=device,
    )
    training_step = TrainingStep(
        net,
        build_loss(config, data.train.class_pixels.sum(0)).to(device),
        build_optimizer(config, net),
        dtype,
        settings.accumulate,
        settings.clip_grad_norm,
        settings.compile,
        memory_format(config),
        settings.freeze_encoder_epochs > 0,
    )
    loop = Trainer(
        run=run,
        model=model,
        net=net,
        training_step=training_step,
        average=average,
        dataset=dataset,
        data=data,
        state=state,
    )
    if state is not None and state["world_size"] != world_size:
        print(
            f"note: the run had {state['world_size']} process(es) and now has {world_size}: "
            "what it computes stays the same but for rounding, batch norm and dropout"
        )
    distributed.run_on_first_rank(lambda: make_folder(run, config, state is not None))
    print(
        f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million parameters, {device}, "
        f"{str(dtype).removeprefix('torch.')}"
        + (f", {world_size} processes" if world_size > 1 else "")
        + f"; results go to {run}"
    )
    if loop.progress.step:
        print(f"going on after step {loop.progress.step} of {loop.num_steps}")
    if loop.is_finished:
        print("the run is complete: there is nothing left to train")
    else:
        if settings.compile:
            print("the first step compiles the network, which may take minutes")
        loop.finish()
    _say_goodbye(run, loop.progress, settings.epochs, data.skipped)
    return run


def _refuse_for_processes(settings: TrainConfig, device: torch.device) -> None:
    if settings.batch_size % distributed.world_size():
        raise ValueError(
            f"train.batch_size: got {settings.batch_size}, expected a multiple of the "
            f"{distributed.world_size()} processes, each of which takes its part"
        )
    if settings.sync_batch_norm and device.type != "cuda":
        raise ValueError(
            f"train.sync_batch_norm: torch has it for CUDA only, and this is {device}; leave it "
            "out, or take model.norm=group, which needs none"
        )


def _encoder_weights(config: Config) -> dict[str, torch.Tensor]:
    """Read what the encoder begins with, and say so."""
    encoder, channels = config.model.encoder, config.model.in_channels
    wanted = str(config.train.encoder_weights)
    weights = load_encoder_weights(encoder, wanted, channels)
    fitted = ""
    if channels != 3:
        how = "summed for grey images" if channels == 1 else "repeated and scaled"
        fitted = f"; those of the first convolution are {how}, for {channels} channel(s)"
    print(f"note: {encoder} begins with the weights {wanted}{fitted}")
    return weights


def _checked_data(config: Config) -> CheckedData:
    data = check_data(config)
    if data.errors:
        raise ValueError(listed(data.errors))
    return data


def _say_goodbye(run: Path, progress: Progress, epochs: int, left_out: int) -> None:
    """The result, and what to do with it."""
    best = max(progress.history, key=lambda row: float(row["mean_iou"]))
    last, seconds = progress.history[-1], progress.history[-1]["seconds"]
    duration = f"{seconds / 60:.1f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    print()
    if left_out:
        print(f"left out {left_out} pair(s) of files that cannot be read, as listed above")
    if last["epoch"] < epochs:
        print(f"ended early, after epoch {last['epoch']}, as train.patience asks")
    if progress.skipped:
        print(f"float16 skipped {progress.skipped} of {progress.step} steps")
    print(
        f"best mean IoU {best['mean_iou']:.4f} in epoch {best['epoch']}; {duration} in all\n"
        f"pictures: {run / 'previews'}\n"
        f"next:     unet evaluate {run / 'best.pt'}\n"
        f"          unet predict {run / 'best.pt'} IMAGES -o masks"
    )
