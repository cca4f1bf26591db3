"""The settings of a run, as they appear in a YAML file.

The dataclasses have the structure and the order of the file. The comment above a field documents
the setting: `scripts/write_configuration_docs.py` copies it into docs/configuration.md.
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
    Samples,
    SamplingConfig,
    Seed,
    UpTo1000,
)
from unet.config.parsing import Range, Words
from unet.models.encoder_specs import ENCODER_SPECS
from unet.models.receptive_field import Geometry, unet_geometry

Width = Annotated[int, Range(minimum=1, maximum=8192)]
LearningRate = Annotated[float, Range(above=0, maximum=100)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The U-Net. It has one output per class."""

    # Channels of the images: 1 for grey, 3 for colour.
    in_channels: UpTo1000 = 3
    # Channels of each level, starting at full resolution. With another encoder, these are
    # the channels of the decoder levels, for most encoders five numbers.
    widths: Annotated[tuple[Width, ...], Range(minimum=1, maximum=10)] = (64, 128, 256, 512, 1024)
    # Normalization layer after each convolution. Other encoders keep their own layers.
    norm: Literal["batch", "group", "instance", "none"] = "batch"
    # Layer between two levels of the encoder: max pooling or a strided convolution.
    downsampling: Literal["max_pool", "conv"] = "max_pool"
    # Upsampling in the decoder: a transposed convolution, or a 1 x 1 convolution followed by
    # bilinear interpolation.
    upsampling: Literal["conv_transpose", "bilinear"] = "conv_transpose"
    # Padding of the 3 x 3 convolutions. same pads with zeros. valid does not pad, as in the paper.
    # With valid, crops and tiles include a context without predictions (92 pixels on each side with
    # five levels), and images are mirrored at their borders.
    padding: Literal["same", "valid"] = "same"
    # Dropout probability after each of the two deepest levels.
    dropout: Annotated[float, Range(minimum=0, maximum=0.95)] = 0.0
    # none for the U-Net's own encoder, or the name of a classification network in torchvision or,
    # after timm/, in timm. Its weights are random unless train.encoder_weights is set. Such an
    # encoder has its own downsampling and supports neither padding valid nor dropout.
    encoder: Annotated[str, Words(f"one of none, {', '.join(ENCODER_SPECS)}, timm/NAME")] = "none"

    @property
    def geometry(self) -> Geometry:
        """Sizes in pixels that the layers of the network determine."""
        return unet_geometry(
            self.encoder, len(self.widths), self.norm, self.upsampling, self.padding
        )


@dataclass(frozen=True, kw_only=True)
class BorderConfig:
    """Extra weight in the cross-entropy for narrow gaps between cells, as in the U-Net paper.

    A pixel outside all cells, at distances of d1 and d2 pixels from the two nearest cells, gets the
    extra weight `weight * exp(-(d1 + d2)^2 / (2 sigma^2))`. Pixels of a cell that touch another
    cell are trained as the first class, so the network learns a gap. Scores use the original
    masks.
    """

    # Maximum extra weight.
    weight: Annotated[float, Range(above=0, maximum=10_000)] = 10.0
    # Distance in pixels over which the extra weight decays.
    sigma: Annotated[float, Range(above=0, maximum=1000)] = 5.0
    # Classes whose 4-connected components are the cells. If the list is empty, the cells are the
    # objects of data.instances.
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weighted sum of cross-entropy and soft Dice loss."""

    # Weight of the cross-entropy.
    cross_entropy: NotNegative = 1.0
    # Weight of the soft Dice loss.
    dice: NotNegative = 1.0
    # One weight per class, in the order of data.classes. balanced weights each class by the inverse
    # of its fraction of the training pixels. null gives all classes the same weight.
    class_weights: tuple[NotNegative, ...] | Literal["balanced"] | None = None
    # Border weights. {} uses the values of the paper and the objects of data.instances. null for
    # no border weights.
    border: BorderConfig | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, which updates the weights."""

    # AdamW, or SGD with Nesterov momentum.
    name: Literal["adamw", "sgd"] = "adamw"
    # Peak learning rate of the schedule.
    lr: LearningRate = 1e-3
    # Peak learning rate of model.encoder, with the same schedule. null for lr.
    encoder_lr: LearningRate | None = None
    # Weight decay of AdamW (decoupled) or SGD.
    weight_decay: Annotated[float, Range(minimum=0, maximum=100)] = 1e-2
    # Momentum of SGD, or beta1 of AdamW.
    momentum: Annotated[float, Range(above=0, maximum=0.9999)] = 0.9


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate schedule."""

    # cosine and polynomial fall to 0 at the last step. one_cycle rises over the first 30 % of the
    # steps and then falls. plateau falls each time the score stops improving.
    name: Literal["cosine", "polynomial", "one_cycle", "constant", "plateau"] = "cosine"
    # Epochs over which the learning rate rises from 0. If train.epochs is not larger, the warm-up
    # is a tenth of train.epochs. Must be 0 for one_cycle, which has its own warm-up.
    warmup_epochs: NotNegative = 0.0
    # For polynomial: the learning rate is `lr * (1 - progress) ** power`.
    power: Annotated[float, Range(above=0, maximum=100)] | None = None
    # For plateau: the learning rate falls when more than this many validations in a row do not
    # improve the score.
    patience: Count | None = None
    # For plateau: the learning rate is multiplied by this number when it falls.
    factor: Annotated[float, Range(above=0, maximum=0.99)] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop."""

    # Number of epochs. An epoch is about one pass over the training samples. null with
    # train.minutes.
    epochs: Positive | None = None
    # Train for this many minutes on this machine, from reading the data to the last checkpoint. The
    # first steps are timed, and epochs, steps_per_epoch, validate_every and a warm-up of at most a
    # tenth of the run are chosen and written to the config.yaml of the run. null with train.epochs;
    # an override of one replaces the other.
    minutes: Annotated[float, Range(minimum=0.1, maximum=100_000)] | None = None
    # Optimizer steps per epoch. null for one pass over the samples, rounded up. Batches are always
    # full: a new pass can start in the middle of a batch or of an epoch.
    steps_per_epoch: Positive | None = None
    # Samples per batch, summed over all processes.
    batch_size: Samples = 4
    # Batches whose gradients are averaged in each step.
    accumulate: Samples = 1
    # Maximum norm of the gradient of all weights. Larger gradients are scaled down. null for no
    # limit.
    clip_grad_norm: AboveZero | None = None
    # Decay per step of an exponential moving average of the weights, usually 0.99 to 0.9999; it is
    # lower in the first steps. The averaged weights are scored, saved and used for prediction.
    # null for no average.
    ema_decay: Annotated[float, Range(above=0, maximum=0.99999)] | None = None
    # With ema_decay, each validation also scores the raw weights, which doubles its time.
    score_raw_weights: bool = False
    # Epochs between two validations. The last epoch is always validated.
    validate_every: Positive = 1
    # Score that selects best.pt; higher is better. It can be mean_iou, mean_dice, pixel_accuracy,
    # the score of one class such as iou_NAME or dice_NAME, or another mean.
    monitor: str = "mean_iou"
    # End the run after this many validations in a row without a better score. null to train for all
    # epochs.
    patience: Positive | None = None
    # Number of validation images that are drawn into previews/ at each validation.
    previews: OnResume[Annotated[int, Range(minimum=0, maximum=1000)]] = 4
    # Where to watch the run: any of tensorboard, mlflow and wandb (Weights & Biases, offline unless
    # WANDB_MODE says otherwise). null for TensorBoard if it is installed.
    loggers: OnResume[tuple[Literal["tensorboard", "mlflow", "wandb"], ...] | None] = None
    # Save last.pt when it is this many minutes old. It is also saved at each validation.
    save_every_minutes: OnResume[NotNegative] = 10.0
    # Also save last.pt each time this many steps have passed. null to save only at the times above.
    save_every_steps: OnResume[Positive | None] = None
    # Seed of the initial weights, the order of the samples and the augmentation.
    seed: Seed = 0
    # Number of runs. Their seeds are seed, seed + 1, and so on.
    seeds: UpTo1000 = 1
    # Checkpoint with the initial weights of a new run. null for random weights.
    init_from: str | None = None
    # Initial weights of model.encoder: DEFAULT for the weights of torchvision or timm, which
    # are downloaded once, or a file with a state dict of the network. null for random weights.
    encoder_weights: str | None = None
    # Freeze the encoder and its batch norm statistics for the first N epochs.
    freeze_encoder_epochs: Count = 0
    # auto, cpu, cuda, cuda:N, or mps, Apple's GPU, which is not tested. auto uses CUDA or mps where
    # there is one, otherwise the CPU.
    device: Anytime[str] = "auto"
    # Floating-point format of the computation. auto uses bfloat16 on CUDA (float16 on old GPUs). On
    # a CPU it times a training step in float32 and bfloat16 and uses the faster; config.yaml of the
    # run names it. On a CPU a trained model computes in float32 where that is faster.
    precision: Anytime[Literal["auto", "float32", "bfloat16", "float16"]] = "auto"
    # Store images and weights in PyTorch's channels_last memory format, which is usually faster.
    channels_last: bool = True
    # Compile the network with torch.compile. The first step is slower, later steps are usually
    # faster.
    compile: bool = False
    # Keep only the input of each level and recompute the other activations in the backward pass.
    # This uses less memory and takes more time.
    activation_checkpointing: bool = False
    # Use only deterministic algorithms on CUDA. Computation on a CPU is always deterministic.
    deterministic: bool = False
    # Compute batch norm statistics over all processes when training on several GPUs.
    sync_batch_norm: bool = False
    # With several processes, end a process after another one has not run for this many minutes,
    # because it was stopped or its machine is gone.
    timeout_minutes: Anytime[AboveZero] = 10.0
    # Number of worker processes that load samples, for each training process. With 0, the training
    # process loads them itself.
    num_workers: Anytime[Annotated[int, Range(minimum=0, maximum=256)]] = 2


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """The tiles into which validation, evaluation and prediction cut large images."""

    # Maximum (height, width) of a tile in pixels. Larger images are cut into tiles. With
    # model.padding valid, the size includes the context.
    size: tuple[Positive, Positive] = (1024, 1024)
    # Minimum overlap of neighbouring tiles in pixels. null uses the overlap with which the result
    # equals that of the whole image: 192 with five levels, 4 with model.padding valid. For
    # another encoder, whose receptive field is usually larger than a tile, null uses a quarter of
    # size. Tiles are blended over the overlap if no overlap gives an equal result (norm
    # group or instance), or if the overlap of such an encoder is too small.
    overlap: Count | None = None
    # Number of tiles of an image, or of images of one size, that pass through the network together.
    # Validation and evaluation put more small images together: on a GPU as many as have the pixels
    # of a tile, on a CPU as many as have 128 x 128 pixels.
    batch_size: Samples = 1


@dataclass(frozen=True, kw_only=True)
class CustomConfig:
    """Names of the parts that `unet.train` was called with in Python. It sets them itself.

    A config with names cannot be trained without passing the same parts again.
    """

    # Class of the network, which replaces all settings of model except in_channels.
    network: str | None = None
    # Name of the loss, which replaces the section loss.
    loss: str | None = None
    # Name of the transform, which is applied to images and masks before augment.
    transform: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """The sections of a config file, and two settings outside of any section."""

    # Name of the run and of its folder. The default is the name of the config file.
    name: OnResume[str]
    # Parent folder of all runs, relative to the current directory. Results are written to
    # RUNS/NAME.
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
    custom: CustomConfig = field(default_factory=CustomConfig)


def warmup_epochs(config: Config) -> float:
    """Return the length of the warm-up, which a short training shortens."""
    warmup, epochs = config.schedule.warmup_epochs, config.train.epochs
    return warmup if epochs is None or warmup < epochs else epochs / 10


def tile_overlap(config: Config) -> int:
    """Return the minimum overlap of neighbouring tiles in pixels."""
    if config.tiling.overlap is not None:
        return config.tiling.overlap
    if config.model.encoder != "none" or config.custom.network is not None:
        return min(config.tiling.size) // 4
    geometry = config.model.geometry
    return geometry.exact_overlap or 2 * geometry.margin


def tiles_blend(config: Config) -> bool:
    """Whether tiles are blended; otherwise they meet in the middle of the overlap."""
    exact = config.model.geometry.exact_overlap
    if exact is None or config.custom.network is not None:
        return True
    return config.model.encoder != "none" and tile_overlap(config) < exact
