"""The settings of a run: what a YAML file may say, and the strict reading of it.

The dataclasses have the shape and the order of the file.
"""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from unet.masks import ClassMap


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` is the bound that it must exceed."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
        )

    def __str__(self) -> str:
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
            )
            if bound is not None
        ]
        return " and ".join(bounds)


Positive = Annotated[int, Range(minimum=1)]
Share = Annotated[float, Range(minimum=0, maximum=1)]
NotNegative = Annotated[float, Range(minimum=0)]
Byte = Annotated[int, Range(minimum=0, maximum=255)]
MaskValue = Annotated[int, Range(minimum=0, maximum=65535)] | tuple[Byte, Byte, Byte]
Size = tuple[Positive, Positive]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Which pairs are kept from training, to be scored. One way of the three."""

    # Share of the pairs, drawn by train.seed.
    fraction: Annotated[float, Range(above=0, maximum=0.9)] | None = None
    # The pairs of these stems (file names without ending).
    stems: tuple[str, ...] | None = None
    # Folders of their own, relative to data.root.
    images: str | None = None
    masks: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Image and mask files, and what the mask values mean."""

    # Folder that the other folders are relative to; itself relative to the current directory.
    root: str
    images: str = "images"
    masks: str = "masks"
    # Name -> value in the mask files: a grey value or index, or a colour [R, G, B].
    classes: dict[str, MaskValue]
    # Mask values that are neither learned nor scored.
    ignore: tuple[MaskValue, ...] = ()
    validation: ValidationConfig
    # Draw the quickstart data into root if root is not there.
    draw_quickstart: bool = False


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, image and mask alike."""

    # (height, width) in pixels that samples are cropped to; null for whole images.
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
    # Pixels between the points that are displaced.
    elastic_spacing: Positive = 64
    # Largest shift of brightness to either side, in standard deviations of the training images.
    brightness: NotNegative = 0.0
    # Largest change of contrast to either side, as a fraction.
    contrast: Share = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The U-Net; it has as many outputs as there are classes."""

    # 1 for grey images, 3 for colour.
    in_channels: Positive = 3
    # Channels of each level, from the full image down.
    widths: tuple[Positive, ...] = (64, 128, 256, 512, 1024)
    norm: Literal["batch", "group", "instance", "none"] = "batch"
    downsampling: Literal["max_pool", "conv"] = "max_pool"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weighted sum of cross-entropy and soft Dice loss."""

    cross_entropy: NotNegative = 1.0
    dice: NotNegative = 1.0
    # One number for each class, in the order of data.classes; null for all equal.
    class_weights: tuple[NotNegative, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow their gradients."""

    name: Literal["adamw", "sgd"] = "adamw"
    # Learning rate at the end of the warm-up.
    lr: Annotated[float, Range(above=0)] = 1e-3
    weight_decay: NotNegative = 1e-2
    # sgd's momentum (Nesterov's), adamw's beta1.
    momentum: Annotated[float, Range(above=0, maximum=0.9999)] = 0.9


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate falls to 0 at the last step."""

    name: Literal["cosine", "polynomial"] = "cosine"
    # Epochs over which the learning rate first rises from 0.
    warmup_epochs: NotNegative = 0.0
    # Of polynomial decay: (1 - progress) ** power.
    power: Annotated[float, Range(above=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    # Passes over the training pairs.
    epochs: Positive
    # Samples per step.
    batch_size: Positive = 4
    # Epochs between two validations; the last epoch is always validated.
    validate_every: Positive = 1
    # Validation images drawn into previews/ at each validation.
    previews: Annotated[int, Range(minimum=0)] = 4
    # Of the split, the first weights, the order of samples and the augmentation.
    seed: Annotated[int, Range(minimum=0, maximum=2**32 - 1)] = 0
    # auto, cpu, cuda or cuda:N. auto takes CUDA where there is one.
    device: str = "auto"
    # auto takes bfloat16 (on old GPUs float16) on CUDA, where it is faster, else float32.
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Processes that load samples; 0 loads them between the steps.
    num_workers: Annotated[int, Range(minimum=0)] = 2


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How validation, evaluation and prediction cut large images."""

    # (height, width) in pixels above which an image is cut into tiles of this size.
    size: Size = (1024, 1024)
    # Pixels that neighbouring tiles share at least, and over which they blend.
    overlap: Annotated[int, Range(minimum=0)] = 128


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    # Results go to runs/<name>. The file's own name where it says none.
    name: str
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig
    tiling: TilingConfig = field(default_factory=TilingConfig)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, change it by `section.key=value` overrides, and check all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with every fault found, a line each.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a config file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such config file; check the path")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: got {_describe_value(raw)}, expected sections such as 'data:'")
    return config_from_dict({"name": path.stem, **raw}, overrides, where=str(path))


def config_from_dict(
    raw: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "config"
) -> Config:
    """Check a plain dict, as `config_to_dict` gives it, changed by overrides.

    Raises:
        ValueError: with every fault found, a line each, beginning with `where`.
    """
    faults: list[str] = []
    merged = _override(raw, overrides, faults)
    config = _read(Config, merged, "", faults)
    if not faults:
        faults = _contradictions(config)
    if faults:
        raise ValueError("\n".join(f"{where}: {fault}" for fault in faults))
    assert isinstance(config, Config)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Turn a config into the dicts, lists and scalars of YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


def dotted(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted path."""

    def flat(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {
            path: item
            for key, inner in value.items()
            for path, item in flat(f"{prefix}.{key}" if prefix else key, inner).items()
        }

    return flat("", config_to_dict(config))


def differences(before: Config, now: Config, besides: tuple[str, ...]) -> list[str]:
    """Say which settings differ, but for those whose dotted path begins with one of `besides`."""
    old, new = dotted(before), dotted(now)
    changed = [
        f"{key} was {old.get(key, 'not there')} and is now {new.get(key, 'not there')}"
        for key in old | new
        if not key.startswith(besides) and old.get(key) != new.get(key)
    ]
    if not changed and list(before.data.classes) != list(now.data.classes):
        changed = [
            f"the order of data.classes was {', '.join(before.data.classes)} and is now "
            f"{', '.join(now.data.classes)}"
        ]
    return changed


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} stands here twice; remove one",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _override(
    raw: Mapping[str, Any], overrides: Sequence[str], faults: list[str]
) -> Mapping[str, Any]:
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            faults.append(f"{override!r}: expected an override such as train.epochs=5")
            continue
        try:
            value = yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            faults.append(f"{override!r}: is not YAML: {' '.join(str(error).split())}")
            continue
        raw = _set(raw, path.split("."), value)
    return raw


def _set(raw: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    inner = raw if isinstance(raw, Mapping) else {}
    return {**inner, keys[0]: _set(inner.get(keys[0]), keys[1:], value)}


def _read(annotation: Any, value: Any, path: str, faults: list[str]) -> Any:
    """Return `value` as the annotation's type; what does not fit is added to `faults`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _read_section(annotation, value, path, faults)
    if origin is Annotated:
        unread: list[str] = []
        number = _read(args[0], value, path, unread)
        if not unread and number in args[1]:
            return number
    elif origin in (Union, types.UnionType):
        for option in args:
            unfit: list[str] = []
            result = _read(option, value, path, unfit)
            if not unfit:
                return result
    elif origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) == len(value):
            return tuple(
                _read(arg, item, f"{path}[{i}]", faults)
                for i, (arg, item) in enumerate(zip(args, value, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                faults.append(
                    f"{path}: got the name {_describe_value(key)}, expected text; put it in quotes"
                )
        return {key: _read(args[1], item, f"{path}.{key}", faults) for key, item in value.items()}
    elif annotation is float:
        # PyYAML reads 1e-4 as text: it is a number for YAML 1.2 and for people.
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            number = float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        else:
            number = math.nan
        if -1e100 < number < 1e100:  # not inf, not nan, and no overflow
            return float(number)
    elif annotation is types.NoneType:
        if value is None:
            return None
    elif type(value) is annotation:
        return value
    faults.append(f"{path}: got {_describe_value(value)}, expected {_describe_type(annotation)}")
    return None


def _read_section(section: Any, value: Any, path: str, faults: list[str]) -> Any:
    """Read a mapping as a dataclass: every key known, none missing."""
    if not isinstance(value, Mapping):
        faults.append(f"{path}: got {_describe_value(value)}, expected {_describe_type(section)}")
        return None
    prefix = f"{path}." if path else ""
    hints = get_type_hints(section, include_extras=True)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(hints)}"
            faults.append(f"{prefix}{key}: unknown key; {hint}")
    known = {}
    for item in dataclasses.fields(section):
        required = item.default is item.default_factory is dataclasses.MISSING
        if item.name in value:
            known[item.name] = _read(hints[item.name], value[item.name], prefix + item.name, faults)
        elif required:
            expected = _describe_type(hints[item.name])
            faults.append(f"{prefix}{item.name}: missing, expected {expected}")
            known[item.name] = None
    return section(**known)


def _describe_value(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {value!r}"
        case list() | tuple():
            return f"the list {list(value)}"
        case Mapping():
            return "a section with keys"
        case _:
            return f"{value}"


def _describe_type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return f"a section of {', '.join(item.name for item in dataclasses.fields(annotation))}"
    if origin is Annotated:
        return f"{_describe_type(args[0])} {args[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe_type(option) for option in args)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is dict:
        return f"names, each with {_describe_type(args[1])}"
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each item {_describe_type(args[0])}"
        return f"a list of {len(args)}, each {_describe_type(args[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "text (in quotes if it looks like a number)",
        bool: "true or false",
        types.NoneType: "null",
    }
    return words[annotation]


def _contradictions(config: Config) -> list[str]:
    """Settings that are possible each, but not together."""
    faults = []
    validation, train, schedule = config.data.validation, config.train, config.schedule
    folders = validation.images is not None or validation.masks is not None
    ways = (validation.fraction is not None) + (validation.stems is not None) + folders
    if ways != 1 or (folders and None in (validation.images, validation.masks)):
        faults.append(
            "data.validation: expected one of fraction, stems, or images together with masks"
        )
    if not re.fullmatch(r"[\w.+-]+", config.name) or set(config.name) == {"."}:
        faults.append(
            f"name: got {config.name!r}, expected letters, digits, '.', '_', '+' and '-' only, as "
            "it names a folder"
        )
    if not config.model.widths:
        faults.append("model.widths: got an empty list, expected at least one width")
    if validation.stems == ():
        faults.append("data.validation.stems: got an empty list, expected at least one stem")
    try:
        ClassMap(config.data.classes, config.data.ignore)
    except ValueError as error:
        faults.append(str(error))
    if config.augment.scale[0] > config.augment.scale[1]:
        faults.append(
            f"augment.scale: got {list(config.augment.scale)}, expected the smaller number first"
        )
    if config.loss.cross_entropy == 0 == config.loss.dice:
        faults.append("loss: got 0 for cross_entropy and dice, expected one of them above 0")
    weights = config.loss.class_weights
    if weights is not None and (len(weights) != len(config.data.classes) or sum(weights) == 0):
        faults.append(
            f"loss.class_weights: got {list(weights)}, expected {len(config.data.classes)} numbers "
            "as there are classes in data.classes, not all 0"
        )
    if schedule.warmup_epochs >= train.epochs:
        faults.append(
            f"schedule.warmup_epochs: got {schedule.warmup_epochs:g}, expected less than "
            f"train.epochs, {train.epochs}; set schedule.warmup_epochs=0 for a short run"
        )
    if (schedule.power is not None) != (schedule.name == "polynomial"):
        faults.append(
            "schedule.power: expected a number (mostly 0.9) with schedule.name polynomial, and "
            "none with another"
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", train.device):
        faults.append(f"train.device: got {train.device!r}, expected auto, cpu, cuda or cuda:N")
    # Tiles start at multiples of the network's factor.
    smallest = config.tiling.overlap + 2 ** (len(config.model.widths) - 1)
    if min(config.tiling.size) < smallest:
        faults.append(
            f"tiling.size: got {list(config.tiling.size)}, expected at least {smallest} x "
            f"{smallest} for an overlap of {config.tiling.overlap} and the "
            f"{len(config.model.widths)} levels of model.widths; or set a smaller tiling.overlap"
        )
    return faults
