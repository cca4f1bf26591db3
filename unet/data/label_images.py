"""Class ids without specks, and their objects numbered.

The first class is the background. An object is what hangs together of one class over the edges of
its pixels (4-connected). All of it needs scipy.
"""

from collections.abc import Sequence

import numpy as np

from unet.runtime.optional import import_extra


def clean(ids: np.ndarray, min_size: int = 0, keep_largest: bool = False) -> np.ndarray:
    """Make objects that are too small background: class ids (H, W) -> likewise.

    Args:
        ids: of classes.
        min_size: pixels that an object of any other class has at least.
        keep_largest: whether each class keeps only its largest object; of several as large the
            one that comes first.

    Raises:
        ValueError: if scipy is not installed.
    """
    cleaned = ids.copy()
    for i in _foreground(ids):
        objects = connected_components(ids == i)
        sizes = np.bincount(objects.ravel())
        sizes[0] = 0  # what is not of the class
        removed = sizes < min_size
        if keep_largest:
            removed |= np.arange(len(sizes)) != sizes.argmax()
        removed[0] = False
        cleaned[removed[objects]] = 0
    return cleaned


def number_objects(ids: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Number the objects of some classes from 1: int32 (H, W), 0 between them.

    First those of the first of these classes from top to bottom, then those of the next, and so on.

    Args:
        ids: of classes.
        classes: ids of those whose objects count; None for all but the background.

    Raises:
        ValueError: if scipy is not installed.
    """
    numbers = np.zeros(ids.shape, np.int32)
    for i in _foreground(ids) if classes is None else classes:
        objects = connected_components(ids == i)
        there = objects > 0
        numbers[there] = objects[there] + numbers.max()
    return numbers


def _foreground(ids: np.ndarray) -> list[int]:
    present: list[int] = np.unique(ids).tolist()
    return [i for i in present if i > 0]


def connected_components(mask: np.ndarray) -> np.ndarray:
    """Number the parts of a mask that hang together by edges of pixels: a label image, int32.

    Raises:
        ValueError: if scipy is not installed.
    """
    ndimage = import_extra("scipy.ndimage", "connected components")
    labels: np.ndarray = ndimage.label(mask)[0]
    return labels


def connected_parts(labels: np.ndarray) -> np.ndarray:
    """Number the parts of each object of a label image that hang together by edges of pixels.

    Raises:
        ValueError: if scipy is not installed.
    """
    # Pixels, and between them the edges that they share with one of the same object.
    height, width = labels.shape
    mesh = np.zeros((max(2 * height - 1, 0), max(2 * width - 1, 0)), bool)
    mesh[::2, ::2] = labels > 0
    mesh[1::2, ::2] = (labels[1:] == labels[:-1]) & (labels[1:] > 0)
    mesh[::2, 1::2] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    return connected_components(mesh)[::2, ::2]
