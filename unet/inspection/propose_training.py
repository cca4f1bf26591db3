"""The proposed sections sampling, augment, model, optimizer, schedule and train."""

from collections.abc import Sequence

import numpy as np
import torch

from unet.inspection.evidence import Evidence

MINUTES = 20.0
"""Of a training that nobody gave a length."""

UNEQUAL, MIXED = 0.5, 1.0
"""From this `Evidence.spread` on, images are normalised one by one, and batch norm is worse."""


def propose_training(
    sizes: np.ndarray,
    count: int,
    channels: int,
    rare: Sequence[str],
    evidence: Evidence,
    minutes: float = MINUTES,
) -> list[str]:
    """Write the lines of the sections.

    Args:
        sizes: height and width of each examined image, (N, 2).
        count: number of all images.
        channels: of the images.
        rare: names of the classes with few pixels.
        evidence: from the pixels of some images.
        minutes: length of the training.
    """
    on_gpu = torch.cuda.is_available()
    side = int(np.median(sizes.min(1)))
    # On a CPU, more steps with small crops reach more than fewer steps with large ones. In scenes
    # it matters what lies around, once there is time for it.
    is_scene = evidence.upright is not None and minutes > 10
    wanted = side if is_scene else max(128, side // 2)
    wanted = min(512, side) if on_gpu else min(256, wanted)
    crop = max(32, min(wanted, side) // 32 * 32)
    deep = crop >= 192
    if on_gpu:
        widths = [64, 128, 256, 512, 1024] if count >= 200 else [32, 64, 128, 256, 512]
        # Training keeps about 30 values of 4 bytes for each pixel and channel of the first level.
        memory = torch.cuda.mem_get_info()[0]
        batch = min(16, memory // 2 // (crop * crop * widths[0] * 30 * 4))
    else:
        widths = [16, 32, 64, 128, 256] if deep else [16, 32, 64, 128]
        batch = 2 if deep else 4
    batch = max(1, batch)
    height, width = np.median(sizes, axis=0).astype(int)
    model = f"in_channels: {channels}, widths: [{', '.join(map(str, widths))}]"
    lines = []
    if rare:
        lines += [
            "# Classes with under 2 % of the pixels: half of the crops contain one of them.",
            f"sampling: {{rare_classes: [{', '.join(rare)}], rare_fraction: 0.5}}",
        ]
    lines.append(f"# Median size {height} x {width}.")
    flips, comments = _propose_flips(channels, evidence)
    lines += [
        *comments,
        f"augment: {{crop: [{crop}, {crop}], scale: [0.8, 1.25], {flips}rotate: 10, "
        "brightness: 0.2, contrast: 0.2}",
    ]
    if evidence.spread > MIXED:
        model += ", norm: group"
        lines.append("# The images are a mixture of dark and bright ones: batch norm is worse.")
    return [
        *lines,
        f"model: {{{model}}}",
        "optimizer: {lr: 2e-3}",
        "schedule: {warmup_epochs: 1}",
        "# As many steps as fit into this time on this machine; unet check says how many.",
        f"train: {{minutes: {minutes:g}, batch_size: {batch}, ema_decay: 0.99}}",
    ]


def _propose_flips(channels: int, evidence: Evidence) -> tuple[str, list[str]]:
    """The settings of flips and turns, and comments on the reason."""
    flips, comments = "flip_horizontal: true, ", []
    offsets = [offset for offset in (evidence.offset_y, evidence.offset_x) if offset is not None]
    if evidence.sided is not None:
        flips = ""
        comments.append(f"# Left and right differ: {evidence.sided}.")
    elif evidence.offset_x is not None:
        flips = ""
    if evidence.upright is not None:
        comments.append(f"# Up and down differ: {evidence.upright}.")
    elif offsets:
        comments += [
            f"# The masks lie {' and '.join(offsets)}; a network",
            "# learns this only from images that are not flipped or turned in that direction.",
        ]
        flips += (
            "elastic_std: 3, " if evidence.offset_y else "flip_vertical: true, elastic_std: 3, "
        )
    elif evidence.sided is None and (evidence.count >= 10 or channels == 1):
        flips += "flip_vertical: true, quarter_turns: true, elastic_std: 3, "
        comments.append(
            "# Halves of the images do not differ, so they are taken to have no up and down."
        )
    else:
        comments.append("# If the images have no up and down, add flip_vertical and quarter_turns.")
    return flips, comments
