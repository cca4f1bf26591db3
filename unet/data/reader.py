"""Docstring to be written."""

from dataclasses import dataclass

import numpy as np

from unet.data.border_weights import Border, border_weights, part_cells
from unet.data.classes import ClassMap
from unet.data.image_io import read_image
from unet.data.label_images import number_objects
from unet.data.masks import read_class_masks, read_label_image, read_mask
from unet.data.pairing import Pair


@dataclass(frozen=True, kw_only=True)
class PairReader:
    """Reads pairs of one data set.

    Args:
        classes: of the masks.
        in_channels: C of the images.
        mask_per_class: whether a mask lies in several files, one for each class but the first.
        border: how the background between cells weighs more; None for not.
    """

    classes: ClassMap
    in_channels: int
    mask_per_class: bool = False
    border: Border | None = None

    def __call__(self, pair: Pair) -> tuple[np.ndarray, ...]:
        """Read what there is to learn.

        Returns:
            Image and class ids as `read` gives them; with a border, touching cells are parted, and
            the extra weights (H, W) come third: float16, as three digits are enough.

        Raises:
            FileNotFoundError, ValueError: as `read` and `cells`.
        """
        image, ids = self.read(pair)
        if self.border is None:
            return image, ids
        ids, cells = part_cells(ids, self.cells(pair, ids))
        weights = border_weights(cells, self.border.weight, self.border.sigma)
        return image, ids, weights.astype(np.float16)

    def read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Read an image (C, H, W), as `read_image` gives it, and class ids (H, W) uint8.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if one cannot be read, or their sizes differ.
        """
        image = read_image(pair.images, self.in_channels, pair.page)
        size = (image.shape[1], image.shape[2])
        names = self.classes.names
        if self.mask_per_class:
            return image, read_class_masks(
                pair.masks, names[1:], self.classes.tolerance, size, pair.page
            )
        return image, read_mask(pair.masks[0], self.classes, size, pair.page)

    def cells(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """Number the cells (H, W), 0 between them, by the border's classes or the label image.

        Raises:
            FileNotFoundError: if the label image is missing.
            ValueError: if it cannot be read or is not that of the mask; if scipy is not installed.
        """
        classes = self.border.classes if self.border else ()
        if classes or pair.instances is None:
            return number_objects(ids, classes)
        return self.label_image(pair, ids)

    def label_image(self, pair: Pair, ids: np.ndarray) -> np.ndarray:
        """Read the label image (H, W) of a pair that has one: as `cells`, whatever the border."""
        assert pair.instances is not None
        cells = read_label_image(pair.instances, (ids.shape[0], ids.shape[1]), pair.page)
        numbered = ids[cells > 0]
        if 2 * np.count_nonzero(numbered == 0) > numbered.size:
            raise ValueError(
                f"{pair.instances}: got cells that are {(numbered == 0).mean():.0%} "
                f"{self.classes.names[0]} in {pair.masks[0]}, expected other classes; pair them "
                "right, or let data.classes begin with the class that lies between cells"
            )
        inside = cells[ids == 1] > 0
        if len(self.classes.names) == 2 and 2 * np.count_nonzero(inside) < inside.size:
            raise ValueError(
                f"{pair.instances}: numbers {inside.mean():.0%} of the pixels of "
                f"{self.classes.names[1]} in {pair.masks[0]}, expected most; pair them right, or "
                "complete the label image"
            )
        return cells
