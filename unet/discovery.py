"""Files that nobody has described -> which of them look like images and their masks."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from unet.images import SUFFIXES, count_pages, read_pixels, skip_unreadable
from unet.pairs import list_files, natural_key

_FOLDERS = 20
"""Folders of one kind that are looked at, each for itself; of more, none is."""

# Before and after what image and mask have in common: img_7 and mask_7, 7_img and 7_mask,
# train-volume and train-labels, 7/image and 7/mask.
_PARTS = (r"(\D*)(\d.*)()", r"()(.*\d)(\D*)", r"()(.*?)([-_ ][^-_ ]*)", r"()([^/]+)(/.*)")

# Prefix and suffix of the stems of one side, and of the other.
Affixes = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Patterns of images and masks, and the files of both by their stems."""

    images: str
    masks: str
    files: dict[str, tuple[str, str]]


def find_pairings(root: Path) -> list[Pairing]:
    """Find folders whose files have names in common, the more alike first.

    Folders that differ in numbers only are taken together, those whose paths differ in one folder,
    and all that lies in one folder of `root`.
    """
    names = _image_names(root)
    sides = _sides(root, names)
    found: dict[tuple[str, str], Pairing] = {}
    # Images first, of which there are no more than of masks.
    by_number = sorted(sides.items(), key=lambda side: len(side[1]))
    for (one, ones), (other, others) in combinations(by_number, 2):
        for affixes in _relations(ones, others):
            _add_pairing(found, (one, ones), (other, others), affixes)
    # Images and masks in one folder, or in one for each image; plain paths before stars.
    within = {**_by_stem(root, "", names), **sides}
    for one, ones in sorted(
        within.items(), key=lambda side: ("*" in side[0], side[0] not in sides)
    ):
        for affixes in _relations(ones, ones):
            _add_pairing(found, (one, ones), (one, ones), affixes)
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
    return sorted(result, key=lambda one: -len(one.files))


def _image_names(root: Path) -> list[str]:
    """The image files below a folder, relative to it."""
    prefix = _prefix(root)
    names = (path.removeprefix(prefix) for path in list_files(root))
    return [name for name in names if Path(name).suffix.lower() in SUFFIXES]


def _prefix(root: Path) -> str:
    return f"{root.as_posix().rstrip('/')}/" if root != Path() else ""


def _sides(root: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Pattern of a folder -> stem -> file."""
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(name)  # noqa: PTH120 (of text)
    numbered = Counter(re.sub(r"\d+", "*", folder) for folder in by_folder)
    alike = Counter(shape for folder in by_folder for shape in _without_one(folder))
    kinds: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder, its in by_folder.items():
        shape = re.sub(r"\d+", "*", folder)
        if numbered[shape] > 1:
            kinds["numbered"][shape] += its
        else:
            kinds["deep" if "/" in folder else "flat"][folder] += its
        if "/" in folder:
            kinds["top"][folder.partition("/")[0]] += its
        for i, other in enumerate(_without_one(folder)):
            if alike[other] > 2:
                kinds[f"differ in part {i}"][other] += its
    sides: dict[str, dict[str, str]] = {}
    seen: set[tuple[str, ...]] = set()
    for groups in kinds.values():
        if len(groups) <= _FOLDERS:
            for folder, its in groups.items():
                if tuple(its) not in seen:
                    seen.add(tuple(its))
                    sides.update(_by_stem(root, folder, its))
    return sides


def _without_one(folder: str) -> list[str]:
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
            if stem in other and stem != other:  # 7 and 7_mask
                before, _, after = other.partition(stem)
                candidates["", "", before, after] += 1
    for part in _PARTS:
        by_core: defaultdict[str, list[re.Match[str]]] = defaultdict(list)
        for mine in filter(None, (re.fullmatch(part, stem) for stem in some)):
            by_core[mine[2]].append(mine)
        for theirs in filter(None, (re.fullmatch(part, other) for other in others)):
            for mine in by_core.get(theirs[2], ()):
                if mine[0] != theirs[0]:
                    candidates[mine[1], mine[3], theirs[1], theirs[3]] += 1
    yield from (affixes for affixes, _ in candidates.most_common(16))


def _add_pairing(
    found: dict[tuple[str, str], Pairing],
    one: tuple[str, dict[str, str]],
    other: tuple[str, dict[str, str]],
    affixes: Affixes,
) -> None:
    """Keep what pairs by these affixes, if nearly all of the smaller side does."""
    before, after, other_before, other_after = affixes
    files = {}
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
    if files and len(files) >= 0.9 * candidates and patterns[0] != patterns[1]:
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
