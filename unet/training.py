"""The composition root of training: a config -> a trained model in runs/<name>/."""

import csv
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from unet.atomic import atomic_path
from unet.augment import Augment
from unet.check import CheckedData, check_data, describe, listed, pair_reader
from unet.checkpoint import SegmentationModel, build_net, load_checkpoint, save_checkpoint
from unet.config import (
    Config,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    config_from_dict,
    config_to_dict,
    differences,
)
from unet.data import DecodedImages, EpochSampler, Normalization, SegmentationDataset
from unet.device import pick_device, pick_dtype
from unet.evaluation import confusion_of_pairs
from unet.images import to_float
from unet.losses import SegmentationLoss
from unet.masks import ClassMap, palette_of
from unet.metrics import Scores, scores
from unet.pairs import Pair
from unet.pictures import preview_sheet, save_picture

# What may differ between a run and its resumption without changing what is computed; of the
# precision, what it comes to on the device is compared.
_FREE_TO_CHANGE = ("train.num_workers", "train.device", "train.precision", "data.cache")


def train(config: Config, resume: bool = False, overwrite: bool = False) -> Path:
    """Train a model as the config says.

    Args:
        config: of the run.
        resume: whether to continue the run from its last.pt.
        overwrite: whether to delete a run of the same name first.

    Returns:
        The run's folder, with config.yaml, metrics.csv, last.pt, best.pt and previews/.

    Raises:
        FileExistsError: if the run exists and is neither resumed nor overwritten.
        FileNotFoundError: if a folder, or the run to resume, is missing.
        FloatingPointError: if the loss is no longer a finite number.
        ValueError: if the data is not as the config says, or the run to resume had another config.
    """
    run = Path("runs") / config.name
    if resume and overwrite:
        raise ValueError("train: got --resume and --overwrite, expected one of them")
    state = _load_run(run, config) if resume else None
    if run.exists() and not resume and not overwrite:
        goes_on = "--resume to continue it, " if (run / "last.pt").exists() else ""
        raise FileExistsError(
            f"{run}: exists; pass {goes_on}--overwrite to delete it and start anew, or name=OTHER "
            "for another run"
        )
    device = pick_device(config.train.device)
    dtype = pick_dtype(config.train.precision, device)
    reader = pair_reader(config)
    classes = reader.classes

    # The data, read once in full: what is wrong with it is said now.
    data = check_data(config)
    if data.faults:
        raise ValueError(listed(data.faults))
    train_pairs, val_pairs = data.train_pairs, data.val_pairs
    normalization = data.normalization(config)
    if state is not None:
        _check_same(state, run, dtype, data)
        # The very numbers: another version of NumPy may differ in the last digit.
        normalization = Normalization(**state["normalization"])
    print(describe(data, classes.names))
    for note in data.notes:
        print(f"note: {note}")
    dataset = SegmentationDataset(
        train_pairs,
        reader,
        normalization,
        Augment(**vars(config.augment)),
        config.train.seed,
        config.sampling.crops_per_image,
        [classes.names.index(name) for name in config.sampling.rare],
        config.sampling.rare_share,
        DecodedImages(train_pairs, reader, data.train.num_bytes, config.data.cache * 2**30),
    )
    sampler = EpochSampler(len(dataset), config.train.seed)
    loader = DataLoader(
        dataset,
        batch_size=config.train.batch_size,
        sampler=sampler,
        num_workers=config.train.num_workers,
        persistent_workers=config.train.num_workers > 0,
        pin_memory=device.type == "cuda",
    )

    # The model, and all that learns with it.
    torch.manual_seed(config.train.seed)
    net, first = build_net(config, device), train_pairs[0]
    model = SegmentationModel(
        net=net,
        config=config,
        normalization=normalization,
        val_stems=tuple(pair.stem for pair in val_pairs),
        palette=None if reader.in_parts else palette_of(first.masks[0], first.page),
        device=device,
    )
    loss_function = _loss(config.loss, data.train.class_pixels.sum(0)).to(device)
    optimizer = _optimizer(config.optimizer, net)
    schedule = _schedule(config.schedule, optimizer, len(loader), config.train.epochs)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    stateful: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    history: list[dict[str, Any]] = []
    if state is not None:
        for name, part in {"model": net, **stateful}.items():
            part.load_state_dict(state[name])
        history = state["history"]
    else:
        if run.exists():
            _delete_run(run)
        (run / "previews").mkdir(parents=True)
        with atomic_path(run / "config.yaml") as temporary:
            text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
            temporary.write_text(text, encoding="utf-8")
    print(
        f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} million parameters, {device}, "
        f"{str(dtype).removeprefix('torch.')}; results go to {run}"
    )

    epochs = config.train.epochs
    if history and history[-1]["epoch"] == epochs:
        print("the run is complete: there is nothing left to train")
    first_epoch = history[-1]["epoch"] if history else 0
    seconds_before = history[-1]["seconds"] if history else 0.0
    start = time.monotonic()
    bar = tqdm(
        total=epochs * len(loader),
        initial=first_epoch * len(loader),
        unit="step",
        disable=None,
        dynamic_ncols=True,
    )
    for epoch in range(first_epoch, epochs):
        net.train()
        loss_sum = torch.zeros((), device=device)
        sampler.epoch = epoch
        bar.set_description(f"epoch {epoch + 1}/{epochs}")
        for images, targets in loader:
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            targets = targets.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_function(net(images), targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            loss_sum += loss.detach() * len(images)
            bar.update()

        train_loss = float(loss_sum) / len(dataset)
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"train: the loss is {train_loss} in epoch {epoch + 1}; lower optimizer.lr "
                f"({config.optimizer.lr:g}) or lengthen schedule.warmup_epochs, and train anew "
                "with --overwrite"
            )
        if (epoch + 1) % config.train.validate_every and epoch + 1 < epochs:
            continue
        result = scores(confusion_of_pairs(model, val_pairs, "validate"))
        row = _row(epoch + 1, float(schedule.get_last_lr()[0]), train_loss, result, classes)
        row["seconds"] = round(seconds_before + time.monotonic() - start, 1)
        is_best = all(result.mean_iou > earlier["mean_iou"] for earlier in history)
        history.append(row)
        if is_best:
            save_checkpoint(run / "best.pt", model, {"history": history})
        _write_metrics(run / "metrics.csv", history)
        _draw_previews(run / "previews" / f"epoch_{epoch + 1:04d}.png", model, val_pairs)
        # last.pt comes last: with it, the epoch is done.
        states: dict[str, Any] = {name: part.state_dict() for name, part in stateful.items()}
        states["history"] = history
        states["train_stems"] = [pair.stem for pair in train_pairs]
        states["data"] = data.fingerprint
        states["dtype"] = str(dtype)
        save_checkpoint(run / "last.pt", model, states)
        bar.write(
            f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}  loss {train_loss:.4f}  "
            f"mean IoU {result.mean_iou:.4f}  pixel accuracy {result.pixel_accuracy:.4f}"
            f"{'  best' if is_best else ''}"
        )
    bar.close()

    seconds = history[-1]["seconds"]
    duration = f"{seconds / 60:.1f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    best = max(history, key=lambda row: float(row["mean_iou"]))
    if data.skipped:
        print(f"\nleft out {data.skipped} pair(s) of files that cannot be read, as listed above")
    print(
        f"\nbest mean IoU {best['mean_iou']:.4f} in epoch {best['epoch']}; "
        f"{duration} in all\n"
        f"pictures: {run / 'previews'}\n"
        f"next:     unet evaluate {run / 'best.pt'}\n"
        f"          unet predict {run / 'best.pt'} IMAGES -o masks"
    )
    return run


def _loss(config: LossConfig, class_pixels: np.ndarray) -> SegmentationLoss:
    weights = config.class_weights
    if weights == "balanced":  # a class of the mean number of pixels weighs 1, one without none 0
        shares = class_pixels / class_pixels.mean()
        weights = tuple(1 / share if share else 0.0 for share in shares.tolist())
    return SegmentationLoss(**{**vars(config), "class_weights": weights})


def _optimizer(config: OptimizerConfig, net: nn.Module) -> torch.optim.Optimizer:
    match config.name:
        case "adamw":
            return torch.optim.AdamW(
                net.parameters(),
                lr=config.lr,
                betas=(config.momentum, 0.999),
                weight_decay=config.weight_decay,
            )
        case "sgd":
            return torch.optim.SGD(
                net.parameters(),
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=True,
            )


def _schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, epoch_steps: int, epochs: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate of each step: a rise over the warm-up, then a fall to 0."""
    total = epochs * epoch_steps
    warmup = min(round(config.warmup_epochs * epoch_steps), total - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = 1 - (step - warmup) / (total - warmup)
        if config.name == "polynomial":
            assert config.power is not None  # the config sees to it
            return float(max(left, 0) ** config.power)
        return (1 - math.cos(math.pi * left)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _load_run(run: Path, config: Config) -> dict[str, Any]:
    """The state to resume from; the run must have had the same config."""
    path = run / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is nothing to resume; train without --resume"
            + (" and with --overwrite" if run.exists() else "")
        )
    state = load_checkpoint(path)
    if "optimizer" not in state:
        raise ValueError(f"{path}: holds no training state; restore the last.pt of the run")
    before = config_from_dict(state["config"], where=str(path))
    changed = differences(before, config, _FREE_TO_CHANGE)
    if changed:
        raise ValueError(
            f"{path}: the run to resume had another config: {'; '.join(changed)}. Resume with the "
            "same, or start another run with name=OTHER"
        )
    return state


def _check_same(
    state: dict[str, Any],
    run: Path,
    dtype: torch.dtype,
    data: CheckedData,
) -> None:
    """A run resumes with the images and the dtype that it began with, or it would be another."""
    other = "restore them, or start another run with name=OTHER"
    for key, pairs in (("train_stems", data.train_pairs), ("val_stems", data.val_pairs)):
        if state[key] != [pair.stem for pair in pairs]:
            raise ValueError(
                f"{run}: the run to resume had other images ({len(state[key])} {key}, now "
                f"{len(pairs)}); {other}"
            )
    if state["data"] != data.fingerprint:
        raise ValueError(f"{run}: images or masks have changed since the run began; {other}")
    if state["dtype"] != str(dtype):
        precision = state["dtype"].removeprefix("torch.")
        raise ValueError(
            f"{run}: the run to resume computed in {precision}, here it would be {dtype}; pass "
            f"train.precision={precision}"
        )


def _delete_run(run: Path) -> None:
    if not (run / "config.yaml").is_file():
        raise FileExistsError(
            f"{run}: holds no config.yaml and is no run's folder; remove it yourself or take "
            "name=OTHER"
        )
    shutil.rmtree(run)


def _row(
    epoch: int, lr: float, train_loss: float, result: Scores, classes: ClassMap
) -> dict[str, Any]:
    """One line of metrics.csv."""
    return {
        "epoch": epoch,
        "lr": lr,
        "train_loss": train_loss,
        "mean_iou": result.mean_iou,
        "mean_dice": result.mean_dice,
        "pixel_accuracy": result.pixel_accuracy,
        **{f"iou_{name}": iou for name, iou in zip(classes.names, result.iou, strict=True)},
    }


def _write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _draw_previews(path: Path, model: SegmentationModel, pairs: Sequence[Pair]) -> None:
    """Draw some validation images, spread over all of them, each time the same."""
    count = min(model.config.train.previews, len(pairs))
    if not count:
        return
    rows = []
    for i in range(count):
        pair = pairs[i * len(pairs) // count]
        pixels, target = pair_reader(model.config)(pair)
        image = torch.from_numpy(to_float(pixels))
        rows.append((image, target, model.predict(image).numpy()))
    save_picture(path, preview_sheet(rows, model.classes.names, model.classes.colours))
