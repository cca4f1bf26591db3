"""Settings that are possible each, but not together."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from unet.config.schema import (
    Config,
    DataConfig,
    FixedNormalizationConfig,
    Size,
    tile_overlap,
)
from unet.data.classes import ClassMap
from unet.data.image_io import SUFFIXES
from unet.models.encoder_specs import ENCODER_SPECS
from unet.models.receptive_field import Geometry

# The scalar fields of metrics.confusion.Scores, whose module needs torch.
_SCORES = (
    "pixel_accuracy",
    *(
        f"mean_{name}{of}"
        for of in ("", "_foreground")
        for name in ("iou", "dice", "precision", "recall")
    ),
    "micro_iou",
    *(f"micro_{name}_foreground" for name in ("iou", "dice", "precision", "recall")),
    "frequency_weighted_iou",
    "frequency_weighted_dice",
)


def monitor_names(classes: Iterable[str]) -> list[str]:
    """List the scores that `train.monitor` may name, given the names of the classes."""
    classes = list(classes)
    return [*_SCORES, *(f"{score}_{name}" for score in ("iou", "dice") for name in classes)]


def find_conflicts(config: Config) -> list[str]:
    """Say what is wrong, a line for each: settings that are possible, but not together."""
    faults = _contradictions_of_data(config) + _contradictions_of_validation(config.data)
    classes, sampling = config.data.classes, config.sampling
    train, schedule = config.train, config.schedule
    if unknown := [name for name in sampling.rare_classes if name not in classes]:
        faults.append(
            f"sampling.rare_classes: got {', '.join(unknown)}, expected names of data.classes: "
            f"{', '.join(classes)}"
        )
    if bool(sampling.rare_classes) != (sampling.rare_fraction > 0):
        faults.append(
            "sampling: expected both rare_classes and a rare_fraction above 0, or neither"
        )
    if config.augment.crop is None and (sampling.rare_classes or sampling.crops_per_image > 1):
        faults.append("sampling: expected an augment.crop, which is what it draws")
    if not re.fullmatch(r"[\w.+-]+", config.name) or set(config.name) == {"."}:
        faults.append(
            f"name: got {config.name!r}, expected letters, digits, '.', '_', '+' and '-' only, as "
            "it names a folder"
        )
    if train.monitor not in (known := monitor_names(classes)):
        near = difflib.get_close_matches(train.monitor, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        faults.append(
            f"train.monitor: got {train.monitor!r}, expected a score of the validation; {hint}"
        )
    faults += _contradictions_of_model(config)
    if config.augment.scale[0] > config.augment.scale[1]:
        faults.append(
            f"augment.scale: got {list(config.augment.scale)}, expected the smaller number first"
        )
    if config.loss.cross_entropy == 0 == config.loss.dice:
        faults.append("loss: got 0 for cross_entropy and dice, expected one of them above 0")
    weights = config.loss.class_weights
    if isinstance(weights, tuple) and (len(weights) != len(classes) or sum(weights) == 0):
        faults.append(
            f"loss.class_weights: got {list(weights)}, expected {len(classes)} numbers as there "
            "are classes in data.classes, not all 0"
        )
    faults += _contradictions_of_border(config)
    if schedule.warmup_epochs >= train.epochs:
        faults.append(
            f"schedule.warmup_epochs: got {schedule.warmup_epochs:g}, expected less than "
            f"train.epochs, {train.epochs}; set schedule.warmup_epochs=0 for a short run"
        )
    for name, key, mostly in (
        ("polynomial", "power", 0.9),
        ("plateau", "patience", 10),
        ("plateau", "factor", 0.5),
    ):
        if (getattr(schedule, key) is not None) != (schedule.name == name):
            faults.append(
                f"schedule.{key}: expected a number (such as {mostly}) with schedule.name {name}, "
                "and none with another"
            )
    if schedule.name == "one_cycle" and schedule.warmup_epochs:
        faults.append(
            f"schedule.warmup_epochs: got {schedule.warmup_epochs:g}, expected 0 with one_cycle, "
            "which has a warm-up of its own"
        )
    if train.activation_checkpointing and train.compile:
        faults.append("train: got recompute and compile, expected one of them")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", train.device):
        faults.append(f"train.device: got {train.device!r}, expected auto, cpu, cuda or cuda:N")
    if config.model.widths:
        # Tiles lie at multiples of the network's output stride.
        geometry, overlap = config.model.geometry, tile_overlap(config)
        smallest = max(overlap, geometry.remainder) + geometry.output_stride + 2 * geometry.context
        if min(config.tiling.size) < smallest:
            faults.append(
                f"tiling.size: got {list(config.tiling.size)}, expected at least {smallest} x "
                f"{smallest} for an overlap of {overlap} and the levels of the network; or set a "
                "smaller tiling.overlap"
            )
    return faults


def _contradictions_of_model(config: Config) -> list[str]:
    model = config.model
    if not model.widths:
        return ["model.widths: got an empty list, expected at least one width"]
    if model.encoder != "none":
        return _contradictions_of_encoder(config)
    faults = [
        f"{name}: got {setting}, expected a network of torchvision as model.encoder, such as "
        "resnet34"
        for name, setting in (
            ("optimizer.encoder_lr", config.optimizer.encoder_lr),
            ("train.encoder_weights", config.train.encoder_weights),
            ("train.freeze_encoder_epochs", config.train.freeze_encoder_epochs or None),
        )
        if setting is not None
    ]
    if model.geometry.context:
        if model.upsampling == "bilinear":
            faults.append(
                "model.upsampling: got bilinear, expected conv_transpose with model.padding valid"
            )
        faults += _contradictions_of_crop(config.augment.crop, model.geometry, len(model.widths))
    return faults


def _contradictions_of_encoder(config: Config) -> list[str]:
    """What does not go together with a network of torchvision."""
    faults = []
    model, train = config.model, config.train
    count = len(ENCODER_SPECS[model.encoder].channels)
    if len(model.widths) != count:
        example = [32 * 2**i for i in range(count)]
        faults.append(
            f"model.widths: got {list(model.widths)}, expected {count} numbers, as many levels as "
            f"the decoder has with model.encoder {model.encoder}, such as {example}"
        )
    for name, expected, why in (
        ("downsampling", "max_pool", "has its own"),
        ("padding", "same", "is padded"),
        ("dropout", 0, "takes none"),
    ):
        if (got := getattr(model, name)) != expected:
            faults.append(
                f"model.{name}: got {got}, expected it left out: model.encoder {model.encoder} "
                f"{why}"
            )
    if train.encoder_weights is not None and train.init_from is not None:
        faults.append(
            "train: got encoder_weights and init_from, expected one of them: init_from holds an "
            "encoder, too"
        )
    if train.freeze_encoder_epochs and train.encoder_weights is None and train.init_from is None:
        faults.append(
            f"train.freeze_encoder_epochs: got {train.freeze_encoder_epochs}, expected 0 without "
            "train.encoder_weights or train.init_from: random weights are to learn"
        )
    return faults


def _contradictions_of_crop(crop: Size | None, geometry: Geometry, num_levels: int) -> list[str]:
    """What an unpadded network cannot halve."""
    smaller, larger = (
        [geometry.input_side(max(side - 2 * geometry.context + more, 1)) for side in crop or ()]
        for more in (1 - geometry.output_stride, 0)
    )
    if list(crop or ()) == larger:
        return []
    return [
        f"augment.crop: got {list(crop or ())}, expected what {num_levels} levels of model.widths "
        f"can halve with model.padding valid, such as {smaller} or {larger}"
    ]


def _contradictions_of_border(config: Config) -> list[str]:
    border, instances, classes = config.loss.border, config.data.instances, config.data.classes
    if border is None:
        return []
    faults = []
    if config.loss.cross_entropy == 0:
        faults.append("loss.border: got loss.cross_entropy 0, expected above, as it weighs that")
    if unknown := [name for name in border.classes if name not in classes]:
        faults.append(
            f"loss.border.classes: got {', '.join(unknown)}, expected names of data.classes: "
            f"{', '.join(classes)}"
        )
    elif len(border.classes) >= len(classes):
        faults.append(
            f"loss.border.classes: got {', '.join(border.classes)}, expected fewer than "
            "data.classes has, as one must lie between the cells"
        )
    if not border.classes and instances is None:
        faults.append(
            "loss.border: got no cells, expected data.instances, label images, or "
            f"loss.border.classes, such as [{list(classes)[-1]}]"
        )
    return faults


def _contradictions_of_data(config: Config) -> list[str]:
    faults = []
    data, in_channels = config.data, config.model.in_channels
    try:
        ClassMap(data.classes, data.ignore, data.tolerance)
    except ValueError as error:
        faults.append(str(error))
    places = (data.images, data.masks, data.validation.images)
    if data.csv is not None and places != ("images", "masks", None):
        faults.append("data.csv: got images or masks besides, expected the table's alone")
    if data.csv is not None and data.instances is not None:
        faults.append(
            "data.csv: got data.instances besides, which a table cannot name; give folders, or "
            "leave it out and set loss.border.classes if that needs it"
        )
    if data.channels is not None:
        if data.images != "images" or data.csv is not None or data.validation.images is not None:
            faults.append("data.channels: got images from elsewhere besides, expected one of both")
        if len(data.channels) != in_channels:
            faults.append(
                f"data.channels: got {len(data.channels)} patterns, expected model.in_channels, "
                f"{in_channels}"
            )
    for key, masks in (("masks", data.masks), ("validation.masks", data.validation.masks)):
        if isinstance(masks, dict) and set(masks) != set(list(data.classes)[1:]):
            faults.append(
                f"data.{key}: got {', '.join(masks)}, expected a pattern for each of data.classes "
                f"but the first: {', '.join(list(data.classes)[1:])}"
            )
    for pattern in _patterns(data):
        if unknown := set(re.findall(r"\{.*?\}", pattern)) - {"{stem}"}:
            faults.append(f"data: got {unknown.pop()} in {pattern!r}, expected {{stem}} only")
        elif "{stem}" not in pattern and Path(pattern).suffix.lower() in SUFFIXES:
            faults.append(
                f"data: got {pattern!r}, expected a folder or {{stem}} in it, such as "
                f"{pattern.replace('*', '{stem}')!r}"
            )
    if data.ignore and isinstance(data.masks, dict):
        faults.append("data.ignore: expected none with a mask for each class, where all is known")
    if isinstance(data.normalization, FixedNormalizationConfig):
        for name, numbers in vars(data.normalization).items():
            if len(numbers) != in_channels:
                faults.append(
                    f"data.normalization.{name}: got {len(numbers)} numbers, expected "
                    f"model.in_channels, {in_channels}"
                )
    return faults


def _patterns(data: DataConfig) -> list[str]:
    """Every place of images and masks."""
    places = [
        data.images,
        *(data.channels or ()),
        data.instances or "",
        data.validation.images or "",
        data.validation.instances or "",
    ]
    for masks in (data.masks, data.validation.masks or ""):
        places += masks.values() if isinstance(masks, dict) else [masks]
    return places


def _contradictions_of_validation(data: DataConfig) -> list[str]:
    faults = []
    validation = data.validation
    folders = validation.images is not None or validation.masks is not None
    folds = validation.folds is not None or validation.fold is not None
    given = [name for name, one in vars(validation).items() if one is not None and name != "seed"]
    ways = sum(one is not None for one in (validation.fraction, validation.stems, validation.split))
    if (
        ways + folders + folds != 1
        or (folders and None in (validation.images, validation.masks))
        or (folds and validation.folds is None)
    ):
        faults.append(
            f"data.validation: got {', '.join(given) or 'nothing'}, expected one of fraction, "
            "stems, split, folds together with fold, or images together with masks"
        )
    elif validation.folds is not None and (validation.fold or 0) >= validation.folds:
        faults.append(
            f"data.validation.fold: got {validation.fold}, expected 0 to {validation.folds - 1}"
        )
    if validation.stems == ():
        faults.append("data.validation.stems: got an empty list, expected at least one stem")
    if validation.split is not None and data.csv is None:
        faults.append("data.validation.split: expected data.csv, whose column it refers to")
    if folders and isinstance(data.masks, dict) != isinstance(validation.masks, dict):
        faults.append("data.validation.masks: expected one place, or one for each class, as masks")
    if validation.instances is not None and not folders:
        faults.append(
            "data.validation.instances: expected data.validation.images, whose label images it "
            "names; data.instances names those of data.images"
        )
    if validation.group is not None:
        if validation.fraction is None and validation.folds is None:
            faults.append("data.validation.group: expected fraction or folds, which it divides")
        try:
            re.compile(validation.group)
        except re.error as error:
            faults.append(
                f"data.validation.group: got {validation.group!r}, expected a regular expression "
                f"({error})"
            )
    return faults
