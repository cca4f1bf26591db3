"""A folder without a config -> patterns that look like those of images and their masks."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from unet.data.file_list import list_files
from unet.data.image_file import OUT_OF_RESOURCES
from unet.data.image_io import read_header, read_stored
from unet.data.image_types import SUFFIXES
from unet.inspection.file_groups import Group, group_by_folder, group_by_stem, split_name
from unet.runtime.progress import show_progress

# The prefix of a stem, the core that image and mask have in common, and the suffix.
_STEM_PARTS = tuple(
    re.compile(one)
    for one in (
        r"(\D*)(\d.*)()",  # img_7 and mask_7
        r"()(.*\d)(\D*)",  # 7_img and 7_mask
        r"()(.*?)([-_ ][^-_ /]*)",  # train-volume and train-labels
        r"()(.*?)([-_ ][^-_ /]*[-_ ][^-_ /]*)",  # town_8bit and town_fine_ids
        r"(.*?[-_ ])([^-_ /][^/]*)()",  # img_ann and mask_ann
        r"()([^/]+)(/.*)",  # 7/image and 7/mask
        r"()(.+)(/[^/]+)",  # north/7/image and north/7/mask
    )
)
_SAMPLE, _MOST_AFFIXES = 16, 32
"""Stems of a group that are compared with all stems of another one, and affixes that are tried."""

Item = TypeVar("Item")
Result = TypeVar("Result")

Affixes = tuple[str, str, str, str]
"""Prefix and suffix of the stems of one group of files, and of another group."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Patterns of images and masks, and the files of both by their stems."""

    images: str
    masks: str
    files: dict[str, tuple[str, str]]
    count_single: Callable[[], int]  # files that the patterns describe, but that are in no pair


def find_pairings(root: Path, paths: Iterable[str] | None = None) -> list[Pairing]:
    """Find images and masks with similar names; the pairing with most files comes first.

    They may be in two folders, in one folder, in one folder for each image, or in folders whose
    paths differ only in numbers or (three or more folders) in one component. `paths` are all files
    in `root`; None lists them.

    Raises:
        ValueError: if files have similar names, but none of them looks like a mask.
    """
    prefix = f"{root.as_posix().rstrip('/')}/" if root != Path() else ""
    # Sorted, because the order in which a disk lists files varies.
    paths = list_files(root) if paths is None else paths
    paths = sorted(path for path in paths if path.lower().endswith(tuple(SUFFIXES)))
    files = [split_name(path.removeprefix(prefix)) for path in paths]
    folders = group_by_folder(prefix, files)
    whole = [*group_by_stem(prefix, "", files)]

    def pairs_of(groups: Iterable[Group]) -> Iterator[tuple[Group, Group]]:
        # The smaller group first: there are no more images than masks.
        return combinations(sorted(groups, key=lambda one: len(one.files)), 2)

    found: dict[tuple[str, str], Pairing] = {}
    groups = [*folders, *whole]
    candidates = [*pairs_of(folders), *zip(groups, groups, strict=True), *pairs_of(whole)]
    for one, other in show_progress(candidates, "compare folders", "pair"):
        enough: set[Affixes] = set()
        for affixes in _find_affixes(one, other):
            shorter = _without_common(affixes)
            if shorter in enough or (pairing := _pair(one, other, affixes)) is None:
                continue
            enough.add(shorter)
            if (pairing.masks, pairing.images) not in found:
                found[pairing.images, pairing.masks] = pairing
    # Among equals a plain path comes first, because its stems tell folders apart.
    failures: list[Exception] = []
    pairings = list(_tell_masks_from_images(found.values(), failures))
    if failures and not pairings:
        raise ValueError(f"{root}: found no images and masks that can be read; {failures[0]}")
    firsts = [(one, next(iter(one.files.values()))) for one in found.values()]
    apart = [one for one, files in firsts if len({*map(os.path.dirname, files)}) > 1]
    if apart and not pairings:
        largest = max(apart, key=lambda one: len(one.files))
        raise ValueError(
            f"{root}: found no masks: {largest.images} and {largest.masks} have corresponding "
            "names, but look alike; in masks, more pixels equal their neighbours than in images. "
            "Give the folder that contains both, or write the config by hand if these are right"
        )

    def is_special(pairing: Pairing) -> tuple[bool, bool]:
        patterns = pairing.images, pairing.masks
        return (
            any(re.search(r"\*|\{case\}", one) for one in patterns),
            any(split_name(one)[2].lower() in SUFFIXES for one in patterns),
        )

    return sorted(pairings, key=lambda one: (-len(one.files), is_special(one)))


def read_each(
    read: Callable[[Item], Result], items: Iterable[Item], failures: list[Exception] | None = None
) -> Iterator[Result]:
    """Read what is readable, and collect the errors of the rest."""
    for item in items:
        try:
            yield read(item)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) in OUT_OF_RESOURCES:
                raise
            if failures is not None:
                failures.append(error)


def _find_affixes(one: Group, other: Group) -> Iterator[Affixes]:
    """Yield affixes without which most stems of two groups are the same."""
    if one is not other:
        yield "", "", "", ""
        largest = max(len(one.files), len(other.files))
        if len(one.files.keys() & other.files.keys()) >= 0.9 * largest:
            return  # no affixes are needed
    candidates: Counter[Affixes] = Counter()
    keys = sorted(one.files)
    # At random, because every eighth file, for example, may be of the same kind.
    chosen = np.random.default_rng(0).integers(len(keys), size=_SAMPLE).tolist()
    for case, stem in [keys[i] for i in chosen] if len(keys) > _SAMPLE else keys:
        mine, theirs = one.stems(case), other.stems(case)
        for longer in theirs.containing(stem):  # 7 and 7_mask
            before, _, after = longer.partition(stem)
            candidates["", "", before, after] += 1
        for shorter in {stem[i:j] for j in range(len(stem) + 1) for i in range(j)} & theirs:
            before, _, after = stem.partition(shorter)
            candidates[before, after, "", ""] += 1
        for before, core, after in _split_stem(stem):
            # A folder does not tell which of its several slices belong together.
            is_slice = after.startswith("/") and mine.has_slices(core, after)
            for partner in theirs.containing(core) if core else ():
                for their_before, their_core, their_after in _split_stem(partner):
                    if their_core == core and partner != stem:
                        if is_slice and theirs.has_slices(core, their_after):
                            continue
                        candidates[before, after, their_before, their_after] += 1
    del candidates["", "", "", ""]
    likely = [affixes for affixes, _ in candidates.most_common(_MOST_AFFIXES)]
    yield from sorted(likely, key=lambda affixes: affixes != _without_common(affixes))


def _without_common(affixes: Affixes) -> Affixes:
    """Affixes without those that are the same in both names."""
    before, after, other_before, other_after = affixes
    if before == other_before:
        before = other_before = ""
    if after == other_after:
        after = other_after = ""
    return before, after, other_before, other_after


@lru_cache(maxsize=10_000)
def _split_stem(stem: str) -> tuple[tuple[str, str, str], ...]:
    """The ways to split a stem into prefix, core and suffix."""
    matches = filter(None, (expression.fullmatch(stem) for expression in _STEM_PARTS))
    return tuple(dict.fromkeys((match[1], match[2], match[3]) for match in matches))


def _pair(one: Group, other: Group, affixes: Affixes) -> Pairing | None:
    """Pair two groups of files by these affixes, if nearly all of the first have a partner."""
    before, after, other_before, other_after = affixes
    images = one.pattern.replace("{stem}", f"{before}{{stem}}{after}")
    masks = other.pattern.replace("{stem}", f"{other_before}{{stem}}{other_after}")
    if images == masks:
        return None

    def pair(keys: Iterable[tuple[str, str]]) -> tuple[int, dict[str, tuple[str, str]]]:
        files: dict[str, tuple[str, str]] = {}
        candidates = 0
        for case, stem in keys:
            if not (stem.startswith(before) and stem.endswith(after)):
                continue
            core = stem[len(before) : len(stem) - len(after)]
            if (
                one.pattern == other.pattern
                and not after
                and other_after
                and stem.endswith(other_after)
            ):
                continue  # the file is a mask itself
            candidates += 1
            partner = other.files.get((case, f"{other_before}{core}{other_after}"))
            path = one.files[case, stem]
            if core and partner is not None and partner != path:
                files["/".join([case, core]) if case else core] = (path, partner)
        return candidates, files

    keys = [*one.files]
    if len(keys) > 2000:  # a sample shows soon that names do not correspond
        candidates, files = pair(keys[:: len(keys) // 500])
        if len(files) < 0.7 * candidates:
            return None
    candidates, files = pair(keys)
    # One file in a folder proves nothing; one without a partner disproves nothing.
    enough = 0.9 * candidates if candidates < 5 else min(0.9 * candidates, candidates - 1)
    if len(files) < max(1 + after.startswith("/"), enough):
        return None

    def count_single() -> int:
        described = {
            path
            for group, start, end in ((one, before, after), (other, other_before, other_after))
            for (_, stem), path in group.files.items()
            if stem.startswith(start) and stem.endswith(end)
        }
        return len(described) - 2 * len(files) + one.num_doubled + other.num_doubled

    images, masks = (re.sub(r"(^|/)\{stem\}$", "", one) or "." for one in (images, masks))
    return Pairing(images=images, masks=masks, files=files, count_single=count_single)


def _tell_masks_from_images(
    pairings: Iterable[Pairing], failures: list[Exception]
) -> Iterator[Pairing]:
    """Yield pairings of a mask, which is flat nearly everywhere, and an image, which is not."""
    flatness_of = cache(_flatness)
    for pairing in pairings:
        stems = sorted(pairing.files)[:: max(1, len(pairing.files) // 5)]
        both = [pairing.files[stem] for stem in stems]
        values = [*read_each(lambda files: [*map(flatness_of, files)], both, failures)]
        if not values:
            continue
        first, second = np.median(values, axis=0).tolist()
        apart = max(first, second) > 0.6 > min(first, second)
        if not apart and abs(first - second) < 0.25:
            continue
        # Two folders that both hold images and masks are no pair.
        if np.mean([(one < other) == (first < second) for one, other in values]) < 0.7:
            continue
        if second < first:
            swapped = {stem: (b, a) for stem, (a, b) in pairing.files.items()}
            pairing = replace(pairing, images=pairing.masks, masks=pairing.images, files=swapped)
        yield pairing


def _flatness(path: str) -> float:
    """Fraction of the pixels that equal their right neighbour; of a stack, on its first page.

    In a JPEG, they may differ as compression makes them.
    """
    pixels = read_stored(path, 0 if read_header(path).pages > 1 else None)[1].values
    if pixels.shape[1] < 2:
        return 0.0
    if Path(path).suffix.lower() in {".jpg", ".jpeg"}:
        return float((np.abs(np.diff(pixels.astype(int), axis=1)) <= 8).all(2).mean())
    return float((pixels[:, 1:] == pixels[:, :-1]).all(2).mean())
