"""The quickstart data: noisy objects of three classes, drawn by the project itself."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 128
VALUES = {"background": 0, "disc": 80, "rod": 160, "ring": 240}


def draw_quickstart(root: Path, num_images: int = 60, seed: int = 0) -> None:
    """Draw images and masks into root/images and root/masks, the same for the same seed.

    Discs, rods and rings are equally bright and touch each other. The background is uneven, and in
    places as bright as they are: no pixel shows its class by itself.
    """
    if root.exists():
        raise FileExistsError(f"{root}: exists; remove it to draw it again")
    unfinished = root.with_name(f".{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in ("images", "masks"):
        (unfinished / folder).mkdir(parents=True)
    for i in range(num_images):
        image, mask = draw_pair(np.random.default_rng([seed, i]))
        Image.fromarray(image).save(unfinished / "images" / f"{i + 1}.png")
        Image.fromarray(mask).save(unfinished / "masks" / f"{i + 1}.png")
    unfinished.rename(root)


def draw_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image and its mask, each (SIZE, SIZE) uint8."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    phase_y, phase_x = rng.random(2) * 2 * np.pi
    slope_y, slope_x = rng.random(2) - 0.5
    light = 0.35 + 0.1 * np.sin(y / 19 + phase_y) * np.sin(x / 23 + phase_x)
    light += 0.3 * (slope_y * (y / SIZE - 0.5) + slope_x * (x / SIZE - 0.5))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    objects = np.zeros((SIZE, SIZE))
    shapes = ("disc", "rod", "ring")
    for _ in range(60):
        shape = shapes[int(rng.integers(len(shapes)))]
        centre_y, centre_x = rng.random(2) * SIZE
        angle, size, brightness = rng.random(3) * (np.pi, 1, 1)
        along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
        across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
        if shape == "rod":  # a capsule: the points near a segment
            radius = 4 + size
            outside = np.hypot(np.maximum(np.abs(along) - 9 - 4 * size, 0), across) - radius
        else:
            radius = 7 + 3 * size
            outside = np.hypot(along, across * (1 + 0.2 * brightness)) - radius
        inside, taken = outside < 0, mask > 0
        # Objects touch, and a little of one may be hidden by another.
        if (inside & taken).sum() > 0.1 * inside.sum():
            continue
        profile = 1 / (1 + np.exp(2 * outside))
        if shape == "ring":  # hollow: its middle is as dark as the background
            profile -= 1 / (1 + np.exp(2 * (outside + 0.55 * radius)))
        objects = np.maximum(objects, (0.18 + 0.12 * brightness) * profile)
        mask[inside & ~taken] = VALUES[shape]
    image = light + objects + 0.06 * rng.standard_normal((SIZE, SIZE))
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask
