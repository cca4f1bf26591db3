"""A folder of images and masks -> the lines of a config that say where its files are."""

import csv
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from unet.data.image_io import read_header
from unet.data.image_types import SUFFIXES
from unet.data.masks import read_codes
from unet.data.pairing import Pair, find_pairs
from unet.data.table import read_table
from unet.inspection.discovery import Pairing, find_pairings, read_each
from unet.inspection.held_out import (
    describe_split_lists,
    describe_test_folders,
    split_of,
    without_split,
)
from unet.inspection.mask_values import are_label_images, count_values


class FoundFiles(NamedTuple):
    """The YAML lines that say where the files are, and the pairs of these files."""

    lines: list[str]
    pairs: list[Pair]
    validation: str | None = None
    """The line of the split, if files or table have one."""
    val_pairs: Sequence[Pair] = ()


def find_files(root: Path) -> FoundFiles:
    """Find a table or folders of images and masks.

    Raises:
        ValueError: if there are none.
    """
    for path in sorted(root.glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
        if {"image", "mask"} <= set(header):
            return _from_table(root, path.name)
    if pairings := find_pairings(root):
        return _from_folders(root, pairings)
    raise ValueError(
        f"{root}: got no images and masks with corresponding names, expected files of the same "
        "names in two folders, names that differ by a suffix such as _mask, or a folder for each "
        f"image ({', '.join(sorted(SUFFIXES))}); rename them, or write a data.csv with the columns "
        "image and mask"
    )


def _from_table(root: Path, name: str) -> FoundFiles:
    pairs, errors = read_table(root, name)
    lines = [f"  # Error: {error}" for error in errors[:5]]
    lines.append(f"  csv: {quote(name)}")
    splits = {pair.split for pair in pairs}
    for kind in ("val", "test"):
        held_out = sorted(split for split in splits if split_of(split) == kind)
        if "train" in splits and held_out:
            if kind == "test":
                lines.append("  # There is no validation split: test images decide on best.pt.")
            trained, scored = (
                [pair for pair in pairs if pair.split == split] for split in ("train", held_out[-1])
            )
            line = f"  validation: {{split: {quote(held_out[-1])}}}"
            return FoundFiles(lines, trained, line, scored)
    return FoundFiles(lines, pairs)


def _from_folders(root: Path, pairings: Sequence[Pairing]) -> FoundFiles:
    held_out, candidates = list[Pairing](), pairings
    if any(split_of(one.images) == "train" for one in pairings):
        # Images of one split and masks of another may have the same names.
        splits = [(one, _splits_of(one, root)) for one in pairings]
        held_out = [one for one, names in splits if names == {"val"}]
        candidates = [one for one, names in splits if names == {"train"}] or pairings
    # Among those with most files, the images whose patterns leave fewest files without a partner.
    largest = [one for one in candidates if len(one.files) == len(candidates[0].files)]
    best = largest[0]
    if len(largest) > 1:
        best = min(largest, key=lambda one: one.count_single())
    enough = 0.9 * len(best.files)
    same = [one for one in candidates if one.images == best.images and len(one.files) >= enough]
    # A pattern that leaves out some of the same masks is no other set of masks.
    files = [one.files.items() for one in same]
    same = [one for one in same if not any(one.files.items() < others for others in files)]
    best = max(same, key=_rank_masks) if len(same) > 1 else same[0]
    images = [image for image, _ in best.files.values()]
    stacks = any(header.pages > 1 for header in read_each(read_header, images[:9]))
    labels = _find_label_images(same, best)
    warnings: list[str] = []
    pairs, errors = find_pairs(root, [best.images], best.masks, stacks, warnings, labels)
    # Several patterns may describe the same files: one of them is enough.
    others = {frozenset(one.files.values()): one.masks for one in reversed(same)}
    others.pop(frozenset(best.files.values()), None)
    unused = sorted(masks for masks in others.values() if masks != labels)
    lines = [
        f"  # Images that have a mask: {len(pairs)}.",
        *(f"  # Error: {error}" for error in errors),
        *(f"  # Warning: {warning}" for warning in warnings),
        *(
            f"  # Other masks of the same images; to use them: masks: {quote(one)}"
            for one in unused
        ),
        *describe_test_folders(root, [one for one in pairings if one.images != best.images]),
        *describe_split_lists(root, pairs),
        f"  images: {quote(best.images)}",
        f"  masks: {quote(best.masks)}",
    ]
    if labels:
        lines.append("  # Label images, for unet evaluate --instances and loss.border.")
        lines.append(f"  instances: {quote(labels)}")
    if stacks:
        lines.append("  stacks: true")
    if not held_out:
        return FoundFiles(lines, pairs)
    style = without_split(best.masks)
    scored = max(held_out, key=lambda one: (without_split(one.masks) == style, len(one.files)))
    places = f"images: {quote(scored.images)}, masks: {quote(scored.masks)}"
    if labels := _find_label_images(held_out, scored):
        places += f", instances: {quote(labels)}"
    val_pairs, _ = find_pairs(root, [scored.images], scored.masks, stacks)
    return FoundFiles(lines, pairs, f"  validation: {{{places}}}", val_pairs)


def _splits_of(pairing: Pairing, root: Path) -> set[str]:
    """The splits that folders and patterns name."""
    folders = {Path(path).parent for both in pairing.files.values() for path in both}
    places = [folder.relative_to(root).as_posix() for folder in folders]
    return {split_of(place) for place in [pairing.images, pairing.masks, *places]} - {""}


def _some_masks(pairing: Pairing) -> list[tuple[str, str, int | None]]:
    """Image, mask and page of the mask, of about ten masks spread over all."""
    files = [pairing.files[stem] for stem in sorted(pairing.files)]
    some = files[:: max(1, len(files) // 10)]
    pages = read_each(lambda both: (*both, 0 if read_header(both[1]).pages > 1 else None), some)
    return list(pages)


def _find_label_images(pairings: Sequence[Pairing], masks: Pairing) -> str | None:
    """The pattern of files that number the objects of these masks; None if there are none."""
    some = _some_masks(masks)
    drawn = [*read_each(read_values, [(mask, page) for _, mask, page in some])]
    for one in pairings:
        labels = dict(one.files.values())
        if one.masks == masks.masks or not labels.keys() >= dict(masks.files.values()).keys():
            continue
        numbers = [*read_each(read_values, [(labels[image], page) for image, _, page in some])]
        alike = len(drawn) == len(numbers) and [
            mask.shape == objects.shape and np.array_equal(mask > 0, objects > 0)
            for mask, objects in zip(drawn, numbers, strict=True)
        ]
        if alike and np.mean(alike) > 0.8 and are_label_images(numbers):
            return one.masks
    return masks.masks if are_label_images(drawn) else None


def read_values(mask: tuple[str, int | None]) -> np.ndarray:
    """Read the values of a mask (file and page) without any conversion."""
    return read_codes(*mask)[1]


def _rank_masks(pairing: Pairing) -> tuple[bool, bool, bool, int, int]:
    """A sort key for masks of the same images: the most likely masks of classes rank highest.

    They differ between images, unlike a field of view; they hold classes, not instances; they are
    named like masks; their path is similar to that of the images; they hold many classes.
    """
    masks = [(mask, page) for _, mask, page in _some_masks(pairing)]
    drawn = [*read_each(read_values, masks)]
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


def quote(text: str) -> str:
    """Text as YAML reads it back, also within brackets."""
    plain = re.fullmatch(r"[\w./][\w./ -]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
