"""A folder without a config -> patterns that look like those of images and their masks."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from os.path import splitext
from pathlib import Path
from typing import TypeVar

import numpy as np

from unet.data.image_file import OUT_OF_RESOURCES
from unet.data.image_io import read_header, read_stored
from unet.data.image_types import SUFFIXES
from unet.data.pairing import list_files
from unet.runtime.progress import show_progress

_MAX_FOLDERS = 12
"""Folders, or groups of similar folders, that are compared; the largest are."""

# The prefix of a stem, the core that image and mask have in common, and the suffix.
_STEM_PARTS = (
    r"(\D*)(\d.*)()",  # img_7 and mask_7
    r"()(.*\d)(\D*)",  # 7_img and 7_mask
    r"()(.*?)([-_ ][^-_ /]*)",  # train-volume and train-labels
    r"()(.*?)([-_ ][^-_ /]*[-_ ][^-_ /]*)",  # town_8bit and town_fine_ids
    r"()([^/]+)(/.*)",  # 7/image and 7/mask
)

Item = TypeVar("Item")
Result = TypeVar("Result")

Files = dict[str, str]
"""Stem -> path."""
Affixes = tuple[str, str, str, str]
"""Prefix and suffix of the stems of one group of files, and of another group."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Patterns of images and masks, and the files of both by their stems."""

    images: str
    masks: str
    files: dict[str, tuple[str, str]]


def find_pairings(root: Path) -> list[Pairing]:
    """Find images and masks with similar names; the pairing with most files comes first.

    They may be in two folders, in one folder, in one folder for each image, or in folders whose
    paths differ only in numbers or (three or more folders) in one component.

    Raises:
        ValueError: if files have similar names, but none of them looks like a mask.
    """
    prefix = f"{root.as_posix().rstrip('/')}/" if root != Path() else ""
    # Sorted, because the order in which a disk lists files varies.
    paths = sorted(path for path in list_files(root) if _split_ending(path)[1].lower() in SUFFIXES)
    names = [path.removeprefix(prefix) for path in paths]
    folders, whole = _group_by_folder(prefix, names), _by_stem(prefix, "", names)
    groups = {**folders, **whole}

    def pairs_of(patterns: Iterable[str]) -> Iterator[tuple[str, str]]:
        # The smaller group first: there are no more images than masks.
        return combinations(sorted(patterns, key=lambda one: len(groups[one])), 2)

    found: dict[tuple[str, str], Pairing] = {}
    candidates = [*pairs_of(folders), *zip(groups, groups, strict=True), *pairs_of(whole)]
    for one, other in show_progress(candidates, "compare folders", "pair"):
        for affixes in _find_affixes(groups[one], groups[other]):
            pairing = _pair((one, groups[one]), (other, groups[other]), affixes)
            if pairing is not None and (pairing.masks, pairing.images) not in found:
                found[pairing.images, pairing.masks] = pairing
    # Among equals a plain path comes first, because its stems tell folders apart.
    pairings = list(_tell_masks_from_images(found.values()))
    if found and not pairings:
        largest = max(found.values(), key=lambda one: len(one.files))
        raise ValueError(
            f"{root}: got {largest.images} and {largest.masks}, which have corresponding names, "
            "but neither looks like masks, in which most pixels equal their neighbours, and the "
            "other like images; replace the masks, or write the config by hand if they are right"
        )
    return sorted(pairings, key=lambda one: (-len(one.files), "*" in one.images + one.masks))


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


def _group_by_folder(prefix: str, names: Sequence[str]) -> dict[str, Files]:
    """Pattern -> files, of single folders and of folders with similar paths."""
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[name.rpartition("/")[0]].append(name)
    numbered = Counter(re.sub(r"\d+", "*", folder) for folder in by_folder)
    similar = Counter(pattern for folder in by_folder for pattern in _with_star(folder))
    # The ways to group folders: each gives patterns with their files.
    ways: defaultdict[str | int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder, files in by_folder.items():
        pattern = re.sub(r"\d+", "*", folder)
        if numbered[pattern] > 1:
            ways["numbered"][pattern] += files
        else:
            ways["deep" if "/" in folder else "flat"][folder] += files
        if "/" in folder:
            ways["top"][folder.partition("/")[0]] += files
        for component, pattern in enumerate(_with_star(folder)):
            if similar[pattern] > 2:  # two folders are rather train and val
                ways[component][pattern] += files
    groups: dict[str, Files] = {}
    seen: set[tuple[str, ...]] = set()
    for way in ways.values():
        for pattern in sorted(way, key=lambda one: -len(way[one]))[:_MAX_FOLDERS]:
            if tuple(way[pattern]) not in seen:
                seen.add(tuple(way[pattern]))
                groups.update(_by_stem(prefix, pattern, way[pattern]))
    return groups


def _with_star(folder: str) -> list[str]:
    """A path with a star in place of one component, for each component."""
    parts = folder.split("/") if folder else []
    return ["/".join([*parts[:i], "*", *parts[i + 1 :]]) for i in range(len(parts))]


def _by_stem(prefix: str, folder: str, names: Sequence[str]) -> dict[str, Files]:
    """Pattern -> files, of all files of a folder and of those with the same ending."""
    groups = {}
    endings = sorted({_split_ending(name)[1] for name in names})
    for ending in ["", *endings] if len(endings) > 1 else [""]:
        files = [name for name in names if name.endswith(ending)]
        start = len(folder) + bool(folder)
        within = [one.rpartition("/")[2] if "*" in folder else one[start:] for one in files]
        stems = [_split_ending(one)[0] for one in within]
        # A few doubled files are errors to report; many show that endings tell files apart.
        if len(stems) - len(set(stems)) <= 0.12 * len(stems):
            pattern = f"{folder}/{{stem}}{ending}" if folder else f"{{stem}}{ending}"
            groups[pattern] = dict(zip(stems, (f"{prefix}{one}" for one in files), strict=True))
    return groups


def _split_ending(name: str) -> tuple[str, str]:
    return splitext(name)  # noqa: PTH122 (ten times as fast as Path, for hundreds of thousands)


def _find_affixes(ones: Files, others: Files) -> Iterator[Affixes]:
    """Yield affixes without which most stems of two groups are the same."""
    if ones is not others:
        yield "", "", "", ""
        if len(ones.keys() & others.keys()) >= 0.9 * max(len(ones), len(others)):
            return  # no affixes are needed
    candidates: Counter[Affixes] = Counter()
    some = sorted(ones)[:: max(1, len(ones) // 8)]
    for stem in some:
        for other in others:
            if stem != other and stem in other:  # 7 and 7_mask
                before, _, after = other.partition(stem)
                candidates["", "", before, after] += 1
            elif stem != other and other in stem:
                before, _, after = stem.partition(other)
                candidates[before, after, "", ""] += 1
    slices = _find_slices(ones) | _find_slices(others)
    by_core: defaultdict[str, list[re.Match[str]]] = defaultdict(list)
    for mine in _split_stems(some):
        by_core[mine[2]].append(mine)
    for theirs in _split_stems(others):
        for mine in by_core.get(theirs[2], ()):
            # A folder does not tell which of its several slices belong together.
            ambiguous = mine[3].startswith("/") and mine[0] in slices and theirs[0] in slices
            if mine[0] != theirs[0] and not ambiguous:
                candidates[mine[1], mine[3], theirs[1], theirs[3]] += 1
    yield from (affixes for affixes, _ in candidates.most_common(16))


def _split_stems(stems: Iterable[str]) -> Iterator[re.Match[str]]:
    for expression in _STEM_PARTS:
        yield from filter(None, (re.fullmatch(expression, stem) for stem in stems))


def _find_slices(stems: Iterable[str]) -> set[str]:
    """The stems that differ only in numbers from another one in the same folder."""
    similar: defaultdict[str, list[str]] = defaultdict(list)
    for stem in stems:
        folder, slash, rest = stem.partition("/")
        similar[folder + slash + re.sub(r"\d+", "#", rest)].append(stem)
    return {stem for group in similar.values() if len(group) > 1 for stem in group}


def _pair(one: tuple[str, Files], other: tuple[str, Files], affixes: Affixes) -> Pairing | None:
    """Pair two groups of files by these affixes, if nearly all of the first have a partner."""
    before, after, other_before, other_after = affixes
    files: dict[str, tuple[str, str]] = {}
    candidates = 0
    for stem, path in one[1].items():
        if not (stem.startswith(before) and stem.endswith(after)):
            continue
        core = stem[len(before) : len(stem) - len(after)]
        if one[0] == other[0] and after == "" and stem.endswith(other_after) and other_after:
            continue  # the file is a mask itself
        candidates += 1
        partner = other[1].get(f"{other_before}{core}{other_after}")
        if core and partner is not None and partner != path:
            files[core] = (path, partner)
    images = one[0].replace("{stem}", f"{before}{{stem}}{after}")
    masks = other[0].replace("{stem}", f"{other_before}{{stem}}{other_after}")
    # One file in a folder proves nothing; one without a partner disproves nothing.
    enough = 0.9 * candidates if candidates < 5 else min(0.9 * candidates, candidates - 1)
    enough = max(1 + after.startswith("/"), enough)
    if len(files) < enough or images == masks:
        return None
    images, masks = (re.sub(r"(^|/)\{stem\}$", "", one) or "." for one in (images, masks))
    return Pairing(images=images, masks=masks, files=files)


def _tell_masks_from_images(pairings: Iterable[Pairing]) -> Iterator[Pairing]:
    """Yield pairings of a mask, which is flat nearly everywhere, and an image, which is not."""
    flatness: dict[str, float] = {}
    flatness_of = cache(_flatness)
    for pairing in pairings:
        stems = sorted(pairing.files)[:: max(1, len(pairing.files) // 5)]
        for i, pattern in enumerate((pairing.images, pairing.masks)):
            if pattern not in flatness:
                files = [pairing.files[stem][i] for stem in stems]
                values = [*read_each(flatness_of, files)]
                flatness[pattern] = float(np.median(values)) if values else 0.0
        first, second = flatness[pairing.images], flatness[pairing.masks]
        apart = max(first, second) > 0.6 > min(first, second)
        if not apart and abs(first - second) < 0.25:
            continue
        if second < first:
            swapped = {stem: (b, a) for stem, (a, b) in pairing.files.items()}
            pairing = Pairing(images=pairing.masks, masks=pairing.images, files=swapped)
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
