"""A folder of images and masks -> a commented config that can be trained with as it is."""

import glob
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from unet.build import build_training_reader
from unet.config.loader import config_from_dict
from unet.data.annotations.target import MARK, VALIDATION
from unet.data.image_io import read_header
from unet.data.image_types import Header
from unet.data.masks import are_alike
from unet.data.pairing import Pair, find_pairs
from unet.inspection.discovery import read_each
from unet.inspection.duplicates import find_similar, propose_group
from unet.inspection.evidence import find_evidence
from unet.inspection.find_files import FoundFiles, find_files, quote
from unet.inspection.groups import propose_split
from unet.inspection.mask_files import (
    are_label_images,
    has_soft_edges,
    may_number_objects,
    read_values,
)
from unet.inspection.mask_values import (
    Value,
    ValueCounts,
    count_values,
    find_classes,
)
from unet.inspection.outliers import find_outliers
from unet.inspection.propose_training import MINUTES, UNEQUAL, propose_training
from unet.inspection.statistics import collect_statistics
from unet.runtime.files import no_such
from unet.runtime.progress import show_progress
from unet.runtime.text import plural

_MAX_SAMPLES = 1000
"""At most this many pairs are opened."""


class KnownData(NamedTuple):
    """What `unet import` knows of a folder that it has written.

    Args:
        classes: names and mask values.
        colours: of the classes that have one in the annotation tool.
        ignored: whether the masks have the value 255, to be ignored.
        instances: whether there are label images.
        validation: the file that lists the validation images; None for a random split.
    """

    classes: Mapping[str, int]
    colours: Mapping[str, Sequence[int]]
    ignored: bool
    instances: bool
    validation: str | None

    @classmethod
    def read(cls, folder: Path) -> "KnownData | None":
        """Return what an import wrote down; None if it has not written the folder."""
        try:
            mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
            classes, colours = dict[str, int](mark["classes"]), dict(mark["colours"])
            ignored = bool(mark["ignored"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        validation = VALIDATION if (folder / VALIDATION).is_file() else None
        return cls(classes, colours, ignored, (folder / "instances").is_dir(), validation)

    def find_files(self, folder: Path) -> FoundFiles:
        """Return the lines and pairs of the folder."""
        labels = "instances" if self.instances else None
        pairs, _ = find_pairs(folder, ["images"], "masks", instances=labels)
        lines = ["  images: images", "  masks: masks"]
        lines += ["  instances: instances"] if self.instances else []
        if self.validation is None or len(pairs) == 1:
            return FoundFiles(lines, pairs)
        stems = (folder / self.validation).read_text(encoding="utf-8", errors="surrogateescape")
        listed = set(stems.splitlines())
        split = [[one for one in pairs if (one.stem in listed) == held] for held in (False, True)]
        return FoundFiles(lines, split[0], f"  validation: {{stems: {self.validation}}}", split[1])

    def describe_classes(self, values: ValueCounts) -> tuple[list[str], list[str]]:
        """Return the lines of the classes, and the names of rare classes."""
        fractions = {
            name: values.pixels[value] / values.pixels.total()
            for name, value in self.classes.items()
        }
        given = ", ".join(f"{quote(name)}: {value}" for name, value in self.classes.items())
        lines = [f"  classes: {{{given}}}"]
        if self.colours:
            shown = (f"{quote(name)}: {[*colour]}" for name, colour in self.colours.items())
            lines.append(f"  colours: {{{', '.join(shown)}}}")
        lines += ["  ignore: [255]"] if self.ignored else []
        return lines, [name for name, fraction in fractions.items() if 0 < fraction < 0.02][:20]


_IF_OBJECTS = (
    "  # Each number is in one place of its mask. If they number objects: classes: "
    '{background: 0, object: "1-65535"}'
)


def propose(folder: Path, name: str, minutes: float = MINUTES) -> str:
    """Examine a folder of images and masks, and write a config named `name` for it.

    Args:
        folder: with images and masks.
        name: of the config.
        minutes: length of the training.

    Returns:
        YAML, with comments on what was found and what has to be checked.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no readable images with masks are found in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(no_such(folder, "folder"))
    known = KnownData.read(folder)
    lines, pairs, validation, val_pairs, class_names, tests = (
        find_files(folder) if known is None else known.find_files(folder)
    )
    if not pairs:
        raise ValueError(f"{folder}: found no image with a mask; {' '.join(lines)}")
    exclude, pairs = _leave_out(folder, pairs, tests) if known is None else ([], pairs)
    some = _spread(pairs)
    examined = show_progress([*some, *_spread(val_pairs)], "examine", "mask")
    values = count_values((pair.masks[0], pair.page) for pair in examined)
    headers = list(read_each(read_header, [pair.images[0] for pair in some]))
    sizes = np.array([header.upright_size for header in headers])
    if not sizes.size or not values.pixels:
        raise ValueError(f"{folder}: none of the images and masks can be read; replace the files")
    if known is not None:
        classes, rare = known.describe_classes(values)
    elif class_names:
        classes, rare = _propose_class_masks(class_names, some)
    else:
        few = [(pair.masks[0], pair.page) for pair in some[:: max(1, len(some) // 30)]]
        drawn = [*read_each(read_values, few)]
        classes, rare = _propose_classes(values, are_label_images(drawn))
        if may_number_objects(drawn) and not any("object:" in line for line in classes):
            classes.insert(0, _IF_OBJECTS)
    channels, image_lines = _propose_channels(headers)
    if len(pairs[0].images) > 1:
        channels = len(pairs[0].images)
    head = f"# {name}: proposed by unet init. Check it; class names, for example, are guesses."
    if known is not None:
        head = f"# {name}: proposed by unet import."
    data = [
        "data:",
        f"  root: {quote(folder.as_posix())}",
        *lines,
        *exclude,
        *_propose_sizes(some),
        *classes,
        *image_lines,
        *(propose_split(pairs) if validation is None else [validation]),
    ]
    given = any("normalization:" in line for line in image_lines)
    text = "\n".join([*data, f"model: {{in_channels: {channels}}}", "train: {epochs: 1}"])
    reader = build_training_reader(config_from_dict({"name": name, **yaml.safe_load(text)}))
    evidence = find_evidence(some, reader)
    is_map = any(header.has_place or header.nodata is not None for header in headers)
    if evidence.spread > UNEQUAL and not given and not is_map:
        data += [
            f"  # The mean brightness of images varies {evidence.spread:.1f} times as much as the "
            "brightness within one.",
            "  normalization: image",
        ]
    training = propose_training(sizes, len(pairs), channels, rare, evidence, minutes)
    notes = _find_errors(name, "\n".join([*data, *training]), [*some, *_spread(val_pairs)])
    return "\n".join([head, *notes, "", *data, "", *training, ""])


def _leave_out(
    folder: Path, pairs: Sequence[Pair], tests: Sequence[str]
) -> tuple[list[str], list[Pair]]:
    """The lines of `exclude`, and the pairs without those that are unlike all others."""
    outliers = find_outliers(_spread(pairs))
    lines, patterns = [], [*tests]
    for pair, unlike in outliers:
        files = [Path(path).relative_to(folder).as_posix() for path in pair.files]
        patterns += map(glob.escape, files)
        lines.append(
            f"  # Left out, because {' and '.join(unlike)} are unlike all others: {files[0]}"
        )
    if patterns:
        lines.append(f"  exclude: [{', '.join(map(quote, patterns))}]")
    left_out = {pair.stem for pair, _ in outliers}
    return lines, [pair for pair in pairs if pair.stem not in left_out]


def _propose_sizes(pairs: Sequence[Pair]) -> list[str]:
    """The lines of `exif` and `resize_masks`, if masks have another size than their images.

    They are those of images before EXIF turns them, or several are smaller or larger copies.
    """
    headers = [
        *read_each(lambda pair: [read_header(pair.images[0]), read_header(pair.masks[0])], pairs)
    ]
    sizes = [(image.upright_size, mask.upright_size) for image, mask in headers]
    unequal = [(image, mask) for image, mask in sizes if image != mask]
    turned = [
        image.size == mask.size for image, mask in headers if image.upright_size != image.size
    ]
    if unequal and len(turned) >= len(unequal) and all(turned):
        return [
            f"  # EXIF turns {plural(len(turned), 'image')}, but the masks were drawn before that.",
            "  exif: ignore",
        ]
    if not sum(are_alike(*both) for both in unequal) > 1:
        return []
    return [
        f"  # {len(unequal)} of {len(pairs)} masks have another size than their image. To those of "
        "the same aspect",
        "  # ratio, the nearest pixel applies; check that they show the same part of the image.",
        "  resize_masks: true",
    ]


def _find_errors(name: str, text: str, pairs: Sequence[Pair]) -> list[str]:
    """Comments on what `unet check` would refuse in the examined pairs, and on similar images."""
    config = config_from_dict({"name": name, **yaml.safe_load(text)})
    reader = build_training_reader(config)
    collected = collect_statistics(pairs, reader)
    errors = [*collected.unreadable, *collected.errors]
    readable, statistics = [pairs[i] for i in collected.kept], collected.statistics
    similar = find_similar(reader, readable, readable, statistics, statistics)
    return [
        *(f"# Error: {' '.join(error.split())}" for error in errors),
        *propose_group(config, readable, similar),
    ]


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    count = min(len(pairs), _MAX_SAMPLES)
    return [pairs[i * len(pairs) // count] for i in range(count)]


def _propose_classes(values: ValueCounts, numbered: bool) -> tuple[list[str], list[str]]:
    """The lines of the classes, and the names of rare classes."""
    if numbered:
        highest = max(value for value in values.pixels if isinstance(value, int))
        most = 65535 if highest <= 65535 else 2**31 - 1
        lines = [
            f"  # The masks number their objects, up to {highest}: every number is foreground.",
            f'  classes: {{background: 0, object: "1-{most}"}}',
        ]
        if highest <= 10:
            lines.insert(
                1, "  # If they are classes, give each a name: {class_1: 1, class_2: 2 ...}"
            )
        return lines, []
    found = find_classes(values)
    total = values.pixels.total()
    shown = ", ".join(f"{name} {fraction:.1%}" for name, fraction in found.fractions.items())
    lines = [
        f"  # name: value in the masks. Fractions of the pixels: {shown}.",
        "  # Rename the classes; move a value that is not to be learned to ignore: [VALUE].",
        *(f"  # {note}" for note in found.notes),
    ]
    for some, use in (
        (found.absorbed, "become the nearest class, as JPEG or soft edges made them"),
        (found.ignore, "are ignored"),
    ):
        if some:
            count = sum(values.pixels[one] for one in some)
            lines.append(
                f"  # {count / total:.2%} of the pixels, of {plural(len(some), 'value')}, {use}."
            )
    given = ", ".join(f"{name}: {_to_yaml(group)}" for name, group in found.values.items())
    lines.append(f"  classes: {{{given}}}")
    if found.ignore:
        lines.append(f"  ignore: [{', '.join(_to_yaml([value]) for value in found.ignore)}]")
    if found.tolerance:
        lines.append(f"  tolerance: {found.tolerance}")
    return lines, [name for name, fraction in found.fractions.items() if fraction < 0.02][:20]


def _propose_class_masks(
    names: Sequence[str], pairs: Sequence[Pair]
) -> tuple[list[str], list[str]]:
    """The lines of classes with a mask file each, and the names of rare classes."""
    fractions = {}
    for i, name in enumerate(names):
        pixels = count_values((pair.masks[i], pair.page) for pair in pairs).pixels
        large = sum(
            count
            for value, count in pixels.items()
            if isinstance(value, int) and (value == 1 or value > 127)
        )
        fractions[name] = large / pixels.total()
    shown = ", ".join(f"{name} {fraction:.1%}" for name, fraction in fractions.items())
    given = ", ".join(f"{quote(name)}: {i}" for i, name in enumerate(["background", *names]))
    lines = [
        f"  # One mask file for each class and image. Fractions of the pixels: {shown}.",
        f"  classes: {{{given}}}",
    ]
    few = ((mask, pair.page) for pair in pairs[:: max(1, len(pairs) // 10)] for mask in pair.masks)
    if any(map(has_soft_edges, read_each(read_values, few))):
        lines += [
            "  # They have soft edges, as JPEG makes them: 128 and above is the class.",
            "  tolerance: 127",
        ]
    return lines, [name for name, fraction in fractions.items() if fraction < 0.02]


def _propose_channels(headers: Sequence[Header]) -> tuple[int, list[str]]:
    """in_channels, and the lines about the images."""
    modes = Counter(f"{header.mode}, {header.dtype}" for header in headers)
    # The values of a map mean the same in all images, and prediction in windows cannot clip them.
    is_map = any(header.has_place or header.nodata is not None for header in headers)
    deep = any(header.bits > 8 for header in headers) and not is_map
    bands = Counter(_usual_channels(header) for header in headers)
    channels = max(bands, key=lambda count: (bands[count], count), default=3)
    if 3 in bands and channels == 1:
        channels = 3
    shown = ", ".join(f"{mode} ({count})" for mode, count in modes.most_common(4))
    lines = [f"  # Mode and dtype of the images: {shown}."]
    if deep:
        lines.append(
            "  # More than 8 bits, often of different brightness; the alternative: dataset."
        )
        lines.append("  normalization: percentiles")
    return channels, lines


def _usual_channels(header: Header) -> int:
    """The channels of an image as `in_channels`: without alpha, and a palette as its colours."""
    return 3 if header.palette is not None else header.bands - header.alpha


def _to_yaml(values: Sequence[Value]) -> str:
    """The values of a class as a setting."""
    return json.dumps(values[0] if len(values) == 1 else ", ".join(map(str, values)))
