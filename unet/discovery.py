"""Files that nobody has described -> which of them look like images and their masks."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from unet.images import SUFFIXES, UnreadableError, count_pages, read_pixels
from unet.pairs import list_files, natural_key

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

    Folders that differ in numbers only are taken together, and so is all that lies in one folder
    of `root`.
    """
    sides = _sides(root)
    found: dict[tuple[str, str], Pairing] = {}
    # Images first, of which there are no more than of masks.
    by_number = sorted(sides.items(), key=lambda side: len(side[1]))
    for (one, ones), (other, others) in combinations(by_number, 2):
        for affixes in _relations(ones, others):
            _add_pairing(found, (one, ones), (other, others), affixes)
    for one, ones in sides.items():  # images and masks in one folder
        for affixes in _relations(ones, ones):
            _add_pairing(found, (one, ones), (one, ones), affixes)
    # What is flat nearly everywhere is a mask; of two sides the flatter one is.
    result = []
    flatness: dict[str, float] = {}
    for pairing in found.values():
        firsts = sorted(pairing.files)[:: max(1, len(pairing.files) // 4)]
        for i, pattern in enumerate((pairing.images, pairing.masks)):
            if pattern not in flatness:
                shares = [_flatness(pairing.files[stem][i]) for stem in firsts]
                readable = [share for share in shares if share is not None]
                flatness[pattern] = float(np.mean(readable)) if readable else 0.0
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


def _sides(root: Path) -> dict[str, dict[str, str]]:
    """Pattern of a folder -> stem -> file."""
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    prefix = f"{root.as_posix().rstrip('/')}/" if root != Path() else ""
    for path in list_files(root):
        name = path.removeprefix(prefix)
        if Path(name).suffix.lower() in SUFFIXES:
            by_folder[os.path.dirname(name)].append(name)  # noqa: PTH120 (of text)
    # Folders that differ in numbers only, and all that lies in a folder of the root; of very many
    # folders, each for itself is not looked at.
    wider: defaultdict[str, list[str]] = defaultdict(list)
    shapes = Counter(re.sub(r"\d+", "*", folder) for folder in by_folder)
    for folder, names in list(by_folder.items()):
        shape = re.sub(r"\d+", "*", folder)
        if shapes[shape] > 1:
            wider[shape] += by_folder.pop(folder)
        if "/" in folder:
            wider[folder.partition("/")[0]] += names
    if len(by_folder) > 20:
        for folder in [folder for folder in by_folder if "/" in folder]:
            del by_folder[folder]
    sides: dict[str, dict[str, str]] = {}
    for folder, names in [*by_folder.items(), *wider.items()]:
        by_ending = {
            ending: [n for n in names if Path(n).suffix == ending]
            for ending in sorted({Path(name).suffix for name in names})
        }
        some = [("", names), *by_ending.items()] if len(by_ending) > 1 else [("", names)]
        for ending, files in some:
            start = 0 if "*" in folder else len(folder) + bool(folder)
            stems = [
                Path(os.path.basename(n) if "*" in folder else n[start:]).with_suffix("").as_posix()  # noqa: PTH119
                for n in files
            ]
            if len(set(stems)) == len(stems):
                pattern = f"{folder}/{{stem}}{ending}" if folder else f"{{stem}}{ending}"
                sides[pattern] = {s: f"{prefix}{n}" for s, n in zip(stems, files, strict=True)}
    return sides


def _relations(ones: dict[str, str], others: dict[str, str]) -> Iterator[Affixes]:
    """Prefix and suffix of the stems on either side, by which most of them become the same."""
    if ones is not others:
        yield "", "", "", ""
    candidates: Counter[Affixes] = Counter()
    for stem in sorted(ones, key=natural_key)[:: max(1, len(ones) // 8)]:
        for other in others:
            if stem == other:
                continue
            if stem in other:  # 7 and 7_mask
                before, _, after = other.partition(stem)
                candidates["", "", before, after] += 1
            # img_7 and mask_7, 7_img and 7_mask, train-volume and train-labels
            for part in (r"(\D*)(\d.*)()", r"()(.*\d)(\D*)", r"()(.*[-_ ])([^-_ ]*)"):
                mine, theirs = re.fullmatch(part, stem), re.fullmatch(part, other)
                if mine and theirs and mine[2] == theirs[2]:
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


def _flatness(path: str) -> float | None:
    """Share of the pixels that equal their right neighbour; of a stack, on its first page."""
    try:
        pixels = read_pixels(path, 0 if count_pages(path) > 1 else None)
    except UnreadableError:  # `unet check` will name it
        return None
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[1] < 2:
        return 0.0
    return float((pixels[:, 1:] == pixels[:, :-1]).all(2).mean())
