"""Transforms of the user: functions, torchvision's v2 and albumentations' Compose."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet.data.classes import IGNORE_INDEX

Transform = Callable[..., Any]
"""Called as transform(image=..., mask=...): image (H, W, C), mask (H, W) uint8 class ids.

It returns an image and a mask, as a pair or as a dict with these keys. A transform of
torchvision.transforms.v2 takes both as tv_tensors instead.
"""


def apply_transform(
    transform: Transform, image: np.ndarray, ids: np.ndarray, seed: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a transform to an image (C, H, W) and class ids (H, W), with random numbers of a seed.

    The result has the same types: uint8, uint16 or float32, and uint8.

    Raises:
        ValueError: if the transform returns something else.
    """
    with _seeded(seed):
        # Of albumentations, which has generators of its own.
        if (reseed := getattr(transform, "set_random_state", None)) is not None:
            reseed(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        if isinstance(transform, nn.Module):
            result = _apply_torchvision(transform, image, ids)
        else:
            result = transform(image=image.transpose(1, 2, 0).copy(), mask=ids.copy())
    if isinstance(result, Mapping) and {"image", "mask"} <= result.keys():
        result = result["image"], result["mask"]
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(
            f"transform: got a result of type {type(result).__name__}, expected an image and a "
            "mask, or a dict with these keys"
        )
    return _check_image(np.asarray(result[0]), image), _check_mask(
        np.asarray(result[1]), np.asarray(result[0]), num_classes
    )


def _apply_torchvision(
    transform: nn.Module, image: np.ndarray, ids: np.ndarray
) -> tuple[Tensor, Tensor]:
    from torchvision import tv_tensors  # slow to import, and most runs do not need it

    tensors = torch.from_numpy(image.copy()), torch.from_numpy(ids.copy())
    changed, mask = transform(tv_tensors.Image(tensors[0]), tv_tensors.Mask(tensors[1]))
    return changed.movedim(0, -1), mask


def _check_image(image: np.ndarray, before: np.ndarray) -> np.ndarray:
    channels = len(before)
    if image.ndim == 2 and channels == 1:
        image = image[:, :, None]
    if image.dtype == np.float64:
        image = image.astype(np.float32)
    if image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise ValueError(
            f"transform: got an image of shape {image.shape}, expected (H, W, {channels})"
        )
    if image.dtype not in (before.dtype, np.float32):
        raise ValueError(
            f"transform: got an image of {image.dtype}, expected {before.dtype} as before, or "
            "float32 from 0 to 1"
        )
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _check_mask(mask: np.ndarray, image: np.ndarray, num_classes: int) -> np.ndarray:
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"transform: got a mask of shape {mask.shape}, expected {image.shape[:2]}, the height "
            "and width of the image"
        )
    wrong = (mask < 0) | (mask >= num_classes) & (mask != IGNORE_INDEX)
    if wrong.any():
        raise ValueError(
            f"transform: got {mask[wrong][0]} in a mask, expected class ids from 0 to "
            f"{num_classes - 1}, or {IGNORE_INDEX} for ignored pixels"
        )
    return np.ascontiguousarray(mask, dtype=np.uint8)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global random numbers of Python, NumPy and torch in the block."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (transforms use it)
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # not those of CUDA
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
