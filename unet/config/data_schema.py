"""The settings of the data, and the types and marks used by all settings."""

from dataclasses import dataclass
from enum import Flag, auto
from typing import Annotated, Literal, TypeVar

from unet.config.parsing import Range, Words

# The upper bounds are far above every sensible value. They stop a typo before it fills the memory.
Count = Annotated[int, Range(minimum=0, maximum=1_000_000)]
Positive = Annotated[int, Range(minimum=1, maximum=1_000_000)]
UpTo1000 = Annotated[int, Range(minimum=1, maximum=1000)]
Samples = Annotated[int, Range(minimum=1, maximum=65_536)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
NotNegative = Annotated[float, Range(minimum=0, maximum=1_000_000)]
AboveZero = Annotated[float, Range(above=0, maximum=1_000_000)]
Byte = Annotated[int, Range(minimum=0, maximum=255)]
GreyValue = Annotated[int, Range(minimum=-(2**31), maximum=2**31 - 1)]
Colour = tuple[Byte, Byte, Byte]
MaskValues = Annotated[
    GreyValue | Colour | tuple[GreyValue, ...] | tuple[Colour, ...] | str,
    Words('a mask value, such as 255, several such as "1-3, 7", or a colour [R, G, B]'),
]
# A folder or pattern, or one for each of several places.
Places = Annotated[
    str | Annotated[tuple[str, ...], Range(minimum=1)],
    Words("a folder or pattern, or several such as [first/images, second/images]"),
]
MaskPlaces = Annotated[
    str | Annotated[tuple[str, ...], Range(minimum=1)] | dict[str, Places],
    Words("a folder or pattern, several, or one for each class except the first"),
]
Magnification = Annotated[float, Range(minimum=0.1, maximum=10)]
Size = tuple[Annotated[int, Range(1, 16_384)], Annotated[int, Range(1, 16_384)]]
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]


class MayChange(Flag):
    """When a setting may differ from its value at the start of training."""

    ON_RESUME = auto()  # when a run is resumed: the setting does not affect the result
    IN_USE = auto()  # when a trained model is loaded to evaluate, predict or export


# Marks of the settings, or whole sections, that may change; all others may not.
T = TypeVar("T")
OnResume = Annotated[T, MayChange.ON_RESUME]
InUse = Annotated[T, MayChange.IN_USE]
Anytime = Annotated[T, MayChange.ON_RESUME | MayChange.IN_USE]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The pairs that are scored instead of trained on.

    Give exactly one of fraction, stems, split, folds with fold, images with masks, or none.
    """

    # Train on all pairs and score none; best.pt is the last model. `validation: none` is the same.
    none: bool = False

    # Fraction of the pairs, chosen at random and stratified by the combination of classes in each
    # mask.
    fraction: Annotated[float, Range(above=0, maximum=0.9)] | None = None
    # Stems of the pairs (see data.images), or a file in data.root with one stem per line.
    stems: tuple[str, ...] | str | None = None
    # Folder or pattern of separate validation images, in the form of data.images.
    images: Anytime[Places | None] = None
    # Masks of the separate validation images, in the form of data.masks.
    masks: Anytime[MaskPlaces | None] = None
    # Label images of the separate validation images, in the form of data.instances.
    instances: Anytime[Places | None] = None
    # Value in the column split of data.csv that marks validation pairs. Rows with the value train
    # are trained on.
    split: str | None = None
    # Divide the pairs at random into this many equal folds and validate on one of them.
    # `unet train --folds all` trains once for each fold.
    folds: Annotated[int, Range(minimum=2, maximum=1000)] | None = None
    # Fold to validate on, from 0 to folds - 1.
    fold: Count | None = None
    # Regular expression for fraction and folds. Pairs stay together if it matches the same text in
    # their stems (in its first group, if it has one), for example all images of one patient.
    group: str | None = None
    # Seed of the random choice.
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class FixedNormalizationConfig:
    """Mean and standard deviation of each channel, for images scaled to [0, 1].

    Floating-point images are not scaled.
    """

    # One number per channel.
    mean: tuple[Annotated[float, Range(-1e9, 1e9)], ...]
    # One number per channel.
    std: tuple[Annotated[float, Range(above=0, maximum=1e9)], ...]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Image and mask files, and the meaning of the mask values."""

    # Folder of the data set, relative to the current directory. The other paths are relative to it.
    root: Annotated[Anytime[str], Words("a folder, such as data/mine")]
    # Folder of the images, including all subfolders, or a pattern such as scans/{stem}.tif. {stem}
    # is the text that the names of image and mask have in common, {case} the folders that they
    # have in common, as in "{case}/scans/{stem}"; * is any other text in a name. Several places are
    # a list, such as [first/images, second/images], with a list of as many places in masks.
    images: Anytime[Places] = "images"
    # Folder or pattern of the masks, such as scans/{stem}_mask.tif, or a mapping from class names
    # to patterns, with one binary mask for each class except the first.
    masks: Anytime[MaskPlaces] = "masks"
    # Folder or pattern of label images for loss.border and `unet evaluate --instances`. Label
    # images have 8, 16 or 32 bits, a number for each object, and 0 elsewhere.
    instances: Anytime[Places | None] = None
    # Replaces images: one pattern per channel, such as [dapi/{stem}.tif, gfp/{stem}.tif].
    channels: Anytime[tuple[str, ...] | None] = None
    # Replaces images and masks: a table with the columns image, mask and, optionally, split.
    csv: Anytime[str | None] = None
    # Patterns of files to leave out, such as ["*legend*", "docs/*"], matched against paths in
    # data.root and against names; * is any text. `unet check` prints their number.
    exclude: Anytime[tuple[str, ...]] = ()
    # Read files as stacks: page i of an image file belongs to page i of its mask file.
    stacks: bool = False
    # A letter for each axis of TIFF and NumPy files with more axes than height and width, such as
    # CYX: Y and X, C for channels, Z or T for pages. null for the axes that the file names.
    axes: InUse[str | None] = None
    # Value of missing pixels, in addition to the one that a file declares. Missing pixels have the
    # mean of the training images, and are neither trained on nor scored. NaN is always missing.
    nodata: InUse[float | None] = None
    # Turn images and masks as their EXIF orientation says (apply), or leave them (ignore).
    exif: InUse[Literal["apply", "ignore"]] = "apply"
    # Resize masks to the size of their images, by the nearest pixel, where the aspect ratios agree.
    # Otherwise, another size is an error. `unet check` prints the number of resized masks.
    resize_masks: InUse[bool] = False
    # Files that claim more pixels are not read. Images that are predicted in windows may be larger.
    max_pixels: Anytime[Annotated[int, Range(minimum=1, maximum=10**12)]] = 250_000_000
    # Resize training images (by area averages) and masks (to the nearest pixel) by this factor.
    # Prediction resizes images in the same way, and its masks have the size of the image.
    scale: Annotated[float, Range(minimum=0.01, maximum=1)] = 1.0
    # Mapping from class names to values in the mask files. A value is a grey value (-1 and others
    # of 32-bit integers included) or palette index, several of them such as [127, 128] or "1-3, 7",
    # a colour [R, G, B] or a list of colours. The order sets the class ids: the first class has id
    # 0 and is the background. You can also write a list of {name: NAME, value: VALUE}, which keeps
    # its order in tools that sort the keys of a mapping.
    classes: Annotated[
        dict[str, MaskValues],
        Words("different class names with their mask values, such as {background: 0, cell: 255}"),
    ]
    # New names for classes of a trained model, such as {cell: nucleus}. null to keep the names. The
    # mask values and the number of classes cannot change.
    names: InUse[dict[str, str] | None] = None
    # Colours [R, G, B] of classes in pictures, such as {cell: [230, 0, 0]}, by their names in
    # classes. null for the colours of the masks, or of a palette.
    colours: Anytime[dict[str, Colour] | None] = None
    # Mask values of pixels that are neither trained on nor scored.
    ignore: tuple[MaskValues, ...] = ()
    # Folder of masks of regions to ignore, such as the disputed/ of `unet review`, relative to the
    # current directory. Pixels that are not 0 in its STEM.png are neither trained on nor scored.
    # Images without such a file are used whole.
    ignore_regions: InUse[str | None] = None
    # Maximum difference between a mask value and the nearest known value. Mask values within this
    # distance are read as the known value; other values are errors.
    tolerance: InUse[Annotated[int, Range(minimum=0, maximum=65535)]] = 0
    # Mean and standard deviation for the normalization of images: those of the training images
    # (dataset), of each image (image), of each image after its darkest and brightest 0.5 % are
    # clipped (percentiles), or given numbers. auto uses the normalization that the weights of
    # train.encoder_weights or train.init_from were trained with, otherwise dataset.
    normalization: Literal["auto", "dataset", "image", "percentiles"] | FixedNormalizationConfig = (
        "auto"
    )
    # Skip files that cannot be read, and report their number.
    skip_unreadable: bool = False
    # Leave out images without a mask, and report their number. Otherwise, they are errors.
    skip_unlabelled: bool = False
    # Maximum size in GiB of the cache of decoded images, which all workers use.
    cache_gib: Anytime[NotNegative] = 2.0
    validation: Annotated[
        ValidationConfig, Words("a choice of validation images, such as {fraction: 0.2}")
    ]
    # Draw the quickstart data set into root if root does not exist.
    draw_quickstart: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The choice of crops from the training images."""

    # Number of crops per image and epoch.
    crops_per_image: Annotated[int, Range(minimum=1, maximum=10_000)] = 1
    # Fraction of the crops that are chosen around a pixel of a rare class, if the image has one.
    rare_fraction: Fraction = 0.0
    # Names of the rare classes.
    rare_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, the same for image and mask."""

    # (height, width) of the crops in pixels. With model.padding valid, the size includes the
    # context, such as [572, 572]. null for whole images.
    crop: Size | None = None
    # Minimum and maximum magnification.
    scale: tuple[Magnification, Magnification] = (1.0, 1.0)
    # Mirror half of the samples left to right.
    flip_horizontal: bool = False
    # Mirror half of the samples top to bottom.
    flip_vertical: bool = False
    # Rotate by 0, 90, 180 or 270 degrees. Without a crop, rotate only by 0 or 180 degrees.
    quarter_turns: bool = False
    # Maximum rotation in degrees, in both directions.
    rotate: Annotated[float, Range(minimum=0, maximum=180)] = 0.0
    # Standard deviation of the elastic displacements in pixels. 0 for no deformation.
    elastic_std: Annotated[float, Range(minimum=0, maximum=1000)] = 0.0
    # Maximum distance between the displaced points in pixels. Half of the crop gives 3 x 3 points.
    elastic_spacing: Positive = 64
    # Maximum increase or decrease of the brightness, in standard deviations of the normalised
    # image.
    brightness: Annotated[float, Range(minimum=0, maximum=100)] = 0.0
    # Maximum increase or decrease of the contrast, as a fraction.
    contrast: Fraction = 0.0
    # Maximum change of gamma: values between the darkest and the brightest of the crop are raised
    # to a power from 1 / (1 + gamma) to 1 + gamma.
    gamma: Annotated[float, Range(minimum=0, maximum=10)] = 0.0
    # Maximum change of the brightness and contrast of each channel by itself, such as the colour of
    # a stain, in standard deviations and as a fraction.
    color: Fraction = 0.0
    # Maximum standard deviation of a Gaussian blur in pixels.
    blur: Annotated[float, Range(minimum=0, maximum=20)] = 0.0
    # Maximum standard deviation of Gaussian noise, in standard deviations of the normalised image.
    noise: Annotated[float, Range(minimum=0, maximum=10)] = 0.0
    # Lowest quality of a JPEG compression, from 1 to 100. null for none.
    jpeg: Annotated[int, Range(minimum=1, maximum=100)] | None = None
