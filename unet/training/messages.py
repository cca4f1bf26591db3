"""The texts that a training prints."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from unet.config.schema import Config, warmup_epochs
from unet.metrics.monitor import best_row, score_title
from unet.runtime import distributed
from unet.runtime.optional import install_command, is_installed
from unet.runtime.text import join_some, plural


def start_text(
    config: Config, run: Path, net: nn.Module, device: torch.device, dtype: torch.dtype
) -> str:
    """Describe classes, network and device."""
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(config.data.classes))
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    processes = distributed.world_size()
    lines = [
        f"classes: {classes}",
        f"{parameters:.2f} million parameters, {device}, {str(dtype).removeprefix('torch.')}"
        + (f", {processes} processes" if processes > 1 else "")
        + f"; results go to {run}",
    ]
    if dtype == torch.float16 and device.type == "cpu":
        lines.append("warning: float16 is slow on CPUs; bfloat16 and float32 are faster")
    if (warmup := warmup_epochs(config)) != config.schedule.warmup_epochs:
        lines.append(
            f"note: the warm-up is shortened to {warmup:g} epochs, a tenth of train.epochs, "
            f"because schedule.warmup_epochs is {config.schedule.warmup_epochs:g}"
        )
    if config.train.compile:
        lines.append("the first step compiles the network, which may take minutes")
    return "\n".join(lines)


def validation_text(
    row: Mapping[str, Any], epochs: int, monitor: str, is_best: bool, left: float
) -> str:
    """Describe a validation in one line; `left` is the estimated rest of the run in seconds."""
    shown = dict.fromkeys(("mean_iou", monitor, "pixel_accuracy", f"raw_{monitor}"))
    scores = [f"{score_title(name)} {row[name]:.4f}" for name in shown if name in row]
    if row["skipped_steps"]:
        scores.append(f"{row['skipped_steps']} steps skipped")
    if is_best:
        scores.append("best")
    loss = f"loss {row['train_loss']:.4f}"
    loss += f" (validation {row['val_loss']:.4f})" if "val_loss" in row else ""
    epoch = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
    times = (tqdm.format_interval(round(seconds)) for seconds in (row["seconds"], left))
    return "  ".join([epoch, "{}, {} left".format(*times), loss, *scores])


def summary_text(config: Config, run: Path, history: list[dict[str, Any]], left_out: int) -> str:
    """Describe the result, and what to do with it."""
    monitor, last = config.train.monitor, history[-1]
    best, seconds = best_row(history, monitor), last["seconds"]
    lines = [""]
    if left_out:
        lines.append(
            f"left out {plural(left_out, 'pair')} with files that cannot be read, listed above"
        )
    if last["epoch"] < (config.train.epochs or 1):
        lines.append(f"ended after epoch {last['epoch']} because of train.patience")
    if last["skipped_steps"]:
        lines.append(f"float16 skipped {last['skipped_steps']} of {last['step']} steps")
    result = "trained on all pairs without validation, so best.pt is the last model"
    if monitor in best:
        result = f"best {score_title(monitor)} {best[monitor]:.4f} in epoch {best['epoch']}"
    evaluate, predict = f"unet evaluate {run / 'best.pt'}", f"unet predict {run / 'best.pt'} IMAGES"
    if network := config.custom.network:  # which no command has
        evaluate = f"unet.evaluate({str(run)!r}, network={network}(...))"
        predict = f"unet.load_model({str(run)!r}, network={network}(...))"
    pictures = []  # those that could be written
    if any((run / "previews").glob("*.png")):
        pictures.append(f"pictures: {run / 'previews'}")
    if not is_installed("matplotlib"):
        plots = install_command("plots")
        pictures.append(f"curves:   need Matplotlib; install it with {plots}")
    elif (run / "curves.png").is_file():
        pictures.append(f"curves:   {run / 'curves.png'}")
    duration = f"{seconds / 60:.1f} minutes" if seconds > 90 else plural(round(seconds), "second")
    return "\n".join(
        [
            *lines,
            f"{result}; {duration} in total",
            *pictures,
            *([f"evaluate: {evaluate}"] if monitor in best else []),
            f"predict:  {predict}",
        ]
    )


def smaller_step(config: Config) -> str:
    """Say which settings would make a step need less memory."""
    settings, crop = config.train, config.augment.crop
    size = f"crops of {crop[0]} x {crop[1]}" if crop else "whole images"
    advice = []
    smaller = [max(16, side // 32 * 16) for side in crop] if crop else [256, 256]
    geometry = config.model.geometry
    if geometry.context:  # half of the pixels with logits
        learned = [side - 2 * geometry.context for side in crop or (512, 512)]
        smaller = [geometry.input_side(max(side // 2, 1)) for side in learned]
    if (half := settings.batch_size // 2) and half % distributed.world_size() == 0:
        advice.append(
            f"train.batch_size={half} with train.accumulate={2 * settings.accumulate} (the same "
            "samples in a step, half the memory)"
        )
    if not settings.activation_checkpointing and not settings.compile:
        advice.append("train.activation_checkpointing=true (slower)")
    if crop is None or smaller != list(crop):
        advice.append(f"augment.crop={smaller}".replace(" ", ""))
    advice.append("smaller model.widths")
    return f"a step has batches of {settings.batch_size} {size}: set {', or '.join(advice)}"


def not_finite(
    run: Path, step: int, lr: float, loss: float, norm: float, samples: Sequence[str]
) -> str:
    """Say in which step, counted from 0, the loss or a gradient was not finite."""
    value = f"the loss is {loss}" if not math.isfinite(loss) else f"a gradient is {norm}"
    last = run / "last.pt"
    intact = f", and {last} is intact" if last.exists() else ""
    return (
        f"train: {value} in step {step + 1}, with a learning rate of {lr:.3g}, on the samples "
        f"{join_some(samples, limit=8)}; this step did not change the weights{intact}. Lower "
        "optimizer.lr, increase schedule.warmup_epochs or set train.clip_grad_norm=1, and start "
        "again with overwrite=True; or look at these samples with the pictures of unet check"
    )
