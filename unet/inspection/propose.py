"""A folder that nobody has described -> a commented config that trains as it stands."""

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from tqdm import tqdm

from unet.data.image_io import (
    SUFFIXES,
    count_pages,
    image_mode,
    image_size,
    open_image,
    skip_unreadable,
)
from unet.data.pairing import Pair, find_pairs, read_table
from unet.inspection.discovery import Pairing, find_pairings
from unet.inspection.mask_values import (
    Value,
    ValueCounts,
    are_label_images,
    count_values,
    find_classes,
)

_SAMPLES = 1000
"""Images and masks that are looked into at most."""

_SPLIT = re.compile(
    r"(?P<train>train(ing)?)|(?<![a-z])((?P<val>val(id(ation)?)?|dev|held)|(?P<test>test(ing)?))",
    re.IGNORECASE,
)

# What images of one patient may have in common: the first folders of their stems, or the beginning
# of a name that goes on.
_GROUPS = (
    ("^[^/]+(?=/)", "folders"),
    ("^[^/]+/[^/]+(?=/)", "folders"),
    ("^[^_/.]+(?=[_/.])", "the beginning of their names"),
)


def propose(folder: Path, name: str) -> str:
    """Look at a folder of images and masks and write a config for it.

    Args:
        folder: what `data.root` will be.
        name: of the config.

    Returns:
        YAML with comments: what was found, why it made think so, and what it cannot know.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no images with masks are found in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; check the path")
    root = folder
    where, pairs, validation, held_out = _find(root)
    if not pairs:
        raise ValueError(f"{folder}: got no image whose mask is there; {' '.join(where)}")
    some = _spread(pairs)
    looked_at = tqdm([*some, *_spread(held_out)], "look", leave=False, disable=None)
    values = count_values((pair.masks[0], pair.page) for pair in looked_at)
    sizes = np.array([*skip_unreadable(image_size, [pair.images[0] for pair in some])])
    if not sizes.size or not values.pixels:
        raise ValueError(f"{folder}: got no image and mask that can be read; replace the files")
    few = some[:: max(1, len(some) // 30)]
    numbered = are_label_images(
        skip_unreadable(_as_they_are, [(one.masks[0], one.page) for one in few])
    )
    classes, rare = _classes(values, numbered)
    channels, normalization, about_images = _channels([pair.images[0] for pair in some])
    if validation is None:
        validation = _validation(pairs)
    return "\n".join(
        [
            f"# {name}: proposed by unet init; correct what it could not know, such as names.",
            "",
            "data:",
            f"  root: {_quoted(folder.as_posix())}",
            *where,
            *classes,
            *about_images,
            *normalization,
            *validation,
            "",
            *_training(sizes, len(pairs), channels, rare),
            "",
        ]
    )


class _Found(NamedTuple):
    """Where the files are."""

    lines: list[str]
    pairs: list[Pair]
    validation: list[str] | None = None
    """The line of the split, if there is one."""
    held_out: Sequence[Pair] = ()


def _find(root: Path) -> _Found:
    for path in sorted(root.glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
        if {"image", "mask"} <= set(header):
            return _from_table(root, path.name)
    if pairings := find_pairings(root):
        return _from_folders(root, pairings)
    raise ValueError(
        f"{root}: got no images with masks that their names tell, expected files of the same names "
        "in two folders, names that differ by a suffix such as _mask, or a folder for each image "
        f"({', '.join(sorted(SUFFIXES))}); rename them, or write a data.csv with the columns image "
        "and mask"
    )


def _from_table(root: Path, name: str) -> _Found:
    pairs, faults = read_table(root, name)
    splits = {pair.split for pair in pairs}
    lines = [f"  # Not so: {fault}" for fault in faults[:5]]
    lines.append(f"  csv: {_quoted(name)}")
    for split in ("val", "test"):
        held = sorted(name for name in splits if _split_of(name) == split)
        if "train" in splits and held:
            trained = [pair for pair in pairs if pair.split == "train"]
            if split == "test":
                lines.append("  # No other split to score on: best.pt is chosen by its images.")
            scored = [pair for pair in pairs if pair.split == held[-1]]
            line = f"  validation: {{split: {_quoted(held[-1])}}}"
            return _Found(lines, trained, [line], scored)
    return _Found(lines, pairs)


def _from_folders(root: Path, pairings: Sequence[Pairing]) -> _Found:
    held_out, candidates = list[Pairing](), pairings
    if any(_split_of(one.images) == "train" for one in pairings):
        # Images of one split and masks of another may have the same names.
        splits = [(one, _splits_of(one, root)) for one in pairings]
        held_out = [one for one, names in splits if names == {"val"}]
        candidates = [one for one, names in splits if names == {"train"}] or pairings
    # Of those with as many files, one whose patterns leave nothing over.
    alike = [one for one in candidates if len(one.files) == len(candidates[0].files)]
    best = min(alike[:4], key=lambda one: len(find_pairs(root, [one.images], one.masks)[1]))
    enough = 0.9 * len(best.files)
    same = [one for one in candidates if one.images == best.images and len(one.files) >= enough]
    best = max(same, key=_promise)
    images = [image for image, _ in best.files.values()]
    stacks = any(pages > 1 for pages in skip_unreadable(count_pages, images[:9]))
    labels = _label_images(same, best)
    notes: list[str] = []
    pairs, faults = find_pairs(root, [best.images], best.masks, stacks, notes, labels)
    lines = [f"  # {len(pairs)} image(s) have a mask of the same stem."]
    lines += [f"  # Not so: {fault}" for fault in faults]
    lines += [f"  # Note: {note}" for note in notes]
    # One of the patterns that name the same files.
    others = {frozenset(one.files.values()): one.masks for one in reversed(same)}
    others.pop(frozenset(best.files.values()), None)
    if besides := sorted(masks for masks in others.values() if masks != labels):
        lines.append(f"  # Other masks of the same images: {', '.join(besides)}")
    lines += [f"  images: {_quoted(best.images)}", f"  masks: {_quoted(best.masks)}"]
    if labels:
        lines.append("  # Numbers of the objects, for evaluate --instances and loss.border.")
        lines.append(f"  instances: {_quoted(labels)}")
    if stacks:
        lines.append("  stacks: true")
    if not held_out:
        return _Found(lines, pairs)
    style = _SPLIT.sub("", best.masks)
    scored = max(held_out, key=lambda one: (_SPLIT.sub("", one.masks) == style, len(one.files)))
    places = f"images: {_quoted(scored.images)}, masks: {_quoted(scored.masks)}"
    if labels := _label_images(held_out, scored):
        places += f", instances: {_quoted(labels)}"
    scored_pairs, _ = find_pairs(root, [scored.images], scored.masks, stacks)
    return _Found(lines, pairs, [f"  validation: {{{places}}}"], scored_pairs)


def _split_of(place: str) -> str:
    """train, val or test, by the name of a place; empty if it says nothing."""
    found = _SPLIT.search(place)
    return next(name for name, part in found.groupdict().items() if part) if found else ""


def _splits_of(pairing: Pairing, root: Path) -> set[str]:
    """The splits that folders and patterns name."""
    folders = {Path(path).parent for both in pairing.files.values() for path in both}
    places = [folder.relative_to(root).as_posix() for folder in folders]
    return {_split_of(place) for place in [pairing.images, pairing.masks, *places]} - {""}


def _some_masks(pairing: Pairing) -> list[tuple[str, str, int | None]]:
    """Image, mask, and which page of the mask, of about ten that are spread over all."""
    files = [pairing.files[stem] for stem in sorted(pairing.files)]
    some = files[:: max(1, len(files) // 10)]
    pages = skip_unreadable(lambda both: (*both, 0 if count_pages(both[1]) > 1 else None), some)
    return list(pages)


def _label_images(pairings: Sequence[Pairing], masks: Pairing) -> str | None:
    """Where files number the objects that the masks of the same images show; None for nowhere."""
    some = _some_masks(masks)
    drawn = [*skip_unreadable(_as_they_are, [(mask, page) for _, mask, page in some])]
    for one in pairings:
        labels = dict(one.files.values())
        if one.masks == masks.masks or not labels.keys() >= dict(masks.files.values()).keys():
            continue
        numbers = [
            *skip_unreadable(_as_they_are, [(labels[image], page) for image, _, page in some])
        ]
        alike = len(drawn) == len(numbers) and [
            mask.shape == objects.shape and np.array_equal(mask > 0, objects > 0)
            for mask, objects in zip(drawn, numbers, strict=True)
        ]
        if alike and np.mean(alike) > 0.8 and are_label_images(numbers):
            return one.masks
    return masks.masks if are_label_images(drawn) else None


def _as_they_are(mask: tuple[str, int | None]) -> np.ndarray:
    """Read a mask (file and page) as the file has it."""
    return np.asarray(open_image(*mask))


def _promise(pairing: Pairing) -> tuple[bool, bool, bool, int, int]:
    """Of several masks of the same images, what speaks for these, the most telling first.

    They are not the same in all images, as a field of view is; they hold classes, not instances;
    they are named so; they lie near the images; they hold many classes.
    """
    masks = [(mask, page) for _, mask, page in _some_masks(pairing)]
    drawn = [*skip_unreadable(_as_they_are, masks)]
    changes = [
        one.shape != other.shape or np.sum(one != other) > 0.1 * np.sum((one > 0) | (other > 0))
        for one, other in pairwise(drawn)
    ]
    values = count_values(masks)
    is_named = bool(re.search("mask|label|annot|seg", pairing.masks, re.IGNORECASE))
    near = sum(map(eq, pairing.images.split("/"), pairing.masks.split("/")))
    enough = 0.002 * values.pixels.total()
    classes = sum(count >= enough for count in values.pixels.values())
    return not changes or any(changes), values.most <= 40, is_named, near, classes


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
    count = min(len(pairs), _SAMPLES)
    return [pairs[i * len(pairs) // count] for i in range(count)]


def _classes(values: ValueCounts, numbered: bool) -> tuple[list[str], list[str]]:
    """The lines of the classes, and the names of those that are rare."""
    if numbered:
        highest = max(value for value in values.pixels if isinstance(value, int))
        return [
            f"  # Masks number their objects, up to {highest}: every number is foreground.",
            '  classes: {background: 0, object: "1-65535"}',
        ], []
    found = find_classes(values)
    shown = ", ".join(f"{name} {part:.1%}" for name, part in found.shares.items())
    lines = [
        f"  # name: value in the masks. Shares of the pixels: {shown}.",
        "  # Rename them; a value that is not to be learned belongs into ignore: [VALUE].",
    ]
    if stray := [*found.far, *found.near]:
        few = sum(values.pixels[one] for one in stray)
        ends = ["ignored"] * bool(found.far) + ["taken for the nearest class"] * bool(found.near)
        lines.append(
            f"  # {len(stray)} other value(s), in {few} of {values.pixels.total()} pixels, are "
            f"{' or '.join(ends)}."
        )
    given = ", ".join(f"{name}: {_value(group)}" for name, group in found.values.items())
    lines.append(f"  classes: {{{given}}}")
    if found.ignore:
        lines.append(f"  ignore: [{', '.join(_value([value]) for value in found.ignore)}]")
    if found.near:
        lines.append(f"  tolerance: {max(found.near.values())}")
    return lines, [name for name, part in found.shares.items() if part < 0.02][:20]


def _value(group: Sequence[Value]) -> str:
    if len(group) == 1:
        return str(group[0]) if isinstance(group[0], int) else f"[{', '.join(map(str, group[0]))}]"
    return f'"{", ".join(map(str, group))}"'


def _channels(paths: Sequence[str]) -> tuple[int, list[str], list[str]]:
    """in_channels, the line of the normalization, and the line of why."""
    modes = Counter(mode.partition(",")[0] for mode in skip_unreadable(image_mode, paths))
    grey = all(mode in {"1", "L", "LA", "I", "F"} or mode.startswith("I;16") for mode in modes)
    shown = ", ".join(f"{mode} ({count})" for mode, count in modes.most_common(4))
    deep = any(mode in {"I", "F"} or mode.startswith("I;16") for mode in modes)
    about = [f"  # Images of Pillow's kind {shown}."]
    if not deep:
        return (1 if grey else 3), [], about
    about.append("  # More than 8 bits: brightness may differ from image to image; or: dataset.")
    return (1 if grey else 3), ["  normalization: percentiles"], about


def _validation(pairs: Sequence[Pair]) -> list[str]:
    """The lines of a split by lot, by groups if folders or stems seem to be such."""
    lines = [
        "  # By lot. Images of one patient, slide or film belong on one side, or the scores",
        "  # flatter: name what they share with group: REGULAR EXPRESSION, or give stems: [...].",
    ]
    for pattern, what in _GROUPS:
        heads = [re.match(pattern, pair.stem) for pair in pairs]
        groups = {head[0] for head in heads if head}
        if all(heads) and 3 <= len(groups) < len(pairs):
            return [
                *lines,
                f"  # {len(groups)} groups by {what}, such as {min(groups)}.",
                f"  validation: {{fraction: 0.2, group: '{pattern}'}}",
            ]
    return [*lines, "  validation: {fraction: 0.2}"]


def _training(sizes: np.ndarray, count: int, channels: int, rare: Sequence[str]) -> list[str]:
    """The sections of augmentation, model and loop."""
    on_gpu = torch.cuda.is_available()
    smallest = int(np.median(sizes.min(1)))
    crop = max(32, min(512 if on_gpu else 256, smallest // 32 * 32))
    if on_gpu:
        memory = torch.cuda.mem_get_info()[0]
    elif hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    else:  # Windows does not say
        memory = 4 * 2**30
    widths = [64, 128, 256, 512, 1024] if on_gpu and count >= 200 else [32, 64, 128, 256]
    if count < 10:
        widths = [16, 32, 64, 128]
    # Training keeps about 30 numbers of 4 bytes for each pixel and channel of the first level.
    sample = crop * crop * widths[0] * 30 * 4
    batch = max(1, min(16 if on_gpu else 4, memory // 2 // sample, max(1, count // 2)))
    area = float(np.median(sizes.prod(1)))
    crops = max(1, min(16, round(area / crop**2 / 2)))
    steps = math.ceil(count * 0.8 * crops / batch)
    epochs = max(10, min(300, round((20000 if on_gpu else 2000) / steps)))
    grey = channels == 1
    flips = "flip_horizontal: true" + (
        ", flip_vertical: true, quarter_turns: true, elastic_std: 3" if grey else ""
    )
    device = "a GPU" if on_gpu else "a CPU"
    lines, sampling = [], []
    if crops > 1:
        lines.append(f"# Images are {area / crop**2:.0f} times as large as a crop.")
        sampling.append(f"crops_per_image: {crops}")
    if rare:
        lines.append("# Under 2 % of the pixels: every other crop is drawn around one of these.")
        sampling.append(f"rare_classes: [{', '.join(rare)}], rare_fraction: 0.5")
    if sampling:
        lines.append(f"sampling: {{{', '.join(sampling)}}}")
    height, width = np.median(sizes, axis=0).astype(int)
    return [
        *lines,
        f"# Median size {height} x {width}."
        + (" Grey images, taken to have no up and down." if grey else " Is there an up and down?"),
        f"augment: {{crop: [{crop}, {crop}], scale: [0.8, 1.25], {flips}, rotate: 10, "
        "brightness: 0.2, contrast: 0.2}",
        f"# For {count} images on {device}; wider and deeper with more.",
        f"model: {{in_channels: {channels}, widths: [{', '.join(map(str, widths))}]}}",
        f"# {steps} steps in each epoch, {steps * epochs} in all.",
        "schedule: {warmup_epochs: 1}",
        f"train: {{epochs: {epochs}, batch_size: {batch}, validate_every: {max(1, epochs // 30)}}}",
    ]


def _quoted(text: str) -> str:
    """Text as YAML reads it back, also within brackets."""
    plain = re.fullmatch(r"[\w./][\w./ -]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
