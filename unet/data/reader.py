"""A pair of files -> image, class ids and pixel weights."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from unet.data.border_weights import Border, border_weights, separate_cells
from unet.data.classes import IGNORE_INDEX, ClassMap
from unet.data.image_io import missing_pixels, read_header, read_image, to_float
from unet.data.image_types import DEFAULT_OPTIONS, ReadOptions, Window
from unet.data.label_images import number_objects
from unet.data.masks import read_class_masks, read_label_image, read_mask, read_regions
from unet.data.pairing import Pair
from unet.data.resize import resize_area, resize_nearest, scaled_size
from unet.runtime.optional import is_installed

# To read a smaller image whole takes no longer than to open its file for windows.
_SMALLEST_IN_WINDOWS = 1024 * 1024  # pixels


@dataclass(frozen=True, kw_only=True)
class PairReader:
    """Reads the pairs of a data set.

    All methods raise FileNotFoundError if a file is missing, and ValueError if it cannot be read
    or does not fit the others.
    """

    classes: ClassMap
    in_channels: int
    mask_per_class: bool = False  # each class except the first has its own binary mask
    border: Border | None = None  # None for no weights
    options: ReadOptions = DEFAULT_OPTIONS
    scale: float = 1.0  # of images and masks; scaled images are float32

    def __call__(self, pair: Pair) -> tuple[np.ndarray, ...]:
        """Read an image and class ids; with a border, separate cells, and add weights (H, W)."""
        image, ids = self.read(pair)
        if self.border is None:
            return image, ids
        ids, cells = separate_cells(ids, self.cells(pair, ids))
        weights = border_weights(cells, self.border.weight, self.border.sigma)
        return image, ids, weights.astype(np.float16)  # three digits are enough

    def window_size(self, pair: Pair) -> tuple[int, int] | None:
        """Return the size of a large image whose files are best read in windows, otherwise None."""
        if (
            self.scale != 1
            or self.border is not None
            or pair.regions is not None
            or not is_installed("imagecodecs", "tifffile")
        ):
            return None
        sizes = set()
        for path in (*pair.images, *pair.masks):
            header = read_header(path, replace(self.options, windows=True))
            is_large = header.size[0] * header.size[1] >= _SMALLEST_IN_WINDOWS
            has_windows = is_large and header.has_windows and header.orientation == 1
            sizes.add(header.size if has_windows else None)
        return sizes.pop() if len(sizes) == 1 else None

    def read(self, pair: Pair, window: Window | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (C, H, W) as `read_image`, and class ids (H, W) uint8.

        Missing pixels of the image have the id `IGNORE_INDEX`. With a scale, the image is resized
        by area averages and the ids by the nearest pixel. A window needs a `window_size`.
        """
        image, ids = self._read_unscaled(pair, window)
        if self.scale == 1:
            return image, ids
        size = scaled_size((ids.shape[0], ids.shape[1]), self.scale)
        resized = resize_area(torch.from_numpy(to_float(image)), size)
        return resized.numpy(), resize_nearest(ids, size)

    def _read_unscaled(self, pair: Pair, window: Window | None) -> tuple[np.ndarray, np.ndarray]:
        image, ids = self._read_pair(pair, window)
        if pair.regions is not None:
            regions = read_regions(pair.regions, (ids.shape[0], ids.shape[1]), self.options)
            ids[regions] = IGNORE_INDEX
        return image, ids

    def _read_pair(self, pair: Pair, window: Window | None) -> tuple[np.ndarray, np.ndarray]:
        options = replace(self.options, windows=window is not None)
        image = read_image(pair.images, self.in_channels, pair.page, options, window)
        size, classes = (image.shape[1], image.shape[2]), self.classes
        missing = missing_pixels(image)
        if self.mask_per_class:
            names, tolerance = classes.names[1:], classes.tolerance
            ids = read_class_masks(pair.masks, names, tolerance, size, pair.page, options, window)
            if missing is not None:
                ids[missing] = IGNORE_INDEX
            return image, ids
        mask = pair.masks[0]
        return image, read_mask(mask, classes, size, pair.page, options, missing, window)

    def cells(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """Number the cells (H, W), 0 between them: from the border's classes or a label image."""
        classes = self.border.classes if self.border else ()
        if classes or pair.instances is None:
            return number_objects(ids, classes)
        return self.label_image(pair, ids)

    def label_image(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """Read the label image (H, W) of a pair that has one; its objects must be in the mask."""
        assert pair.instances is not None
        size = ids.shape[0], ids.shape[1]
        expected = None if self.scale != 1 else size
        labels = read_label_image(pair.instances, expected, pair.page, self.options)
        if self.scale != 1:
            height, width = labels.shape
            if scaled_size((height, width), self.scale) != size:
                raise ValueError(
                    f"{pair.instances}: got a label image of {height} x {width} pixels (height x "
                    f"width), expected the size of {pair.images[0]}; correct the one that is wrong"
                )
            labels = resize_nearest(labels, size)
        background = ids[labels > 0] == 0
        if 2 * np.count_nonzero(background) > background.size:
            raise ValueError(
                f"{pair.instances}: got objects that are {background.mean():.0%} "
                f"{self.classes.names[0]} in {pair.masks[0]}, expected other classes; correct the "
                "pairs, or let data.classes start with the class that lies between objects"
            )
        numbered = labels[ids == 1] > 0
        if len(self.classes.names) == 2 and 2 * np.count_nonzero(numbered) < numbered.size:
            raise ValueError(
                f"{pair.instances}: numbers {numbered.mean():.0%} of the pixels of "
                f"{self.classes.names[1]} in {pair.masks[0]}, expected most; correct the pairs, or "
                "complete the label image"
            )
        return labels
