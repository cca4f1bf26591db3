"""A folder of images and masks -> the lines of a config that say where its files are."""

import csv
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from unet.data.file_list import list_files
from unet.data.image_io import read_header
from unet.data.image_types import DEFAULT_OPTIONS, SUFFIXES
from unet.data.pairing import MaskPlaces, Pair, Places, find_pairs, is_at
from unet.data.table import read_table
from unet.inspection.discovery import Pairing, find_pairings, read_each
from unet.inspection.held_out import (
    describe_split_lists,
    describe_test_folders,
    exclude_tests,
    rank_style,
    set_tests_apart,
    split_of,
    without_split,
)
from unet.inspection.mask_files import (
    find_class_masks,
    find_label_images,
    rank_masks,
    rank_names,
)
from unet.inspection.places import find_other_places
from unet.inspection.unpaired import describe_unpaired, find_object_masks

_BANDS = [
    "red",
    "green",
    "blue",
    "nir",
    "swir",
    "swir1",
    "swir2",
    "dapi",
    "gfp",
    "rfp",
    "cy3",
    "cy5",
]
"""Names of images with one band, in the order of the channels."""


class FoundFiles(NamedTuple):
    """The YAML lines that say where the files are, and the pairs of these files."""

    lines: list[str]
    pairs: list[Pair]
    validation: str | None = None
    """The line of the split, if files or table have one."""
    val_pairs: Sequence[Pair] = ()
    classes: Sequence[str] = ()
    """Classes with a mask file each, except for the background."""
    exclude: Sequence[str] = ()
    """Patterns of files to leave out, such as folders for testing."""


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
    paths = [*list_files(root)]
    if several := find_object_masks(root, paths):
        raise ValueError(several)
    tests, others = set_tests_apart(root, paths)
    try:
        pairings = find_pairings(root, others)
        if tests and not pairings:
            tests, pairings = [], find_pairings(root, paths)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *describe_unpaired(paths)[1:]])) from None
    if pairings:
        return _from_folders(root, paths, pairings, tests)
    there, *hints = describe_unpaired(paths)
    hints = hints or ["rename them, or write a data.csv with the columns image and mask"]
    raise ValueError(
        f"{root}: found only {there} and no images and masks with corresponding names. They may be "
        "files of the same names in two folders, names that differ by a suffix such as _mask, or a "
        f"folder for each image ({', '.join(sorted(SUFFIXES))}); {'; '.join(hints)}"
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


def _from_folders(
    root: Path, paths: Sequence[str], pairings: Sequence[Pairing], tests: Sequence[Pairing]
) -> FoundFiles:
    """Propose the largest of the pairings; `tests` are those in folders for testing."""
    candidates, held_out = _split(root, pairings)
    best, same = _choose(candidates)
    images = [image for image, _ in best.files.values()]
    stacks = any(header.pages > 1 for header in read_each(read_header, images[:9]))
    classes = find_class_masks(same, best)
    channels = _find_channels(candidates, best)
    alone = bool(classes or channels)
    alike, unlike = ([], []) if alone else find_other_places(best, candidates)
    places = [best, *alike]
    labels = _find_label_places(candidates, places)
    image_places: list[Places] = [*channels] or [_as_place([one.images for one in places])]
    masks: MaskPlaces = _as_place([one.masks for one in places])
    if classes:
        masks = {name: one.masks for name, one in classes.items()}
    described = [one.images for one in places]
    described += [one.masks for one in (*places, *classes.values())]
    exclude = exclude_tests(root, tests, [*described, *channels])
    exclude += [] if alone else _exclude_masks(root, best, same)
    warnings, settings = list[str](), (labels, DEFAULT_OPTIONS, exclude)
    pairs, errors = find_pairs(root, image_places, masks, stacks, warnings, *settings)
    single = sum(one.count_single() for one in places) if errors else 0
    skip = False
    if single > max(2, len(pairs) // 20):  # fewer are likely a mistake
        skip = not find_pairs(root, image_places, masks, stacks, None, *settings, True)[1]
    errors = [] if skip else errors
    lines = [
        f"  # Images that have a mask: {len(pairs)}.",
        *([f"  # {single} others have none: they are left out."] if skip else []),
        *(f"  # Error: {error}" for error in errors),
        *(f"  # Warning: {warning}" for warning in warnings),
        *_describe_others(best, same, {labels, *described}),
        *(
            f"  # {len(one.files)} other images with masks are unlike these, or copies of them: "
            f"images: {quote(one.images)}, masks: {quote(one.masks)}"
            for one in unlike
        ),
        *describe_test_folders(root, tests, best, is_plain=not classes),
        *describe_split_lists(root, paths, pairs),
        f"  channels: {_to_yaml(channels)}"
        if channels
        else f"  images: {_to_yaml(image_places[0])}",
        f"  masks: {_to_yaml(masks)}",
    ]
    if labels:
        lines.append("  # Label images, for unet evaluate --instances and loss.border.")
        lines.append(f"  instances: {_to_yaml(labels)}")
    lines += ["  skip_unlabelled: true"] if skip else []
    lines += ["  stacks: true"] if stacks else []
    found = FoundFiles(lines, pairs, classes=[*classes], exclude=exclude)
    if not held_out or channels:
        return found
    return _add_validation(root, found, held_out, best, classes, stacks)


def _split(root: Path, pairings: Sequence[Pairing]) -> tuple[Sequence[Pairing], list[Pairing]]:
    """Pairings of training and of validation; all and none if folders do not name them."""
    if not any(split_of(one.images) == "train" for one in pairings):
        return pairings, []
    # Images of one split and masks of another may have the same names.
    splits = [(one, _splits_of(one, root)) for one in pairings]
    trained, held_out = ([one for one, names in splits if names == {k}] for k in ("train", "val"))
    return trained or pairings, held_out


def _find_channels(candidates: Sequence[Pairing], best: Pairing) -> list[str]:
    """Patterns of images with one band each, by the names of the bands; empty if there are none."""
    masks = {mask for _, mask in best.files.values()}
    bands: dict[str, Pairing] = {}
    for one in candidates:
        words = [word for word in re.split(r"[^a-z0-9]+", one.images.lower()) if word in _BANDS]
        if words and {mask for _, mask in one.files.values()} == masks:
            bands.setdefault(words[-1], one)
    firsts = [min(one.files.values())[0] for one in bands.values()]
    headers = [*read_each(read_header, firsts)]
    alike = {(header.bands, header.dtype, header.upright_size) for header in headers}
    if len(headers) < 2 or len(alike) > 1 or headers[0].bands > 1:
        return []
    return [bands[word].images for word in sorted(bands, key=_BANDS.index)]


def _exclude_masks(root: Path, best: Pairing, same: Sequence[Pairing]) -> list[str]:
    """Patterns of other masks of the same images that the pattern of the best ones takes in."""
    masks = {mask for _, mask in best.files.values()}
    others = [(one, {mask for _, mask in one.files.values()}) for one in same]
    return [
        f"{Path(one.masks).name.replace('{stem}', '*')}.*"
        for one, files in others
        if "{stem}" in one.masks and not masks & files and is_at(min(files), root, best.masks)
    ]


def _describe_others(
    best: Pairing, same: Sequence[Pairing], used: Collection[Places | None]
) -> list[str]:
    """Comments on other masks of the same images."""
    # Several patterns may describe the same files: one of them is enough.
    others = {frozenset(one.files.values()): one.masks for one in reversed(same)}
    others.pop(frozenset(best.files.values()), None)
    return [
        f"  # Other masks of the same images; to use them: masks: {quote(masks)}"
        for masks in sorted(others.values())
        if masks not in used
    ]


def _choose(candidates: Sequence[Pairing]) -> tuple[Pairing, list[Pairing]]:
    """The best pairing, and all with masks of the same images."""
    # Among those with most files, the names that are most likely, then the images whose patterns
    # leave fewest files without a partner.
    largest = [one for one in candidates if len(one.files) == len(candidates[0].files)]
    likely = max(map(rank_names, largest))
    images = {one.images for one in largest if rank_names(one) == likely}
    largest = [one for one in largest if one.images in images]
    best = largest[0]
    if len(largest) > 1:
        best = min(largest, key=lambda one: one.count_single())
    enough = min(0.9 * len(best.files), len(best.files) - 1)
    same = [one for one in candidates if one.images == best.images and len(one.files) >= enough]
    # A pattern that leaves out some of the same masks is no other set of masks.
    files = [one.files.items() for one in same]
    same = [one for one in same if not any(one.files.items() < others for others in files)]
    return max(same, key=rank_masks) if len(same) > 1 else same[0], same


def _add_validation(
    root: Path,
    found: FoundFiles,
    held_out: Sequence[Pairing],
    best: Pairing,
    classes: Mapping[str, Pairing],
    stacks: bool,
) -> FoundFiles:
    """Validate on the images of other folders; at random if some classes have no masks there."""
    scored = max(held_out, key=lambda one: rank_style(one, best))
    places = [scored]
    masks: MaskPlaces
    if classes:
        masks_there = [one.masks for one in held_out if one.images == scored.images]
        styles = {without_split(one): one for one in masks_there}
        if any(without_split(one.masks) not in styles for one in classes.values()):
            return found
        masks = {name: styles[without_split(one.masks)] for name, one in classes.items()}
    else:
        places += find_other_places(scored, held_out)[0]
        masks = _as_place([one.masks for one in places])
    images = _as_place([one.images for one in places])
    line = f"images: {_to_yaml(images)}, masks: {_to_yaml(masks)}"
    if labels := _find_label_places(held_out, places):
        line += f", instances: {_to_yaml(labels)}"
    val_pairs, _ = find_pairs(root, [images], masks, stacks, exclude=found.exclude)
    return found._replace(validation=f"  validation: {{{line}}}", val_pairs=val_pairs)


def _find_label_places(candidates: Sequence[Pairing], places: Sequence[Pairing]) -> Places | None:
    """Label images for the images of all places; None if there are none for some."""
    found = [
        find_label_images([other for other in candidates if other.images == one.images], one)
        for one in places
    ]
    labels = [one for one in found if one is not None]
    return _as_place(labels) if len(labels) == len(places) else None


def _as_place(patterns: Sequence[str]) -> Places:
    return patterns[0] if len(patterns) == 1 else tuple(patterns)


def _to_yaml(places: MaskPlaces) -> str:
    if isinstance(places, str):
        return quote(places)
    if isinstance(places, Mapping):
        return f"{{{', '.join(f'{quote(name)}: {_to_yaml(one)}' for name, one in places.items())}}}"
    return f"[{', '.join(map(quote, places))}]"


def _splits_of(pairing: Pairing, root: Path) -> set[str]:
    """The splits that folders and patterns name."""
    folders = {Path(path).parent for both in pairing.files.values() for path in both}
    places = [folder.relative_to(root).as_posix() for folder in folders]
    return {split_of(place) for place in [pairing.images, pairing.masks, *places]} - {""}


def quote(text: str) -> str:
    """Text as YAML reads it back, also within brackets."""
    plain = re.fullmatch(r"[\w./][\w./ -]*", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
