"""Files that nobody has described -> which of them look like images and their masks."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from unet.data.image_io import SUFFIXES, count_pages, read_pixels, skip_unreadable
from unet.data.pairing import list_files, natural_key

_MAX_GROUPS = 12
"""Groups of folders of each kind that are looked at, the largest."""

# Before and after what image and mask have in common.
_PARTS = (
    r"(\D*)(\d.*)()",  # img_7 and mask_7
    r"()(.*\d)(\D*)",  # 7_img and 7_mask
    r"()(.*?)([-_ ][^-_ /]*)",  # train-volume and train-labels
    r"()(.*?)([-_ ][^-_ /]*[-_ ][^-_ /]*)",  # town_8bit and town_fine_ids
    r"()([^/]+)(/.*)",  # 7/image and 7/mask
)

# Prefix and suffix of the stems of one side, and of the other.
Affixes = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Patterns of images and masks, and the files of both by their stems."""

    images: str
    masks: str
    files: dict[str, tuple[str, str]]


def find_pairings(root: Path) -> list[Pairing]:
    """Find images and masks that have names in common, the more alike first.

    They may lie in two folders or in one, in one for each image, or in several whose paths differ
    in numbers only or (three or more) in one part.
    """
    names = _image_names(root)
    sides, whole = _sides(root, names), _by_stem(root, "", names)
    every = {**sides, **whole}

    def pairs_of(group: Iterable[str]) -> Iterator[tuple[str, str]]:
        # Images first, of which there are no more than of masks.
        return combinations(sorted(group, key=lambda side: len(every[side])), 2)

    # Two places, one place, one for each image.
    found: dict[tuple[str, str], Pairing] = {}
    for one, other in [*pairs_of(sides), *zip(every, every, strict=True), *pairs_of(whole)]:
        for affixes in _relations(every[one], every[other]):
            _add_pairing(found, (one, every[one]), (other, every[other]), affixes)
    # What is flat nearly everywhere is a mask; of two sides the flatter one is.
    result = []
    flatness: dict[str, float] = {}
    for pairing in found.values():
        firsts = sorted(pairing.files)[:: max(1, len(pairing.files) // 4)]
        for i, pattern in enumerate((pairing.images, pairing.masks)):
            if pattern not in flatness:
                files = [pairing.files[stem][i] for stem in firsts]
                shares = [*skip_unreadable(_flatness, files)]
                flatness[pattern] = float(np.mean(shares)) if shares else 0.0
        image, mask = flatness[pairing.images], flatness[pairing.masks]
        if mask < image:
            pairing = Pairing(
                images=pairing.masks,
                masks=pairing.images,
                files={stem: (b, a) for stem, (a, b) in pairing.files.items()},
            )
        if max(image, mask) > 0.6 > min(image, mask):
            result.append(pairing)
    # Of equals plain paths first: their stems tell folders apart.
    return sorted(result, key=lambda one: (-len(one.files), "*" in one.images + one.masks))


def _image_names(root: Path) -> list[str]:
    """The image files below a folder, relative to it."""
    prefix = _prefix(root)
    # In an order that does not depend on the disk.
    names = sorted(path.removeprefix(prefix) for path in list_files(root))
    return [name for name in names if Path(name).suffix.lower() in SUFFIXES]


def _prefix(root: Path) -> str:
    return f"{root.as_posix().rstrip('/')}/" if root != Path() else ""


def _sides(root: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Pattern of a folder -> stem -> file."""
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(name)  # noqa: PTH120 (of text)
    numbered = Counter(re.sub(r"\d+", "*", folder) for folder in by_folder)
    alike = Counter(shape for folder in by_folder for shape in _with_star(folder))
    kinds: defaultdict[str | int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder, files in by_folder.items():
        shape = re.sub(r"\d+", "*", folder)
        if numbered[shape] > 1:
            kinds["numbered"][shape] += files
        else:
            kinds["deep" if "/" in folder else "flat"][folder] += files
        if "/" in folder:
            kinds["top"][folder.partition("/")[0]] += files
        for part, starred in enumerate(_with_star(folder)):
            if alike[starred] > 2:  # two are rather train and val
                kinds[part][starred] += files
    sides: dict[str, dict[str, str]] = {}
    seen: set[tuple[str, ...]] = set()
    for groups in kinds.values():
        largest = sorted(groups, key=lambda folder: -len(groups[folder]))[:_MAX_GROUPS]
        for folder in largest:
            if tuple(groups[folder]) not in seen:
                seen.add(tuple(groups[folder]))
                sides.update(_by_stem(root, folder, groups[folder]))
    return sides


def _with_star(folder: str) -> list[str]:
    """The path of a folder with a star for one of its parts, for each of them."""
    parts = folder.split("/") if folder else []
    return ["/".join([*parts[:i], "*", *parts[i + 1 :]]) for i in range(len(parts))]


def _by_stem(root: Path, folder: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Pattern -> stem -> file, of all files of a folder and of those of each ending."""
    sides = {}
    endings = sorted({Path(name).suffix for name in names})
    for ending in ["", *endings] if len(endings) > 1 else [""]:
        files = [name for name in names if name.endswith(ending)]
        start = 0 if "*" in folder else len(folder) + bool(folder)
        stems = [
            Path(os.path.basename(n) if "*" in folder else n[start:]).with_suffix("").as_posix()  # noqa: PTH119
            for n in files
        ]
        if len(set(stems)) == len(stems):
            pattern = f"{folder}/{{stem}}{ending}" if folder else f"{{stem}}{ending}"
            sides[pattern] = {s: f"{_prefix(root)}{n}" for s, n in zip(stems, files, strict=True)}
    return sides


def _relations(ones: dict[str, str], others: dict[str, str]) -> Iterator[Affixes]:
    """Prefix and suffix of the stems on either side, by which most of them become the same."""
    if ones is not others:
        yield "", "", "", ""
    candidates: Counter[Affixes] = Counter()
    some = sorted(ones, key=natural_key)[:: max(1, len(ones) // 8)]
    for stem in some:
        for other in others:
            if stem == other:
                continue
            if stem in other:  # 7 and 7_mask
                before, _, after = other.partition(stem)
                candidates["", "", before, after] += 1
            elif other in stem:
                before, _, after = stem.partition(other)
                candidates[before, after, "", ""] += 1
    slices = _slices(ones) | _slices(others)
    by_core: defaultdict[str, list[re.Match[str]]] = defaultdict(list)
    for mine in _split_up(some):
        by_core[mine[2]].append(mine)
    for theirs in _split_up(others):
        for mine in by_core.get(theirs[2], ()):
            # Of several slices in one folder, it does not tell which belong together.
            unclear = mine[3].startswith("/") and mine[0] in slices and theirs[0] in slices
            if mine[0] != theirs[0] and not unclear:
                candidates[mine[1], mine[3], theirs[1], theirs[3]] += 1
    yield from (affixes for affixes, _ in candidates.most_common(16))


def _split_up(stems: Iterable[str]) -> Iterator[re.Match[str]]:
    """Every way to split stems into what may be in common and what is before and after."""
    for part in _PARTS:
        yield from filter(None, (re.fullmatch(part, stem) for stem in stems))


def _slices(stems: Iterable[str]) -> set[str]:
    """Those that differ from others below the same folder in numbers only."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for stem in stems:
        folder, slash, rest = stem.partition("/")
        alike[folder + slash + re.sub(r"\d+", "#", rest)].append(stem)
    return {stem for group in alike.values() if len(group) > 1 for stem in group}


def _add_pairing(
    found: dict[tuple[str, str], Pairing],
    one: tuple[str, dict[str, str]],
    other: tuple[str, dict[str, str]],
    affixes: Affixes,
) -> None:
    """Keep what pairs by these affixes, if nearly all of the smaller side does."""
    before, after, other_before, other_after = affixes
    files: dict[str, tuple[str, str]] = {}
    candidates = 0
    for stem, path in one[1].items():
        if not (stem.startswith(before) and stem.endswith(after)):
            continue
        core = stem[len(before) : len(stem) - len(after)]
        if one[0] == other[0] and after == "" and stem.endswith(other_after) and other_after:
            continue  # is a mask itself
        candidates += 1
        partner = other[1].get(f"{other_before}{core}{other_after}")
        if core and partner is not None and partner != path:
            files[core] = (path, partner)
    patterns = (
        one[0].replace("{stem}", f"{before}{{stem}}{after}"),
        other[0].replace("{stem}", f"{other_before}{{stem}}{other_after}"),
    )
    plain = tuple(re.sub(r"(^|/)\{stem\}$", "", pattern) or "." for pattern in patterns)
    enough = max(1 + after.startswith("/"), 0.9 * candidates)  # one file in one folder says nothing
    if len(files) >= enough and patterns[0] != patterns[1]:
        known = found.get((plain[1], plain[0]))
        if known is None:
            found[plain[0], plain[1]] = Pairing(images=plain[0], masks=plain[1], files=files)


def _flatness(path: str) -> float:
    """Share of the pixels that equal their right neighbour; of a stack, on its first page."""
    pixels = read_pixels(path, 0 if count_pages(path) > 1 else None)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[1] < 2:
        return 0.0
    return float((pixels[:, 1:] == pixels[:, :-1]).all(2).mean())
