"""Lists of a split and labelled test folders -> comments that say how to use them."""

import glob
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from unet.data.pairing import Pair, Places, is_at
from unet.data.splits import find_stems
from unet.inspection.discovery import Pairing, find_pairings

_LARGEST_LIST = 20_000_000  # bytes

# The split that the name of a folder, file or list contains.
_SPLIT = re.compile(
    r"(?P<train>train(ing)?)|(?<![a-z])((?P<val>val(id(ation)?)?|dev|held)|(?P<test>test(ing)?))",
    re.IGNORECASE,
)


def split_of(name: str) -> str:
    """Return train, val or test, as a folder or a split is named; empty for other names."""
    found = _SPLIT.search(name)
    return next(split for split, text in found.groupdict().items() if text) if found else ""


def without_split(name: str) -> str:
    """Return a name without the split in it."""
    return _SPLIT.sub("", name)


def rank_style(one: Pairing, best: Pairing) -> tuple[bool, bool, int]:
    """Rank pairings of another split: named like those of `best`, and with many files."""
    like_masks, like_images = (
        without_split(mine) == without_split(theirs)
        for mine, theirs in ((one.masks, best.masks), (one.images, best.images))
    )
    return like_masks, like_images, len(one.files)


def is_for_testing(folder: str) -> bool:
    """Whether a folder, or one that contains it, is named as one for testing."""
    return any(split_of(part) == "test" for part in folder.split("/"))


def set_tests_apart(root: Path, paths: Sequence[str]) -> tuple[list[Pairing], list[str]]:
    """Return the labelled images in folders for testing, and all other paths.

    If there are no such images with their masks, all paths are returned.
    """
    start = len(f"{root.as_posix().rstrip('/')}/") if root != Path() else 0
    are_tests = cache(is_for_testing)
    verdicts = [are_tests(path[start:].rpartition("/")[0]) for path in paths]
    tests = [path for path, verdict in zip(paths, verdicts, strict=True) if verdict]
    try:
        pairings = find_pairings(root, tests) if 0 < len(tests) < len(paths) else []
    except ValueError:  # files of similar names without a mask among them
        pairings = []
    if not pairings:
        return [], [*paths]
    return pairings, [path for path, verdict in zip(paths, verdicts, strict=True) if not verdict]


def exclude_tests(root: Path, pairings: Sequence[Pairing], places: Sequence[Places]) -> list[str]:
    """Patterns of the folders for testing whose files are at one of the places, too."""
    paths = {path for one in pairings for both in one.files.values() for path in both}
    patterns = set[str]()
    for path in paths:
        parts = Path(path).relative_to(root).parts
        tested = next(i for i, part in enumerate(parts) if split_of(part) == "test")
        pattern = f"{glob.escape('/'.join(parts[: tested + 1]))}/*"
        if pattern not in patterns and any(is_at(path, root, place) for place in places):
            patterns.add(pattern)
    return sorted(patterns)


def describe_test_folders(
    root: Path, pairings: Sequence[Pairing], best: Pairing, is_plain: bool
) -> list[str]:
    """Comments on images in folders for testing with masks like those of `best`.

    `is_plain` is whether each image and mask is one file, as `unet evaluate` needs it.
    """
    # Patterns of the whole data set describe the test images, too.
    pairings = [one for one in pairings if is_for_testing(one.images) and is_for_testing(one.masks)]
    if not pairings:
        return []
    test = max(pairings, key=lambda one: rank_style(one, best))
    places = [shlex.quote(str(root / place)) for place in (test.images, test.masks)]
    lines = [f"  # {len(test.files)} labelled test images are not used here"]
    if not is_plain:
        return [f"{lines[0]}: images: {test.images}, masks: {test.masks}"]
    return [
        f"{lines[0]}. To score a model on them:",
        f"  # unet evaluate RUN/best.pt --images {places[0]} --masks {places[1]}",
    ]


def describe_split_lists(root: Path, paths: Iterable[str], pairs: Sequence[Pair]) -> list[str]:
    """Comments on those of `paths` that list some of the pairs, as ImageSets/val.txt does."""
    lines = []
    known = {pair.stem for pair in pairs}
    endings = (".txt", ".lst", ".yaml", ".yml", ".json")
    for path in sorted(path for path in paths if path.lower().endswith(endings)):
        for key, names in _read_lists(Path(path)).items():
            found = [stem for stem in find_stems(pairs, names) if stem in known]
            if not (0 < len(set(found)) < len(known) and 2 * len(found) > len(names)):
                continue
            place = Path(path).relative_to(root).as_posix()
            if (split := split_of(key or Path(path).stem)) == "train":
                continue
            use = place if not key else f"[{', '.join(sorted(found)[:3])}, ...]"
            lines.append(
                f"  # {place}{f', {key},' if key else ''} lists {len(found)} of the pairs"
                f"{' for testing' if split == 'test' else ''}. To validate on them:"
            )
            lines.append(f"  # validation: {{stems: {use}}}")
    return lines


def _read_lists(path: Path) -> dict[str, list[str]]:
    """The lists in a file by their keys; the lines of a text file have the key ''."""
    try:
        if path.stat().st_size > _LARGEST_LIST or not path.is_file():
            return {}
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in {".txt", ".lst"}:
            return {"": [line.strip() for line in text.splitlines() if line.strip()]}
        loaded: Any = yaml.safe_load(text) if len(text) < 1_000_000 else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    if not isinstance(loaded, dict):
        return {}
    lists = {str(key): names for key, names in loaded.items() if isinstance(names, list)}
    return {key: [*map(str, names)] for key, names in lists.items() if names}
