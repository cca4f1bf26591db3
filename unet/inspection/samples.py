"""A picture of training samples, as the files have them and as the network gets them."""

from pathlib import Path

import numpy as np
import torch

from unet.build import build_training_reader, build_transforms
from unet.config.schema import Config
from unet.data.image_io import to_float
from unet.inspection.check import CheckedData
from unet.visualize import draw_sample_sheet, save_picture


def draw_samples(config: Config, data: CheckedData, path: Path, count: int = 6) -> None:
    """Draw training images spread over all, each with its mask, then augmented three times.

    Border weights are drawn too, if the config has them.
    """
    reader, normalization = build_training_reader(config), data.normalization(config)
    augment = build_transforms(config)
    pairs = data.train_pairs
    count = min(count, len(pairs))
    rows: list[tuple[str, list[tuple[torch.Tensor, np.ndarray]]]] = []
    border_weights: list[np.ndarray] = []
    for pair in (pairs[i * len(pairs) // count] for i in range(count)):
        pixels, ids, *weights = reader(pair)
        image = torch.from_numpy(to_float(pixels))
        normalised = normalization(image)
        # Augmented images are drawn in the colours of the original.
        known = ~image.isnan().any(0)  # not nodata
        (mean, std), (normalised_mean, normalised_std) = (
            (one.mean(1)[:, None, None], one.std(1)[:, None, None] + 1e-12)
            for one in (image[:, known], normalised[:, known])
        )
        row = [(image, ids)]
        for epoch in range(3):
            rng = np.random.default_rng([epoch, len(rows)])
            changed, target = augment(normalised, torch.from_numpy(ids), rng)
            changed = (changed - normalised_mean) * (std / normalised_std) + mean
            row.append((changed, target.numpy()))
        rows.append((pair.stem, row))
        border_weights += weights
    names, colours = reader.classes.names, reader.classes.colours
    save_picture(path, draw_sample_sheet(rows, names, colours, border_weights))
