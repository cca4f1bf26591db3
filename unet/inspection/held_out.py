"""Lists of a split and labelled test folders -> comments that say how to use them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from unet.data.pairing import Pair
from unet.data.splits import find_stems
from unet.inspection.discovery import Pairing

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


def describe_test_folders(root: Path, pairings: Sequence[Pairing]) -> list[str]:
    """Comments on images with masks in folders for testing."""
    folders = [
        one
        for one in pairings
        if split_of(one.images) == split_of(one.masks) == "test" and "{" not in one.images
    ]
    if not folders:
        return []
    test = max(folders, key=lambda one: len(one.files))
    return [
        f"  # {len(test.files)} labelled test images are not used here. To score a model on them:",
        f"  # unet evaluate RUN/best.pt --images {root / test.images} --masks {root / test.masks}",
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
