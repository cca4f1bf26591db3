"""Objects: 4-connected components of classes; all functions need scikit-image.

Class 0 is the background. Label images are (H, W), an integer for each object and 0 for none.
"""

from collections.abc import Sequence

import numpy as np

from unet.runtime.optional import import_extra


def clean(ids: np.ndarray, min_size: int = 0, keep_largest: bool = False) -> np.ndarray:
    """Make objects of fewer than `min_size` pixels background: class ids (H, W) -> class ids.

    With `keep_largest`, only the largest object of each class stays, of equals the topmost.
    """
    cleaned = ids.copy()
    for i in np.unique(ids[ids > 0]):
        objects = connected_components(ids == i)
        sizes = np.bincount(objects.ravel())
        sizes[0] = 0  # pixels of other classes
        removed = sizes < min_size
        if keep_largest:
            removed |= np.arange(len(sizes)) != sizes.argmax()
        removed[0] = False
        cleaned[removed[objects]] = 0
    return cleaned


def number_objects(ids: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Number the objects of some classes from 1: class ids (H, W) -> int32 (H, W), 0 elsewhere.

    The objects of the first class come first, from top to bottom, then those of the next. None
    stands for all classes but the background.
    """
    numbers = np.zeros(ids.shape, np.int32)
    for i in np.unique(ids[ids > 0]).tolist() if classes is None else classes:
        objects = connected_components(ids == i)
        inside = objects > 0
        numbers[inside] = objects[inside] + numbers.max()
    return numbers


def connected_components(labels: np.ndarray) -> np.ndarray:
    """Number the 4-connected components of a mask, or of each object of a label image: int32."""
    measure = import_extra("skimage.measure", "connected components")
    components: np.ndarray = measure.label(labels, connectivity=1)
    return components.astype(np.int32, copy=False)
