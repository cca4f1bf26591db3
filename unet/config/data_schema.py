"""The settings of the data, and the types and marks that all settings share."""

from dataclasses import dataclass
from enum import Flag, auto
from typing import Annotated, Literal, TypeVar

from unet.config.parsing import Range

Count = Annotated[int, Range(minimum=0)]
Positive = Annotated[int, Range(minimum=1)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
NotNegative = Annotated[float, Range(minimum=0)]
AboveZero = Annotated[float, Range(above=0)]
Byte = Annotated[int, Range(minimum=0, maximum=255)]
GreyValue = Annotated[int, Range(minimum=0, maximum=65535)]
Colour = tuple[Byte, Byte, Byte]
MaskValues = GreyValue | Colour | tuple[GreyValue, ...] | tuple[Colour, ...] | str
Magnification = Annotated[float, Range(minimum=0.1, maximum=10)]
Size = tuple[Positive, Positive]
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]


class MayChange(Flag):
    """When a setting may differ from the one that the training began with."""

    ON_RESUME = auto()  # when a run is resumed: it does not change what is computed
    IN_USE = auto()  # when a trained model is loaded to evaluate, predict or export


# Marks of the settings, or whole sections, that may change; all others may not.
T = TypeVar("T")
OnResume = Annotated[T, MayChange.ON_RESUME]
InUse = Annotated[T, MayChange.IN_USE]
Anytime = Annotated[T, MayChange.ON_RESUME | MayChange.IN_USE]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Which pairs are kept from training and scored.

    Give exactly one of fraction, stems, split, folds with fold, or images with masks.
    """

    # Fraction of the pairs, chosen at random; the same fraction of the pairs with each combination
    # of classes.
    fraction: Annotated[float, Range(above=0, maximum=0.9)] | None = None
    # Stems of the pairs (see data.images), or a file in data.root with one stem per line.
    stems: tuple[str, ...] | str | None = None
    # Folder or pattern of separate validation images, as data.images.
    images: Anytime[str | None] = None
    # Their masks, as data.masks.
    masks: Anytime[str | dict[str, str] | None] = None
    # Their label images, as data.instances.
    instances: Anytime[str | None] = None
    # Value of the column split in data.csv; rows with train in it are trained on.
    split: str | None = None
    # Divide the pairs at random into this many equal folds and validate on one of them.
    # `unet train --folds all` trains once for each fold.
    folds: Annotated[int, Range(minimum=2)] | None = None
    # The fold to validate on, 0 to folds - 1. null is 0.
    fold: Count | None = None
    # Regular expression for fraction and folds. Pairs in whose stems it matches the same text (its
    # first group, if it has one) are not separated, such as all images of one patient.
    group: str | None = None
    # Seed of the random choice.
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class FixedNormalizationConfig:
    """Mean and standard deviation of each channel, for images scaled to [0, 1].

    Floating-point images are not scaled.
    """

    # One number per channel.
    mean: tuple[float, ...]
    # One number per channel.
    std: tuple[AboveZero, ...]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Image and mask files, and the meaning of the mask values."""

    # Folder that the other paths are relative to. It is relative to the current directory.
    root: Anytime[str]
    # A folder, with all its subfolders, or a pattern such as scans/{stem}.tif: {stem} is the text
    # that the names of image and mask have in common, * is any other text within a name.
    images: Anytime[str] = "images"
    # Folder or pattern of the masks, such as scans/{stem}_mask.tif; or a mapping from class names
    # to patterns, with one binary mask for each class except the first.
    masks: Anytime[str | dict[str, str]] = "masks"
    # Folder or pattern of label images (8, 16 or 32 bits: a number for each object, 0 between
    # them), for loss.border and `unet evaluate --instances`. null for none.
    instances: Anytime[str | None] = None
    # Instead of images: one pattern per channel, such as [dapi/{stem}.tif, gfp/{stem}.tif].
    channels: Anytime[tuple[str, ...] | None] = None
    # Instead of images and masks: a table with the columns image, mask and optionally split.
    csv: Anytime[str | None] = None
    # Read files as stacks: page i of an image file belongs to page i of its mask file.
    stacks: bool = False
    # Class name -> its value in the mask files: a grey value or palette index; several, as
    # [127, 128] or "1-3, 7"; a colour [R, G, B]; or a list of colours. The order is the class ids:
    # the first class is 0, the background. A list of {name: NAME, value: VALUE} is the same, and
    # keeps its order in tools that sort the keys of a mapping.
    classes: dict[str, MaskValues]
    # Mask values of pixels that are neither trained on nor scored.
    ignore: tuple[MaskValues, ...] = ()
    # Read a mask value that differs by at most this much from a known value as that value. Other
    # values are errors.
    tolerance: InUse[GreyValue] = 0
    # Mean and standard deviation that images are normalised with: those of the training images
    # (dataset), of each image (image), of each image without its darkest and brightest 0.5 %
    # (percentiles), or given numbers. auto takes the numbers that the weights of
    # train.encoder_weights or train.init_from were trained with, otherwise dataset.
    normalization: Literal["auto", "dataset", "image", "percentiles"] | FixedNormalizationConfig = (
        "auto"
    )
    # Leave out files that cannot be read, and report how many.
    skip_unreadable: bool = False
    # Size in GiB of the cache of decoded images, which all workers use.
    cache_gib: Anytime[NotNegative] = 2.0
    validation: ValidationConfig
    # Draw the quickstart data set into root if root does not exist.
    draw_quickstart: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How crops are chosen from the training images."""

    # Crops of each image per epoch.
    crops_per_image: Positive = 1
    # Fraction of the crops that are drawn around a pixel of a rare class, in images that have one.
    rare_fraction: Fraction = 0.0
    # Names of the rare classes.
    rare_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, the same for image and mask."""

    # (height, width) of the crops in pixels. With model.padding valid it includes the context, such
    # as [572, 572]. null for whole images.
    crop: Size | None = None
    # Smallest and largest magnification.
    scale: tuple[Magnification, Magnification] = (1.0, 1.0)
    # Mirror left and right in half of the samples.
    flip_horizontal: bool = False
    # Mirror top and bottom in half of the samples.
    flip_vertical: bool = False
    # Rotate by 0, 90, 180 or 270 degrees; without a crop only by 0 or 180.
    quarter_turns: bool = False
    # Largest rotation in degrees, in both directions.
    rotate: Annotated[float, Range(minimum=0, maximum=180)] = 0.0
    # Standard deviation of the elastic displacements in pixels. 0 for no deformation.
    elastic_std: NotNegative = 0.0
    # Largest distance in pixels between the displaced points. Half of the crop gives 3 x 3 points.
    elastic_spacing: Positive = 64
    # Largest change of brightness, up or down, in standard deviations of the normalised image.
    brightness: NotNegative = 0.0
    # Largest change of contrast, up or down, as a fraction.
    contrast: Fraction = 0.0
