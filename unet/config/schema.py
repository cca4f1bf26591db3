"""The settings of a run: what a YAML file may contain.

The dataclasses have the shape and the order of the file. The comment above a field documents the
setting: `scripts/write_configuration_docs.py` copies it into docs/configuration.md.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unet.config.data_schema import (
    AboveZero,
    Anytime,
    AugmentConfig,
    Count,
    DataConfig,
    InUse,
    NotNegative,
    OnResume,
    Positive,
    SamplingConfig,
    Seed,
    Size,
)
from unet.config.parsing import Range
from unet.models.encoder_specs import Encoder
from unet.models.receptive_field import Geometry, unet_geometry


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The U-Net. It has one output per class."""

    # Channels of the images: 1 for grey, 3 for colour.
    in_channels: Positive = 3
    # Channels of each level, from full resolution down. With an encoder from torchvision: channels
    # of the decoder's levels, one fewer than the encoder has (five; four for convnext).
    widths: tuple[Positive, ...] = (64, 128, 256, 512, 1024)
    # Normalization layers after the convolutions. An encoder from torchvision keeps its own.
    norm: Literal["batch", "group", "instance", "none"] = "batch"
    # Layer between two levels of the encoder: max pooling or a strided convolution.
    downsampling: Literal["max_pool", "conv"] = "max_pool"
    # Upsampling in the decoder: a transposed convolution, or a 1 x 1 convolution followed by
    # bilinear interpolation.
    upsampling: Literal["conv_transpose", "bilinear"] = "conv_transpose"
    # Padding of the 3 x 3 convolutions: same pads with zeros; valid does not pad, as in the paper.
    # With valid, crops and tiles include a context without predictions (92 pixels on each side with
    # five levels), and images are mirrored at their borders.
    padding: Literal["same", "valid"] = "same"
    # Dropout probability after each of the two deepest levels.
    dropout: Annotated[float, Range(minimum=0, maximum=0.95)] = 0.0
    # none for the U-Net's own encoder, or the name of a classification network in torchvision. Its
    # weights are random without train.encoder_weights. It has its own downsampling, is padded, and
    # takes no dropout.
    encoder: Encoder = "none"

    @property
    def geometry(self) -> Geometry:
        """Sizes in pixels that follow from the network's layers."""
        return unet_geometry(
            self.encoder, len(self.widths), self.norm, self.upsampling, self.padding
        )


@dataclass(frozen=True, kw_only=True)
class BorderConfig:
    """Extra weight in the cross-entropy for narrow gaps between cells, as in the U-Net paper.

    A pixel outside of all cells, d1 and d2 pixels from the two nearest cells, weighs
    `weight * exp(-(d1 + d2)^2 / (2 sigma^2))` more. Pixels of a cell that touch another cell are
    trained as the first class, so that the network learns a gap; scores use the unchanged masks.
    """

    # Largest extra weight.
    weight: Annotated[float, Range(above=0, maximum=10_000)] = 10.0
    # Distance in pixels over which the extra weight decays.
    sigma: Annotated[float, Range(above=0, maximum=1000)] = 5.0
    # Classes whose connected components (4-connected) are the cells. [] for the objects of
    # data.instances.
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weighted sum of cross-entropy and soft Dice loss."""

    # Weight of the cross-entropy.
    cross_entropy: NotNegative = 1.0
    # Weight of the soft Dice loss.
    dice: NotNegative = 1.0
    # One weight per class, in the order of data.classes. balanced weighs each class by the inverse
    # of its fraction of the training pixels. null weighs all classes equally.
    class_weights: tuple[NotNegative, ...] | Literal["balanced"] | None = None
    # {} for the weights of the paper, between the objects of data.instances. null for none.
    border: BorderConfig | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights are updated."""

    # AdamW, or SGD with Nesterov momentum.
    name: Literal["adamw", "sgd"] = "adamw"
    # Highest learning rate of the schedule.
    lr: AboveZero = 1e-3
    # Highest learning rate of an encoder from torchvision, on the same schedule. null is lr.
    encoder_lr: AboveZero | None = None
    # Weight decay of AdamW (decoupled) or SGD.
    weight_decay: NotNegative = 1e-2
    # Momentum of SGD, or beta1 of AdamW.
    momentum: Annotated[float, Range(above=0, maximum=0.9999)] = 0.9


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate of each step."""

    # cosine and polynomial fall to 0 at the last step. one_cycle rises over the first 30 % of the
    # steps, then falls. plateau falls each time the score has stopped improving.
    name: Literal["cosine", "polynomial", "one_cycle", "constant", "plateau"] = "cosine"
    # Epochs over which the learning rate rises from 0; 0 with one_cycle, which has its own warm-up.
    warmup_epochs: NotNegative = 0.0
    # For polynomial: the learning rate is `lr * (1 - progress) ** power`.
    power: AboveZero | None = None
    # For plateau: the learning rate falls after more than this many validations in a row without a
    # better score.
    patience: Count | None = None
    # For plateau: the learning rate is multiplied by this when it falls.
    factor: Annotated[float, Range(above=0, maximum=0.99)] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    # Length of the run. An epoch is about one pass over the training samples.
    epochs: Positive
    # Optimizer steps per epoch. null for one pass over the samples, rounded up. Batches are always
    # full: a new pass may begin within a batch and within an epoch.
    steps_per_epoch: Positive | None = None
    # Samples per batch, over all processes.
    batch_size: Positive = 4
    # Batches whose gradients are averaged in each step.
    accumulate: Positive = 1
    # Largest norm of the gradient of all weights; longer gradients are scaled down. null for no
    # limit.
    clip_grad_norm: AboveZero | None = None
    # Decay per step of an exponential moving average of the weights, usually 0.99 to 0.9999, lower
    # in the first steps. The averaged weights are scored, saved and used for prediction. null for
    # none.
    ema_decay: Annotated[float, Range(above=0, maximum=0.99999)] | None = None
    # Epochs between two validations. The last epoch is always validated.
    validate_every: Positive = 1
    # Score that decides which weights become best.pt; higher is better. mean_iou, mean_dice,
    # pixel_accuracy, the score of one class such as iou_NAME or dice_NAME, or another mean.
    monitor: str = "mean_iou"
    # End the run after this many validations in a row without a better score. null for never.
    patience: Positive | None = None
    # Validation images that are drawn into previews/ at each validation.
    previews: OnResume[Count] = 4
    # Save last.pt when it is this many minutes old. It is also saved at each validation.
    save_every_minutes: OnResume[NotNegative] = 10.0
    # Also save last.pt after this many steps. null for never.
    save_every_steps: OnResume[Positive | None] = None
    # Seed of the initial weights, the order of the samples and the augmentation.
    seed: Seed = 0
    # Number of runs, with the seeds seed, seed + 1, and so on.
    seeds: Positive = 1
    # Checkpoint that a new run takes its initial weights from. null for random weights.
    init_from: str | None = None
    # Initial weights of model.encoder: DEFAULT for torchvision's ImageNet weights, downloaded once,
    # or a file with a state dict of torchvision's network. null for random weights.
    encoder_weights: str | None = None
    # Freeze the encoder and its batch norm statistics for the first N epochs.
    freeze_encoder_epochs: Count = 0
    # auto, cpu, cuda or cuda:N. auto is CUDA if available, otherwise the CPU.
    device: Anytime[str] = "auto"
    # Number format of the computation. auto is bfloat16 on CUDA (float16 on old GPUs) and float32
    # on a CPU. bfloat16 may be faster on a CPU with AVX512-BF16 or AMX.
    precision: Anytime[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    # Store images and weights in PyTorch's channels_last memory format, which is usually faster.
    channels_last: bool = True
    # Compile the network with torch.compile: a slower start, then usually faster steps.
    compile: bool = False
    # Keep only the input of each level and compute the rest again in the backward pass. Needs less
    # memory and more time.
    activation_checkpointing: bool = False
    # Use only deterministic algorithms on CUDA. The CPU always does.
    deterministic: bool = False
    # Compute batch norm statistics over all processes. For several GPUs.
    sync_batch_norm: bool = False
    # Processes that load samples, for each training process. 0 loads them in the training process.
    num_workers: Anytime[Count] = 2


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How validation, evaluation and prediction cut large images into tiles."""

    # Largest (height, width) of a tile in pixels; larger images are cut. With model.padding valid
    # it includes the context.
    size: Size = (1024, 1024)
    # Smallest overlap of neighbouring tiles in pixels. null is the overlap that makes the result
    # equal to that of the whole image: 192 with five levels, 4 with model.padding valid. With an
    # encoder from torchvision null is a quarter of size: its receptive field is mostly larger than
    # a tile. Where no overlap makes them equal (norm group or instance), and where the overlap of
    # such an encoder is too small, tiles blend over it.
    overlap: Count | None = None
    # Tiles of an image that go through the network together.
    batch_size: Positive = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sections of a config file, and two settings outside of any section."""

    # Name of the run and of its folder. By default the name of the config file.
    name: OnResume[str]
    # Folder of all runs: results go to RUNS/NAME. It is relative to the current directory.
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
    """Return the smallest overlap of neighbouring tiles in pixels."""
    if config.tiling.overlap is not None:
        return config.tiling.overlap
    if config.model.encoder != "none":
        return min(config.tiling.size) // 4
    geometry = config.model.geometry
    return geometry.exact_overlap or 2 * geometry.margin


def tiles_blend(config: Config) -> bool:
    """Whether tiles fade into each other; otherwise they meet in the middle of the overlap."""
    exact = config.model.geometry.exact_overlap
    return exact is None or (config.model.encoder != "none" and tile_overlap(config) < exact)
