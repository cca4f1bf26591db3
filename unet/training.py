"""The composition root of training: a config -> a trained model in runs/<name>/."""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from unet import distributed
from unet.beginning import begin_with
from unet.check import CheckedData, augmentation, check_data, describe, listed, training_reader
from unet.checkpoint import (
    SegmentationModel,
    build_net,
    load_checkpoint,
    memory_format,
    save_checkpoint,
)
from unet.config import (
    Config,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    network_levels,
)
from unet.data import BatchStream, DecodedImages, Normalization, PairReader, SegmentationDataset
from unet.device import deterministic, memory_advice, pick_device, pick_dtype
from unet.evaluation import Segmented, confusion_of_pairs
from unet.losses import SegmentationLoss
from unet.masks import ClassMap, palette_of
from unet.metrics import Scores, scores
from unet.model import UNet
from unet.pairs import Pair
from unet.pretrained import encoder_weights
from unet.reach import context, unpadded_side
from unet.runs import Progress, check_same, find_run, give_up, hold, make_folder, save_last
from unet.schedule import learning_rate_factor, validations_without_gain
from unet.step import TrainingStep, WeightAverage
from unet.stopping import Stopped, StopRequest, leave_signals_to_parent, stop_request
from unet.tracking import Tracker

# First word of the seeds, so that no two uses draw the same numbers; 1 to 3 are the data's.
_STEP_STREAM = 4


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
    distributed.join()
    run = Path("runs") / config.name
    with deterministic(config.train.deterministic), ExitStack() as until:
        distributed.from_first(lambda: hold(run, until))
        return _train(run, config, resume, overwrite)


def _train(run: Path, config: Config, resume: bool, overwrite: bool) -> Path:
    settings = config.train
    rank, world_size = distributed.rank(), distributed.world_size()
    device = pick_device(settings.device)
    distributed.from_first(lambda: _refuse_for_processes(settings, device))
    state = distributed.from_first(lambda: find_run(run, config, resume, overwrite))
    begin = None
    if settings.init_from is not None and state is None:
        begin = load_checkpoint(Path(settings.init_from))
    pretrained = None
    if settings.encoder_weights is not None and state is None:
        pretrained = distributed.from_first(lambda: _encoder_weights(config))
    dtype = pick_dtype(settings.precision, device)
    if dtype == torch.float16 and device.type == "cpu":
        print("note: float16 is slow on CPUs; bfloat16 and float32 are not")
    reader = training_reader(config)
    classes = reader.classes

    # The data, read once in full: what is wrong with it is said now.
    data = distributed.from_first(lambda: _checked_data(config))
    train_pairs, val_pairs = data.train_pairs, data.val_pairs
    normalization = data.normalization(config)
    if config.data.normalization == "auto" and begin is not None:
        normalization = Normalization(**begin["normalization"])
        print(
            f"note: data.normalization: {normalization}, as these weights know images; set it to "
            "dataset for the numbers of the training images"
        )
    if state is not None:
        distributed.from_first(lambda: check_same(state, run, dtype, data))
        # The very numbers: another version of NumPy may differ in the last digit.
        normalization = Normalization(**state["normalization"])
    print(describe(data, classes.names))
    for note in data.notes:
        print(f"note: {note}")
    dataset = _training_set(config, data, reader, normalization)

    # The model, and all that learns with it.
    torch.manual_seed(settings.seed)
    net, first = build_net(config, device), train_pairs[0]
    if begin is not None:
        said = begin_with(net, begin, str(settings.init_from), config)
        print(f"train.init_from: {said}")
    if pretrained is not None:
        net.encoder.load_state_dict(pretrained)
    if settings.sync_batch_norm:
        # It replaces the norms inside and returns the same network.
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
    average = WeightAverage(net, settings.average) if settings.average is not None else None
    model = SegmentationModel(
        net=average.net if average else net,
        config=config,
        normalization=normalization,
        val_stems=tuple(pair.stem for pair in val_pairs),
        palette=None if reader.in_parts else palette_of(first.masks[0], first.page),
        device=device,
    )
    optimizer = _optimizer(config.optimizer, net)
    training_step = TrainingStep(
        net,
        _loss(config.loss, data.train.class_pixels.sum(0)).to(device),
        optimizer,
        dtype,
        settings.accumulate,
        settings.clip_grad_norm,
        settings.compile,
        memory_format(config),
        settings.freeze_encoder_epochs > 0,
    )
    stateful: dict[str, Any] = {"optimizer": optimizer, "scaler": training_step.scaler}
    if average is not None:
        stateful["raw_model"] = net
    progress = Progress()
    if state is not None:
        for name, part in {"model": model.net, **stateful}.items():
            part.load_state_dict(state[name])
        progress = Progress(**state["progress"])
        if state["world_size"] != world_size:
            print(
                f"note: the run had {state['world_size']} process(es) and now has {world_size}: "
                "what it computes stays the same but for rounding, batch norm and dropout"
            )

    distributed.from_first(lambda: make_folder(run, config, state is not None))
    per_step = settings.batch_size * settings.accumulate
    steps_per_epoch = settings.steps_per_epoch or math.ceil(len(dataset) / per_step)
    num_steps = settings.epochs * steps_per_epoch
    validate_every = settings.validate_every * steps_per_epoch
    stream = BatchStream(
        len(dataset),
        settings.batch_size,
        settings.seed,
        progress.step * settings.accumulate,
        num_steps * settings.accumulate,
        (rank, world_size),
    )
    loader = DataLoader(
        dataset,
        batch_sampler=stream,
        num_workers=settings.num_workers,
        worker_init_fn=leave_signals_to_parent,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw from the global one
    )
    print(
        f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million parameters, {device}, "
        f"{str(dtype).removeprefix('torch.')}"
        + (f", {world_size} processes" if world_size > 1 else "")
        + f"; results go to {run}"
    )
    if progress.step:
        print(f"going on after step {progress.step} of {num_steps}")
    if settings.compile:
        print("the first step compiles the network, which may take minutes")

    # The loop: what it does next is a function of config and progress.
    tracker = Tracker(run, config, progress.step) if rank == 0 else None
    num_previews = min(settings.previews, len(val_pairs))
    # Spread over all, and each time the same.
    preview_places = [i * len(val_pairs) // num_previews for i in range(num_previews)]
    start, saved = time.monotonic() - progress.seconds, time.monotonic()
    bar = tqdm(
        total=num_steps * per_step,
        initial=progress.step * per_step,
        unit=" images",
        bar_format="{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}, {rate_fmt}",
        disable=distributed.hide_bar(),
        dynamic_ncols=True,
    )

    def rate_factor(step: int) -> float:
        return learning_rate_factor(
            config.schedule, step, num_steps, steps_per_epoch, progress.scores
        )

    def is_finished() -> bool:
        waited = validations_without_gain(progress.scores)
        return progress.validated == num_steps or waited >= (settings.patience or math.inf)

    def save() -> None:
        nonlocal saved
        saved = time.monotonic()
        if rank == 0:
            progress.seconds = round(saved - start, 1)
            states: dict[str, Any] = {name: part.state_dict() for name, part in stateful.items()}
            states["progress"] = asdict(progress)
            states["train_stems"] = [pair.stem for pair in train_pairs]
            states["data"] = data.fingerprint
            states["dtype"] = str(dtype)
            states["world_size"] = world_size
            save_last(run, model, states)

    def validate() -> None:
        step = progress.step
        previews: dict[int, Segmented] = {}
        result = _validate(model, val_pairs, stop, preview_places, previews)
        row = {
            "epoch": math.ceil(step / steps_per_epoch),
            "step": step,
            "lr": config.optimizer.lr * rate_factor(step - 1),
            "train_loss": progress.loss_sum / (step - progress.validated),
            **_columns(result, classes),
            "skipped_steps": progress.skipped,
        }
        if average is not None:
            raw = _validate(replace(model, net=net), val_pairs, stop)
            row["raw_mean_iou"] = raw.mean_iou
        row["seconds"] = round(time.monotonic() - start, 1)
        is_best = result.mean_iou > max(progress.scores, default=-math.inf)
        progress.history.append(row)
        progress.loss_sum = 0.0
        if tracker is not None:
            if is_best:
                states: dict[str, Any] = {"progress": asdict(progress)}
                if average is not None:
                    states["raw_model"] = net.state_dict()
                save_checkpoint(run / "best.pt", model, states)
            tracker.validation(progress.history, [previews[place] for place in preview_places])
        save()  # last: with it, the validation is done
        bar.write(_line(row, settings.epochs, is_best))

    if is_finished():
        print("the run is complete: there is nothing left to train")
    batches = iter(() if is_finished() else loader)
    with stop_request() as stop, bar:
        try:
            while not is_finished():
                step = progress.step
                if step > progress.validated and (step % validate_every == 0 or step == num_steps):
                    validate()
                    continue
                # What a network draws by lot is a function of the step.
                seed = np.random.SeedSequence([_STEP_STREAM, settings.seed, step, rank])
                torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
                factor = rate_factor(step)
                lr = config.optimizer.lr * factor
                net.encoder_frozen = step < settings.freeze_encoder_epochs * steps_per_epoch
                with memory_advice(_memory_advice(config)):
                    loss, norm = training_step.gradients(islice(batches, settings.accumulate))
                    skips = not math.isfinite(norm) and training_step.may_skip
                    if not math.isfinite(loss) or (not math.isfinite(norm) and not skips):
                        stems = _stems_of_step(dataset, stream, step, settings.accumulate)
                        give_up(run)
                        raise FloatingPointError(_not_finite(run, step, lr, loss, norm, stems))
                    training_step.update(factor)
                if average is not None:
                    average.update(net, step)
                progress.step += 1
                progress.loss_sum += loss
                progress.skipped += skips
                bar.set_description_str(
                    f"epoch {step // steps_per_epoch + 1}/{settings.epochs}", refresh=False
                )
                bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}", refresh=False)
                bar.update(per_step)
                if tracker is not None:
                    tracker.step(step + 1, loss, lr, norm)
                stop.check()
                if progress.step % (settings.save_steps or math.inf) == 0 or (
                    time.monotonic() - saved > settings.save_minutes * 60
                ):
                    save()
        except Stopped:
            bar.close()
            save()
            print(
                f"\nstopped after step {progress.step} of {num_steps}, which is saved; the same "
                "command with --resume goes on from there"
            )
            raise
        finally:
            if tracker is not None:
                tracker.close()
    _say_goodbye(run, progress, settings.epochs, data.skipped)
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
    weights = encoder_weights(encoder, wanted, channels)
    fitted = ""
    if channels != 3:
        how = "summed for grey images" if channels == 1 else "repeated and scaled"
        fitted = f"; those of the first convolution are {how}, for {channels} channel(s)"
    print(f"note: {encoder} begins with the weights {wanted}{fitted}")
    return weights


def _checked_data(config: Config) -> CheckedData:
    data = check_data(config)
    if data.faults:
        raise ValueError(listed(data.faults))
    return data


def _training_set(
    config: Config, data: CheckedData, reader: PairReader, normalization: Normalization
) -> SegmentationDataset:
    sampling, names = config.sampling, reader.classes.names
    # Every process of this machine keeps its own.
    limit = config.data.cache * 2**30 / distributed.local_world_size()
    return SegmentationDataset(
        data.train_pairs,
        reader,
        normalization,
        augmentation(config),
        config.train.seed,
        sampling.crops_per_image,
        [names.index(name) for name in sampling.rare],
        sampling.rare_share,
        DecodedImages(data.train_pairs, reader, data.train.num_bytes, limit),
    )


def _loss(config: LossConfig, class_pixels: np.ndarray) -> SegmentationLoss:
    weights = config.class_weights
    if weights == "balanced":  # a class of the mean number of pixels weighs 1, one without none 0
        shares = class_pixels / class_pixels.mean()
        weights = tuple(1 / share if share else 0.0 for share in shares.tolist())
    return SegmentationLoss(config.cross_entropy, config.dice, weights)


def _optimizer(config: OptimizerConfig, net: UNet) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if config.encoder_lr is not None:
        parts = [net.stem, net.decoder, net.head]
        rest = [parameter for part in parts for parameter in part.parameters()]
        encoder = list(net.encoder.parameters())
        groups = [{"params": rest}, {"params": encoder, "lr": config.encoder_lr}]
    match config.name:
        case "adamw":
            return torch.optim.AdamW(
                groups,
                lr=config.lr,
                betas=(config.momentum, 0.999),
                weight_decay=config.weight_decay,
            )
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=True,
            )


def _stems_of_step(
    dataset: SegmentationDataset, stream: BatchStream, step: int, accumulate: int
) -> list[str]:
    """The samples of all processes in a step, each once."""
    first = step * accumulate
    places = [place for i in range(first, first + accumulate) for place in stream.places(i)]
    return list(dict.fromkeys(dataset.pair(place).stem for place in places))


def _validate(
    model: SegmentationModel,
    pairs: Sequence[Pair],
    stop: StopRequest,
    places: Sequence[int] = (),
    seen: dict[int, Segmented] | None = None,
) -> Scores:
    distributed.copy_buffers(model.net)
    return scores(confusion_of_pairs(model, pairs, "validate", stop, places, seen))


def _columns(result: Scores, classes: ClassMap) -> dict[str, float]:
    """The scores in a line of metrics.csv."""
    return {
        "mean_iou": result.mean_iou,
        "mean_dice": result.mean_dice,
        "pixel_accuracy": result.pixel_accuracy,
        **{f"iou_{name}": iou for name, iou in zip(classes.names, result.iou, strict=True)},
    }


def _line(row: dict[str, Any], epochs: int, is_best: bool) -> str:
    """A validation in words."""
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  loss {row['train_loss']:.4f}  "
        f"mean IoU {row['mean_iou']:.4f}  pixel accuracy {row['pixel_accuracy']:.4f}"
        + (f"  raw mean IoU {row['raw_mean_iou']:.4f}" if "raw_mean_iou" in row else "")
        + (f"  {row['skipped_steps']} steps skipped" if row["skipped_steps"] else "")
        + ("  best" if is_best else "")
    )


def _not_finite(
    run: Path, step: int, lr: float, loss: float, norm: float, samples: Sequence[str]
) -> str:
    """The end of a run whose numbers have left the range of its dtype."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"a gradient is {norm}"
    more = f" and {len(samples) - 8} more" if len(samples) > 8 else ""
    last = run / "last.pt"
    return (
        f"train: {what} in step {step + 1}, at a learning rate of {lr:.3g}, on the samples "
        f"{', '.join(samples[:8])}{more}; the weights were not changed by it"
        + (f", and {last} is whole" if last.exists() else "")
        + ". Lower optimizer.lr, lengthen schedule.warmup_epochs or set train.clip_grad_norm=1, "
        "and train anew with --overwrite; or look at these samples with 'unet check --pictures'"
    )


def _memory_advice(config: Config) -> str:
    """What would make a step smaller, of what is not done yet."""
    settings, crop = config.train, config.augment.crop
    size = f"crops of {crop[0]} x {crop[1]}" if crop else "whole images"
    advice = []
    smaller = [max(16, side // 32 * 16) for side in crop] if crop else [256, 256]
    if config.model.padding == "valid":  # half of what is learned from
        levels = network_levels(config.model)
        learned = [side - 2 * context(levels) for side in crop or (512, 512)]
        smaller = [unpadded_side(levels, max(side // 2, 1)) for side in learned]
    if (half := settings.batch_size // 2) and half % distributed.world_size() == 0:
        advice.append(
            f"train.batch_size={half} with train.accumulate={2 * settings.accumulate} (the same "
            "samples in a step, half of the memory)"
        )
    if not settings.recompute and not settings.compile:
        advice.append("train.recompute=true (slower)")
    if crop is None or smaller != list(crop):
        advice.append(f"augment.crop={smaller}".replace(" ", ""))
    advice.append("smaller model.widths")
    return f"a step has batches of {settings.batch_size} {size}: set {', or '.join(advice)}"


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
