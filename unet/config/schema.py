"""The settings of a run: what a YAML file may say.

The dataclasses have the shape and the order of the file.
"""

from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Annotated, Literal, TypeVar

from unet.config.parsing import Range
from unet.models.encoder_specs import Encoder
from unet.models.receptive_field import Geometry, unet_geometry

Positive = Annotated[int, Range(minimum=1)]
Fraction = Annotated[float, Range(minimum=0, maximum=1)]
NotNegative = Annotated[float, Range(minimum=0)]
Byte = Annotated[int, Range(minimum=0, maximum=255)]
MaskValues = (
    Annotated[int, Range(minimum=0, maximum=65535)]
    | tuple[Byte, Byte, Byte]
    | tuple[Annotated[int, Range(minimum=0, maximum=65535)], ...]
    | tuple[tuple[Byte, Byte, Byte], ...]
    | str
)
Size = tuple[Positive, Positive]
Seed = Annotated[int, Range(minimum=0, maximum=2**32 - 1)]


class MayChange(Flag):
    """When a setting may differ from the one that the training began with."""

    ON_RESUME = auto()
    """When a run is resumed: the setting does not change what is computed."""
    IN_USE = auto()
    """When a trained model is loaded to evaluate, predict or export."""


# Marks of the settings, or whole sections, that may change; all others may not.
T = TypeVar("T")
OnResume = Annotated[T, MayChange.ON_RESUME]
InUse = Annotated[T, MayChange.IN_USE]
Anytime = Annotated[T, MayChange.ON_RESUME | MayChange.IN_USE]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Which pairs are kept from training, to be scored. One way of the five, and perhaps group."""

    # Share of the pairs, drawn by lot, of every combination of classes alike.
    fraction: Annotated[float, Range(above=0, maximum=0.9)] | None = None
    # The pairs of these stems (see data.images), or a file of data.root with one on each line.
    stems: tuple[str, ...] | str | None = None
    # Folders or patterns of their own, as data.images, data.masks and data.instances.
    images: Anytime[str | None] = None
    masks: Anytime[str | dict[str, str] | None] = None
    instances: Anytime[str | None] = None
    # The rows of data.csv whose column split says this; those that say train are trained on.
    split: str | None = None
    # One of so many equal parts, drawn as with fraction: fold 0 to folds - 1; unet train --folds
    # all takes each in turn.
    folds: Annotated[int, Range(minimum=2)] | None = None
    fold: Annotated[int, Range(minimum=0)] | None = None
    # Regular expression: stems in which it finds the same (its first group, if it has one), such
    # as one patient's, stay on one side of fraction or folds.
    group: str | None = None
    # Of the lot.
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class FixedNormalizationConfig:
    """Numbers for each channel, of images scaled from 0 to 1 (floats as they are)."""

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Range(above=0)], ...]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Image and mask files, and what the mask values mean."""

    # Folder that the other paths are relative to; itself relative to the current directory.
    root: Anytime[str]
    # A folder, with all that lies in it, or a pattern: {stem} stands for what image and mask have
    # in common, * for anything else within a name. Such as scans/{stem}.tif.
    images: Anytime[str] = "images"
    # Likewise, such as scans/{stem}_mask.tif; or one for each class but the first, by its name.
    masks: Anytime[str | dict[str, str]] = "masks"
    # Likewise, label images: a number for each object (of 8, 16 or 32 bits), 0 for none. For
    # loss.border and evaluate --instances; null for none.
    instances: Anytime[str | None] = None
    # Instead of images: a pattern for each channel, such as [dapi/{stem}.tif, gfp/{stem}.tif].
    channels: Anytime[tuple[str, ...] | None] = None
    # Instead of images and masks: a table with the columns image, mask and, if need be, split.
    csv: Anytime[str | None] = None
    # Whether files are stacks of which page i of an image belongs to page i of its mask.
    stacks: bool = False
    # Name -> what means it in the mask files: a grey value or index; several, as [127, 128], or
    # in text with ranges, as "1-3, 7"; a colour [R, G, B]; or a list of colours.
    classes: dict[str, MaskValues]
    # Mask values that are neither learned nor scored.
    ignore: tuple[MaskValues, ...] = ()
    # Mask values this close to one of the above are taken for the nearest; others are errors.
    tolerance: InUse[Annotated[int, Range(minimum=0, maximum=65535)]] = 0
    # From the training images together (dataset), from each image (image), the same without its
    # darkest and brightest 0.5 % (percentiles), or by given numbers. auto is what the weights of
    # train.encoder_weights or train.init_from were trained with; else dataset.
    normalization: Literal["auto", "dataset", "image", "percentiles"] | FixedNormalizationConfig = (
        "auto"
    )
    # Leave out files that cannot be read, and say how many.
    skip_unreadable: bool = False
    # GiB of decoded images that are kept in memory, shared by all workers.
    cache_gib: Anytime[NotNegative] = 2.0
    validation: ValidationConfig
    # Draw the quickstart data into root if root is not there.
    draw_quickstart: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which crops are drawn."""

    # Crops of each image in an epoch.
    crops_per_image: Positive = 1
    # Share of the crops that are drawn around a pixel of a class in rare, where the image has one.
    rare_fraction: Fraction = 0.0
    # Names of classes.
    rare_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, image and mask alike."""

    # (height, width) in pixels that samples are cropped to, with model.padding valid context
    # included, such as [572, 572]; null for whole images.
    crop: Size | None = None
    # Smallest and largest magnification.
    scale: tuple[
        Annotated[float, Range(minimum=0.1, maximum=10)],
        Annotated[float, Range(minimum=0.1, maximum=10)],
    ] = (1.0, 1.0)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    # Turn by 0, 90, 180 or 270 degrees (without a crop, by 0 or 180).
    quarter_turns: bool = False
    # Largest rotation to either side in degrees.
    rotate: Annotated[float, Range(minimum=0, maximum=180)] = 0.0
    # Standard deviation of the elastic displacements in pixels; 0 for none.
    elastic_std: NotNegative = 0.0
    # Pixels between the points that are displaced, at most: half of the crop for 3 x 3 of them.
    elastic_spacing: Positive = 64
    # Largest shift of brightness to either side, in standard deviations of the training images.
    brightness: NotNegative = 0.0
    # Largest change of contrast to either side, as a fraction.
    contrast: Fraction = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The U-Net; it has as many outputs as there are classes."""

    # 1 for grey images, 3 for colour.
    in_channels: Positive = 3
    # Channels of each level, from the full image down. With an encoder of torchvision those of the
    # decoder, one for each level but the deepest: five, of convnext four.
    widths: tuple[Positive, ...] = (64, 128, 256, 512, 1024)
    # Of an encoder of torchvision, which has its own, only those of stem and decoder.
    norm: Literal["batch", "group", "instance", "none"] = "batch"
    downsampling: Literal["max_pool", "conv"] = "max_pool"
    # How the decoder enlarges: conv_transpose, every pixel times a kernel; or bilinear, a 1 x 1
    # convolution and interpolation, to compare with.
    upsampling: Literal["conv_transpose", "bilinear"] = "conv_transpose"
    # Of the 3 x 3 convolutions: same, by zeros; or valid, none, as in the paper. Then crops and
    # tiles have a context, 92 pixels on each side with five levels, that is seen, but neither
    # learned nor predicted, and images are mirrored at their borders.
    padding: Literal["same", "valid"] = "same"
    # Probability that a value after each of the two deepest levels is left out in training.
    dropout: Annotated[float, Range(minimum=0, maximum=0.95)] = 0.0
    # none for the U-Net's own, or a classification network of torchvision; its weights are random
    # without train.encoder_weights. It has its own downsampling, is padded, and takes no dropout.
    encoder: Encoder = "none"

    @property
    def geometry(self) -> Geometry:
        """Sizes in pixels that follow from the network's layers."""
        return unet_geometry(
            self.encoder, len(self.widths), self.norm, self.upsampling, self.padding
        )


@dataclass(frozen=True, kw_only=True)
class BorderConfig:
    """Extra weight of the background between cells that are close together.

    The U-Net paper's: a pixel outside of all cells, d1 and d2 pixels from the nearest and from the
    second nearest, weighs weight * exp(-(d1 + d2)^2 / (2 sigma^2)) more in the cross-entropy. Where
    cells of one class touch, what is learned has a gap: their pixels beside another cell are of the
    first class. Scores are by the masks, without that gap.
    """

    weight: Annotated[float, Range(above=0, maximum=10_000)] = 10.0
    # In pixels.
    sigma: Annotated[float, Range(above=0, maximum=1000)] = 5.0
    # Names of the classes whose parts are cells, each that hangs together over the edges of its
    # pixels; none for the cells of data.instances.
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weighted sum of cross-entropy and soft Dice loss."""

    cross_entropy: NotNegative = 1.0
    dice: NotNegative = 1.0
    # One number for each class, in the order of data.classes; balanced for the inverse of each
    # class's share of the training pixels; null for all equal.
    class_weights: tuple[NotNegative, ...] | Literal["balanced"] | None = None
    # {} for the paper's, between the cells of data.instances; null for none.
    border: BorderConfig | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow their gradients."""

    name: Literal["adamw", "sgd"] = "adamw"
    # The highest learning rate.
    lr: Annotated[float, Range(above=0)] = 1e-3
    # That of an encoder of torchvision, on the same schedule; null for lr.
    encoder_lr: Annotated[float, Range(above=0)] | None = None
    weight_decay: NotNegative = 1e-2
    # sgd's momentum (Nesterov's), adamw's beta1.
    momentum: Annotated[float, Range(above=0, maximum=0.9999)] = 0.9


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes from step to step.

    cosine and polynomial fall to 0 at the last step; one_cycle rises to the highest over the first
    three tenths, then falls; plateau falls each time that the score has stopped to improve.
    """

    name: Literal["cosine", "polynomial", "one_cycle", "constant", "plateau"] = "cosine"
    # Epochs over which the learning rate first rises from 0; not with one_cycle, which does so.
    warmup_epochs: NotNegative = 0.0
    # Of polynomial decay: (1 - progress) ** power.
    power: Annotated[float, Range(above=0)] | None = None
    # Of plateau: validations in a row without a better score before it falls, and by what factor.
    patience: Annotated[int, Range(minimum=0)] | None = None
    factor: Annotated[float, Range(above=0, maximum=0.99)] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    # Epochs of the run, each about a pass over the training samples.
    epochs: Positive
    # Updates of the weights in an epoch; null for as many as a pass over the samples takes, rounded
    # up. Every batch is full: a pass ends, and the next begins, within a batch and within an epoch.
    steps_per_epoch: Positive | None = None
    # Samples in a batch, all processes together.
    batch_size: Positive = 4
    # Batches whose gradients are averaged for one update of the weights.
    accumulate: Positive = 1
    # Gradients longer than this, all weights together, are shortened to it; null for never.
    clip_grad_norm: Annotated[float, Range(above=0)] | None = None
    # Decay of an exponential moving average of the weights, mostly 0.99 to 0.9999: each step takes
    # so much of the average before (less in the first steps). The averaged weights are what is
    # scored, saved and predicted with, the raw ones stand beside them. null for none.
    ema_decay: Annotated[float, Range(above=0, maximum=0.99999)] | None = None
    # Epochs between two validations; the last epoch is always validated.
    validate_every: Positive = 1
    # The score that decides which weights are best.pt: mean_iou, mean_dice, pixel_accuracy or
    # another one of metrics.csv, such as iou_NAME or dice_NAME of the class NAME. Higher is better.
    monitor: str = "mean_iou"
    # End the run after this many validations in a row without a better score; null for never.
    patience: Positive | None = None
    # Validation images drawn into previews/ at each validation.
    previews: OnResume[Annotated[int, Range(minimum=0)]] = 4
    # last.pt is written at each validation, and when it is this old, in minutes,
    save_every_minutes: OnResume[NotNegative] = 10.0
    # and every so many steps; null for not.
    save_every_steps: OnResume[Positive | None] = None
    # Of the first weights, the order of samples and the augmentation.
    seed: Seed = 0
    # So many runs, with seed, seed + 1, ...
    seeds: Positive = 1
    # Weights that a new run begins with: a checkpoint, or a state dict of Pytorch-UNet.
    init_from: str | None = None
    # Those of model.encoder: DEFAULT for torchvision's of ImageNet, which are downloaded once, or a
    # file with a state dict of torchvision's network. null for random ones.
    encoder_weights: str | None = None
    # Epochs in which the encoder does not learn, nor its batch norm count, before it does.
    freeze_encoder_epochs: Annotated[int, Range(minimum=0)] = 0
    # auto, cpu, cuda or cuda:N. auto takes CUDA where there is one.
    device: Anytime[str] = "auto"
    # auto takes bfloat16 (on old GPUs float16) on CUDA, where it is faster, else float32; on a CPU
    # with instructions for it (AVX512-BF16, AMX) bfloat16 may be worth a try.
    precision: Anytime[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    # Keep the channels of a pixel side by side in memory, which is mostly faster.
    channels_last: bool = True
    # Let torch.compile make one program of the network: slower to start, then mostly faster.
    compile: bool = False
    # Keep what enters each level and compute the rest again in the backward pass: less memory.
    activation_checkpointing: bool = False
    # Let CUDA use nothing whose result changes from run to run; the CPU never does.
    deterministic: bool = False
    # Let batch norm see the batches of all processes as one. For several GPUs.
    sync_batch_norm: bool = False
    # Processes that load samples, for each that trains; 0 loads them between the steps.
    num_workers: Anytime[Annotated[int, Range(minimum=0)]] = 2


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How validation, evaluation and prediction cut large images."""

    # (height, width) in pixels above which an image is cut into tiles of this size or less; with
    # model.padding valid context included.
    size: Size = (1024, 1024)
    # Pixels that neighbouring tiles share at least. null for twice as far as the network sees, 192
    # with five levels: with so many, the result is that of the whole image to rounding. Not with
    # norm group or instance, which take the statistics of a tile for those of the image: there
    # tiles blend over the overlap. With model.padding valid logits overlap, and null is 4, which is
    # enough but for these norms. Encoders of torchvision mostly see further than a tile: for them
    # null is a quarter of size, and with less than twice as far as they see, tiles blend.
    overlap: Annotated[int, Range(minimum=0)] | None = None
    # Tiles of an image that go through the network together.
    batch_size: Positive = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    # Name of the run and of its folder. By default the name of the config file.
    name: OnResume[str]
    # Folder of all runs: results go to <runs>/<name>. Relative to the current directory.
    runs: OnResume[str] = "runs"
    data: DataConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig
    tiling: InUse[TilingConfig] = field(default_factory=TilingConfig)


def tile_overlap(config: Config) -> int:
    """Return the pixels that neighbouring tiles share at least."""
    if config.tiling.overlap is not None:
        return config.tiling.overlap
    if config.model.encoder != "none":
        return min(config.tiling.size) // 4
    geometry = config.model.geometry
    return geometry.exact_overlap or 2 * geometry.margin


def tiles_blend(config: Config) -> bool:
    """Whether tiles fade into each other; otherwise they meet in the middle of what they share."""
    exact = config.model.geometry.exact_overlap
    return exact is None or (config.model.encoder != "none" and tile_overlap(config) < exact)
