"""Statistics of the pairs -> errors and warnings of `unet check`."""

from collections.abc import Sequence

import numpy as np

from unet.config.schema import Config
from unet.data.classes import ClassMap, Colour
from unet.data.masks import read_palette
from unet.data.pairing import Pair
from unet.inspection.statistics import PairStatistics
from unet.runtime.text import group_messages


def find_errors(config: Config, train: PairStatistics, val: PairStatistics) -> list[str]:
    """List what in the images does not fit the config."""
    errors = []
    for name, statistics in (("training", train), ("validation", val)):
        if name == "validation" and config.data.validation.none:
            continue
        if not len(statistics):
            errors.append(f"data.validation: leaves no {name} image; correct it, or add images")
        elif not statistics.class_pixels.any():
            errors.append(
                f"data.ignore: every pixel of the {name} masks is ignored; correct data.ignore or "
                "the masks"
            )
    for i, name in enumerate(config.data.classes):
        monitors_class = config.train.monitor in (f"iou_{name}", f"dice_{name}")
        if monitors_class and len(val) and not val.class_pixels[:, i].any():
            errors.append(
                f"train.monitor: got {config.train.monitor}, but no validation mask has a pixel of "
                f"{name}, so that there is no such score; correct it or data.validation"
            )
    border = config.loss.border
    if border is not None and len(train) and train.num_cells.max() < 2:
        errors.append(
            "loss.border: the weights lie between two cells, and no training mask has two; correct "
            + ("loss.border.classes" if border.classes else "data.instances")
        )
    sizes = np.unique(train.sizes, axis=0).tolist()
    same = config.augment.crop is None and config.custom.transform is None
    if same and config.train.batch_size > 1 and len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:5])
        errors.append(
            f"augment.crop: got null for training images of {len(sizes)} sizes ({shown}"
            f"{', ...' if len(sizes) > 5 else ''}), expected one size within a batch; set "
            "augment.crop=[HEIGHT,WIDTH] or train.batch_size=1"
        )
    return errors


def find_palette_errors(
    classes: ClassMap, pairs: Sequence[Pair], statistics: PairStatistics
) -> list[str]:
    """Report masks whose palettes give other colours to the indices of classes than most do."""
    _, which = np.unique(statistics.palettes, return_inverse=True)
    counts = np.bincount(which)
    if classes.coloured or len(counts) < 2:
        return []
    usual: dict[int, tuple[Colour, str]] = {}  # index -> colour, and a mask with it
    messages: list[tuple[str, str]] = []
    for number in np.argsort(-counts, kind="stable").tolist():
        rows = np.flatnonzero(which == number).tolist()
        first = pairs[rows[0]]
        palette = read_palette(first.masks[0], first.page) or ()
        # A palette says nothing about classes that its masks do not contain.
        used = statistics.class_pixels[rows].any(0).tolist()
        for i in (one for one, is_used in zip(classes.values, used, strict=True) if is_used):
            if not isinstance(i, int) or not 0 <= i < len(palette):
                continue
            colour, mask = usual.setdefault(i, (palette[i], first.masks[0]))
            if colour != palette[i]:
                text = (
                    f"got the palette's colour {list(palette[i])} for the index {i}, expected "
                    f"{list(colour)} as in {mask}, as data.classes gives indices"
                )
                messages += [(pairs[row].masks[0], text) for row in rows]
                break
    if messages and len(usual) == len(classes.values):
        colours = [
            f"{name}: {list(usual[value][0])}"
            for name, value in zip(classes.names, classes.values, strict=True)
            if isinstance(value, int)
        ]
        advice = f"; data.classes by colour that would fit: {{{', '.join(colours)}}}"
        return [message + advice for message in group_messages(messages, "masks")]
    return group_messages(messages, "masks")


def find_warnings(
    config: Config,
    train_pairs: Sequence[Pair],
    val_pairs: Sequence[Pair],
    train: PairStatistics,
    val: PairStatistics,
) -> list[str]:
    """List what is allowed, but likely a mistake."""
    warnings = []
    present = np.concatenate([train.class_pixels, val.class_pixels]) > 0
    if len(single := np.flatnonzero(present.sum(1) <= 1)):
        first = int(single[0])
        pair = train_pairs[first] if first < len(train) else val_pairs[first - len(train)]
        warnings.append(
            f"{len(single)} of {len(present)} masks contain only one class, such as {pair.masks[0]}"
        )
    warnings += _find_constant_images([*train_pairs, *val_pairs], np.concatenate([train, val]))
    remarks = [
        (pair.images[0], remark)
        for pairs, statistics in ((train_pairs, train), (val_pairs, val))
        for i in np.flatnonzero(statistics.remarks != b"").tolist()
        for pair, remark in [(pairs[i], statistics.remarks[i].decode(errors="replace"))]
    ]
    warnings += group_messages(remarks, "images")
    types = {*train.types.tolist(), *val.types.tolist()}
    dtypes = sorted({name.decode().rpartition(" ")[2] for name in types})
    if len(dtypes) > 1:
        warnings.append(
            f"the images have the dtypes {' and '.join(dtypes)}: integers are scaled to 0 to 1 by "
            "the range of their dtype, floats are not scaled"
        )
    if config.data.stacks and config.data.validation.stems is None:
        warnings += _warn_of_split_stacks(train_pairs, val_pairs)
    for name, statistics, consequence in (
        ("validation", val, ", so that it has no score"),
        ("training", train, ""),
    ):
        for label, pixels in zip(config.data.classes, statistics.class_pixels.sum(0), strict=True):
            if not pixels and len(statistics):
                warnings.append(f"data.classes.{label}: no {name} mask contains it{consequence}")
    return warnings


def _find_constant_images(pairs: Sequence[Pair], statistics: np.ndarray) -> list[str]:
    """List images whose values vary by less than a hundredth of what is usual."""
    counts = np.maximum(1, statistics["values"])
    means = statistics["sums"] / counts
    deviations = np.sqrt((statistics["squares"] / counts - means**2).clip(0)).max(1, initial=0)
    constant = np.flatnonzero(len(pairs) and deviations < 0.01 * np.median(deviations)).tolist()
    text = "is nearly constant, unlike the other images; remove it if it shows nothing"
    return group_messages([(pairs[i].images[0], text) for i in constant], "images")


def _warn_of_split_stacks(train_pairs: Sequence[Pair], val_pairs: Sequence[Pair]) -> list[str]:
    train_stacks, val_stacks = ({pair.images for pair in some} for some in (train_pairs, val_pairs))
    if not train_stacks & val_stacks:
        return []
    if len(train_stacks | val_stacks) > 1:
        advice = "data.validation.group='^[^#]+' keeps each stack together"
    else:
        advice = (
            f"hold out a block of pages with data.validation.stems=[{train_pairs[0].stem!r}, ...]"
        )
    return [
        f"one stack has pages in both training and validation, and neighbours look alike; {advice}"
    ]
