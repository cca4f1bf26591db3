"""Checks of settings that are valid on their own, but do not fit the other settings."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_type_hints

from unet.config.data_schema import FixedNormalizationConfig
from unet.config.parsing import Error
from unet.config.schema import Config, tile_overlap
from unet.data.classes import ClassMap
from unet.data.image_types import SUFFIXES
from unet.metrics.confusion import Scores
from unet.models.encoder_specs import encoder_spec
from unet.runtime.text import join_some, shorten


def monitor_names(classes: Iterable[str]) -> list[str]:
    """List the scores that `train.monitor` may name, given the names of the classes."""
    classes = list(classes)
    scalars = [name for name, hint in get_type_hints(Scores).items() if hint is float]
    return [*scalars, *(f"{score}_{name}" for score in ("iou", "dice") for name in classes)]


Conflict = tuple[str, object, str]  # (where, got, expected), the parts of an error message


def find_conflicts(config: Config) -> list[Error]:
    """Describe each setting that does not fit the others."""
    if config.model.encoder != "none":
        try:
            encoder_spec(config.model.encoder)
        except ValueError as error:  # the other checks need its strides
            return [("model.encoder", str(error).removeprefix("encoder: "))]
    checks = (
        _check_data,
        _check_places,
        _check_validation,
        _check_sampling,
        _check_model,
        _check_encoder,
        _check_average,
        _check_loss,
        _check_schedule,
        _check_memory,
        _check_run,
        _check_custom,
    )
    found = [conflict for check in checks for conflict in check(config)]
    conflicts = [
        (where, f"got {shorten(str(got))}, expected {shorten(expected, 500)}")
        for where, got, expected in found
    ]
    try:
        ClassMap(config.data.classes, config.data.ignore, config.data.tolerance)
    except ValueError as error:
        where, _, problem = str(error).partition(": ")
        conflicts.append((where, shorten(problem, 500)))
    return conflicts


def _check_data(config: Config) -> Iterator[Conflict]:
    data, channels = config.data, f"model.in_channels, {config.model.in_channels}"
    foreground = list(data.classes)[1:]
    for key, masks in (("masks", data.masks), ("validation.masks", data.validation.masks)):
        if isinstance(masks, dict) and set(masks) != set(foreground):
            expected = f"a pattern for each class except the first: {', '.join(foreground)}"
            yield f"data.{key}", ", ".join(masks), expected
    if data.axes is not None:
        letters = set(data.axes)
        if len(letters) < len(data.axes) or not {"Y", "X"} <= letters or not data.axes.isupper():
            yield "data.axes", repr(data.axes), "different capital letters, Y and X among them"
    if data.ignore and isinstance(data.masks, dict):
        yield "data.ignore", "mask values", "none with a binary mask for each class"
    if data.channels is not None and len(data.channels) != config.model.in_channels:
        yield "data.channels", f"{len(data.channels)} patterns", channels
    for where, given in (("names", data.names), ("colours", data.colours)):
        yield from _unknown_classes(f"data.{where}", given or (), config)
    shown = [(data.names or {}).get(name, name) for name in data.classes]
    if len(set(shown)) < len(shown):
        yield "data.names", ", ".join(shown), "a different name for each class"
    if isinstance(data.normalization, FixedNormalizationConfig):
        for name, numbers in vars(data.normalization).items():
            if len(numbers) != config.model.in_channels:
                yield f"data.normalization.{name}", f"{len(numbers)} numbers", channels


def _check_places(config: Config) -> Iterator[Conflict]:
    data, validation = config.data, config.data.validation
    if data.csv is not None:
        if (data.images, data.masks, validation.images) != ("images", "masks", None):
            yield "data.csv", "images or masks too", "only those in the table"
        if data.skip_unlabelled:
            yield "data.csv", "data.skip_unlabelled too", "only one; remove rows from the table"
        if data.exclude:
            yield "data.csv", "data.exclude too", "only one of them; remove rows from the table"
        if data.instances is not None:
            expected = (
                "only one of them: a table cannot contain label images; use folders, or remove "
                "data.instances and set loss.border.classes if loss.border needs it"
            )
            yield "data.csv", "data.instances too", expected
    if data.channels is not None and (
        data.images != "images" or data.csv is not None or validation.images is not None
    ):
        yield "data.channels", "images from another setting too", "only one of them"
    patterns = list(data.channels or ())
    for where, some in (("data", data), ("data.validation", validation)):
        masks = some.masks.values() if isinstance(some.masks, dict) else [some.masks]
        places = [one for one in (some.images, *masks, some.instances) if one]
        counts = [1 if isinstance(one, str) else len(one) for one in places]
        if len({*counts} - {1}) > 1:
            got = f"{join_some([*map(str, counts)])} places"
            yield where, got, "as many of masks and label images as of images, or one"
        patterns += [one for some in places for one in ([some] if isinstance(some, str) else some)]
    for place in patterns:
        if unknown := set(re.findall(r"\{.*?\}", place)) - {"{stem}", "{case}"}:
            yield "data", f"{unknown.pop()} in {place!r}", "only {stem} and {case}"
        elif "{stem}" not in place and Path(place).suffix.lower() in SUFFIXES:
            example = place.replace("*", "{stem}")
            yield "data", repr(place), f"a folder or a pattern with {{stem}}, such as {example!r}"


def _check_validation(config: Config) -> Iterator[Conflict]:
    data, validation = config.data, config.data.validation
    settings = {name: one for name, one in vars(validation).items() if name != "seed"}
    given = [name for name, one in settings.items() if one is not None and one is not False]
    ways = (
        {"none"},
        {"fraction"},
        {"stems"},
        {"split"},
        {"folds"},
        {"folds", "fold"},
        {"images", "masks"},
    )
    if set(given) - {"instances", "group"} not in ways:
        expected = "one of fraction, stems, split, folds with fold, images with masks, or none"
        yield "data.validation", ", ".join(given) or "nothing", expected
    elif validation.folds is not None and (validation.fold or 0) >= validation.folds:
        yield "data.validation.fold", validation.fold, f"0 to {validation.folds - 1}"
    if validation.none:
        if config.train.patience is not None:
            yield "train.patience", config.train.patience, "null with data.validation none"
        if config.schedule.name == "plateau":
            yield "schedule.name", "plateau", "another one with data.validation none"
    if validation.stems == ():
        yield "data.validation.stems", "an empty list", "at least one stem"
    if validation.split is not None and data.csv is None:
        yield "data.validation.split", "no data.csv", "one with a column split"
    folders = validation.images is not None or validation.masks is not None
    if folders and isinstance(data.masks, dict) != isinstance(validation.masks, dict):
        got = f"{validation.masks!r} with data.masks {data.masks!r}"
        yield "data.validation.masks", got, "one pattern, or one for each class, as data.masks"
    if validation.instances is not None and not folders:
        expected = "one; data.instances is for the images of data.images"
        yield "data.validation.instances", "no data.validation.images", expected
    if validation.group is not None:
        if validation.fraction is None and validation.folds is None:
            yield "data.validation.group", repr(validation.group), "null without fraction or folds"
        try:
            re.compile(validation.group)
        except re.error as error:
            expected = f"a regular expression ({error})"
            yield "data.validation.group", repr(validation.group), expected


def _check_sampling(config: Config) -> Iterator[Conflict]:
    sampling, scale = config.sampling, config.augment.scale
    yield from _unknown_classes("sampling.rare_classes", sampling.rare_classes, config)
    if bool(sampling.rare_classes) != (sampling.rare_fraction > 0):
        got = f"rare_classes {list(sampling.rare_classes)}, rare_fraction {sampling.rare_fraction}"
        yield "sampling", got, "both rare_classes and a rare_fraction above 0, or neither"
    if config.augment.crop is None and (sampling.rare_classes or sampling.crops_per_image > 1):
        yield "sampling", "no augment.crop", "one for rare_classes and crops_per_image"
    if scale[0] > scale[1]:
        yield "augment.scale", list(scale), "the smaller number first"


def _unknown_classes(where: str, names: Iterable[str], config: Config) -> Iterator[Conflict]:
    if unknown := [name for name in names if name not in config.data.classes]:
        expected = f"names in data.classes: {', '.join(config.data.classes)}"
        yield where, ", ".join(unknown), expected


def _check_model(config: Config) -> Iterator[Conflict]:
    model, crop = config.model, list(config.augment.crop or ())
    geometry, overlap = model.geometry, tile_overlap(config)
    if model.padding == "valid" and model.encoder == "none":
        if model.upsampling == "bilinear":
            yield "model.upsampling", "bilinear", "conv_transpose with model.padding valid"
        smaller, larger = (
            [geometry.input_side(max(side - 2 * geometry.context + more, 1)) for side in crop]
            for more in (1 - geometry.output_stride, 0)
        )
        if crop != larger:
            expected = (
                f"a size that {len(model.widths)} levels can halve with model.padding valid, such "
                f"as {smaller} or {larger}"
            )
            yield "augment.crop", crop, expected
    # Tiles lie at multiples of the output stride.
    smallest = max(overlap, geometry.remainder) + geometry.output_stride + 2 * geometry.context
    if min(config.tiling.size) < smallest:
        expected = (
            f"at least {smallest} x {smallest} for an overlap of {overlap} and this network; or "
            "set a smaller tiling.overlap"
        )
        yield "tiling.size", list(config.tiling.size), expected


def _check_encoder(config: Config) -> Iterator[Conflict]:
    model, train = config.model, config.train
    if model.encoder == "none":
        for name, setting in (
            ("optimizer.encoder_lr", config.optimizer.encoder_lr),
            ("train.encoder_weights", train.encoder_weights),
            ("train.freeze_encoder_epochs", train.freeze_encoder_epochs or None),
        ):
            if setting is not None:
                expected = "a model.encoder, such as resnet34"
                if config.custom.network is not None:
                    expected = "null with a network of your own"
                yield name, setting, expected
        return
    num_levels = len(encoder_spec(model.encoder).channels)
    if len(model.widths) != num_levels:
        expected = (
            f"{num_levels} numbers with model.encoder {model.encoder}, one for each level of the "
            f"decoder, such as {[32 * 2**i for i in range(num_levels)]}"
        )
        yield "model.widths", list(model.widths), expected
    for name, default, reason in (
        ("downsampling", "max_pool", "has its own"),
        ("padding", "same", "is padded"),
        ("dropout", 0, "takes none"),
    ):
        if (got := getattr(model, name)) != default:
            expected = f"the default, {default}: model.encoder {model.encoder} {reason}"
            yield f"model.{name}", got, expected
    if train.encoder_weights is not None and train.init_from is not None:
        expected = "one of them: init_from contains an encoder"
        yield "train", "encoder_weights and init_from", expected
    if train.freeze_encoder_epochs and train.encoder_weights is None and train.init_from is None:
        expected = (
            "0 without train.encoder_weights or train.init_from: random weights must be trained"
        )
        yield "train.freeze_encoder_epochs", train.freeze_encoder_epochs, expected


def _check_average(config: Config) -> Iterator[Conflict]:
    train = config.train
    if train.score_raw_weights and train.ema_decay is None:
        yield "train.score_raw_weights", "true", "false without train.ema_decay: no others exist"
    elif train.score_raw_weights and config.data.validation.none:
        yield "train.score_raw_weights", "true", "false with data.validation none"


def _check_loss(config: Config) -> Iterator[Conflict]:
    loss, border, classes = config.loss, config.loss.border, config.data.classes
    if loss.cross_entropy == 0 == loss.dice:
        yield "loss", "0 for cross_entropy and dice", "at least one of them above 0"
    weights = loss.class_weights
    if isinstance(weights, tuple) and (len(weights) != len(classes) or sum(weights) == 0):
        expected = f"{len(classes)} numbers, one for each of data.classes, not all 0"
        yield "loss.class_weights", list(weights), expected
    if border is None:
        return
    if loss.cross_entropy == 0:
        yield "loss.border", "loss.cross_entropy 0", "above 0: the border is part of it"
    yield from (unknown := list(_unknown_classes("loss.border.classes", border.classes, config)))
    if not unknown and len(border.classes) >= len(classes):
        expected = "fewer classes than data.classes: one must be the background between the cells"
        yield "loss.border.classes", ", ".join(border.classes), expected
    if not border.classes and config.data.instances is None:
        last = list(classes)[-1]
        expected = f"label images in data.instances, or loss.border.classes, such as [{last}]"
        yield "loss.border", "no cells", expected


def _check_schedule(config: Config) -> Iterator[Conflict]:
    schedule = config.schedule
    if schedule.name == "one_cycle" and schedule.warmup_epochs:
        got, expected = f"{schedule.warmup_epochs:g}", "0 with one_cycle, which has its own warm-up"
        yield "schedule.warmup_epochs", got, expected
    for key, name, example in (
        ("power", "polynomial", 0.9),
        ("patience", "plateau", 10),
        ("factor", "plateau", 0.5),
    ):
        value = getattr(schedule, key)
        if value is None and schedule.name == name:
            expected = f"a number (such as {example}) with schedule.name {name}"
            yield f"schedule.{key}", "null", expected
        if value is not None and schedule.name != name:
            yield f"schedule.{key}", value, f"null with schedule.name {schedule.name}"


def _check_memory(config: Config) -> Iterator[Conflict]:
    """Yield sizes that no machine has the memory for."""
    model, batch, crop = config.model, config.train.batch_size, config.augment.crop or (1, 1)
    numbers = model.in_channels * crop[0] * crop[1]
    if batch * numbers > (largest := 2**34):  # 64 GiB of float32
        expected = f"at most {largest // numbers} with crops of {crop[0]} x {crop[1]} pixels"
        yield "train.batch_size", batch, f"{expected} and {model.in_channels} channels"
    # Each level of encoder and decoder has about four convolutions of 3 x 3 that keep the width.
    if (weights := 36 * sum(width**2 for width in model.widths)) > 10**10:
        expected = f"smaller numbers: the network would have about {weights / 1e9:.0f} billion"
        yield "model.widths", list(model.widths), f"{expected} weights"


def _check_run(config: Config) -> Iterator[Conflict]:
    name, train = config.name, config.train
    if (
        not re.fullmatch(r"[\w.+-]{1,200}", name)
        or len(name.encode()) > 200
        or name.strip(".") == ""
    ):
        expected = (
            "letters, digits, '.', '_', '+' and '-' only, at most 200: it names the folder of the "
            "run; set name, or rename the config file"
        )
        yield "name", repr(name), expected
    if train.monitor not in (known := monitor_names(config.data.classes)):
        near = difflib.get_close_matches(train.monitor, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        yield "train.monitor", repr(train.monitor), f"a score of the validation; {hint}"
    if (train.epochs is None) == (train.minutes is None):
        if train.epochs is None:
            got, expected = "nothing", "a number such as 50; or set train.minutes, such as 10"
            yield "train.epochs", got, expected
        else:
            got = f"{train.minutes:g} with train.epochs {train.epochs}"
            yield "train.minutes", got, "one of them; set train.epochs=null"
    if train.seed + train.seeds > 2**32:
        yield "train.seeds", train.seeds, "fewer: the last seed would be above 2**32 - 1"
    if train.activation_checkpointing and train.compile:
        yield "train", "activation_checkpointing and compile", "one of them"
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", train.device):
        yield "train.device", repr(train.device), "auto, cpu, cuda, cuda:N or mps"


def _check_custom(config: Config) -> Iterator[Conflict]:
    custom, train = config.custom, config.train
    if custom.network is not None and train.activation_checkpointing:
        yield "train.activation_checkpointing", "true", "false with a network of your own"
    if custom.transform is not None and config.loss.border is not None:
        yield "loss.border", "a transform of your own", "null, as it does not change the weights"
