"""Which image file belongs to which mask file."""

import pickle
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unet.data.file_list import is_named_as_image, list_files
from unet.data.image_file import find_other_format
from unet.data.image_io import read_header
from unet.data.image_types import DEFAULT_OPTIONS, SUFFIXES, ReadOptions, UnreadableError
from unet.runtime.files import no_such
from unet.runtime.text import group_messages, join_some, plural

_NUMBER = re.compile(r"(\d+)")
Key = tuple[int, str]
"""The number of a place, and a stem in it."""
Places = str | Sequence[str]
"""A folder or pattern, or several."""
MaskPlaces = Places | Mapping[str, Places]
"""Also one for each class except the first."""

_ANY_SUFFIX = rf"(?i:{'|'.join(re.escape(suffix) for suffix in sorted(SUFFIXES))})"


class Pair(NamedTuple):
    """The files of an image and its mask, as text: there may be hundreds of thousands."""

    stem: str  # what the names have in common, and for a page of a stack # and its number
    images: tuple[str, ...]  # one file, or a file for each channel
    masks: tuple[str, ...]  # one file, or a file for each class except the first
    page: int | None = None  # of a stack, from 0
    split: str = ""  # from the table's column split
    instances: str | None = None  # a label image
    regions: str | None = None  # a mask of pixels to ignore

    @property
    def files(self) -> tuple[str, ...]:
        """Images, masks and, if there are, the label image and the mask of pixels to ignore."""
        return self.images + self.masks + tuple(filter(None, (self.instances, self.regions)))


class PackedPairs(Sequence[Pair]):
    """Pairs in one array of bytes, in a third of a list's memory.

    A list's items have reference counts. Writing them would copy a forked worker's shared memory.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        packed = [pickle.dumps(tuple(pair)) for pair in pairs]
        self._ends = np.cumsum([0, *map(len, packed)])
        self._bytes = np.frombuffer(b"".join(packed), dtype=np.uint8)

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "PackedPairs":
        """Pack pairs that are not packed yet."""
        return pairs if isinstance(pairs, cls) else cls(pairs)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"got the index {index}, expected one of {len(self)} pairs")
        start, end = self._ends[index % len(self)], self._ends[index % len(self) + 1]
        return Pair._make(pickle.loads(self._bytes[start:end].data))  # noqa: S301 (packed above)


def find_pairs(
    root: Path,
    images: Sequence[Places],
    masks: MaskPlaces,
    stacks: bool = False,
    warnings: list[str] | None = None,
    instances: Places | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
    exclude: Sequence[str] = (),
    skip_unlabelled: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Find the files that match patterns, and pair those of the same stem.

    In a pattern, `{stem}` stands for the text that image and mask have in common (it may contain
    folders), `{case}` for folders that they have in common, `*` for anything else within a name. A
    folder stands for all files in it. There is one pattern of images for each channel, and one of
    masks, or one for each class except the first. Label images (`instances`) may be the masks
    themselves. Files that match a pattern of `exclude` (see `is_excluded`) are left out.

    Several patterns in place of one are for several places. If all have several, the first images
    belong to the first masks, and so on; a pair's stem is then the path of its image in `root`.

    Returns the pairs in natural order, and errors: files without counterpart, stems that occur
    twice. Files that match no pattern are reported to `warnings`, and the images without any mask
    that `skip_unlabelled` leaves out.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a pattern matches no file, or images and masks have different numbers of
            places.
    """
    mask_places = list(masks.values()) if isinstance(masks, Mapping) else [masks]
    label_places = [*mask_places, *([] if instances is None else [instances])]
    image_roles, label_roles = (
        [(one,) if isinstance(one, str) else tuple(one) for one in some]
        for some in (images, label_places)
    )
    roles = [*image_roles, *label_roles]
    _check_places(root, image_roles, label_roles)
    # A file that is a mask is no image: both may be in one folder.
    labels = [_compile(root, pattern) for role in label_roles for pattern in role]
    errors: list[str] = []
    unused: set[str] = set()
    apart = all(len(role) > 1 for role in roles)
    found = [_find_files(root, one, apart, labels, errors, unused, exclude) for one in image_roles]
    found += [_find_files(root, one, apart, (), errors, unused, exclude) for one in label_roles]
    unused.difference_update(path for files in found for path in files.values())
    if unused and warnings is not None:
        warnings.append(
            f"{plural(len(unused), 'other file')} next to the images and masks, such as "
            f"{min(unused)}"
        )
    if skip_unlabelled:
        found = _without_unlabelled(found, len(images), warnings)
    complete = _complete_stems(root, roles, found, apart, instances, errors)
    if apart and len(set(found[0].values())) < len(found[0]):
        raise ValueError(
            f"{root}: got {join_some(image_roles[0])} for images, which share files, expected "
            "separate places; correct data.images"
        )
    pairs = [
        Pair(
            stem=Path(found[0][key]).relative_to(root).with_suffix("").as_posix()
            if apart
            else key[1],
            images=tuple(files[key] for files in found[: len(images)]),
            masks=tuple(files[key] for files in found[len(images) :][: len(mask_places)]),
            instances=None if instances is None else found[-1][key],
        )
        for key in _sort(complete)
    ]
    return (split_stacks(pairs, errors, options) if stacks else pairs), errors


def _check_places(
    root: Path, image_roles: Sequence[Sequence[str]], label_roles: Sequence[Sequence[str]]
) -> None:
    numbers = [len(role) for role in (*image_roles, *label_roles)]
    if len({*numbers} - {1}) > 1:
        raise ValueError(
            f"{root}: got {join_some([*map(str, numbers)])} places for images, masks and label "
            "images, expected the same number of each, or one; correct data.images, data.masks or "
            "data.instances"
        )
    images, labels = (
        {_compile(root, pattern) for role in roles for pattern in role}
        for roles in (image_roles, label_roles)
    )
    if images & labels:
        raise ValueError(
            f"{root / image_roles[0][0]}: got the same place for images and masks, expected two; "
            "correct data.images, data.masks or data.instances"
        )


def _without_unlabelled(
    found: Sequence[dict[Key, str]], num_images: int, warnings: list[str] | None
) -> list[dict[Key, str]]:
    """Leave out the files of images that have no mask."""
    labelled = set[Key]().union(*found[num_images:])
    skipped = _sort(found[0].keys() - labelled)
    if skipped and warnings is not None:
        warnings.append(
            f"left out {plural(len(skipped), 'image')} without a mask, such as "
            f"{found[0][skipped[0]]}"
        )
    return [{key: path for key, path in files.items() if key in labelled} for files in found]


def split_stacks(
    pairs: Iterable[Pair], errors: list[str], options: ReadOptions = DEFAULT_OPTIONS
) -> list[Pair]:
    """Make a pair of each page; report stacks of different lengths."""
    result = []
    unequal = []
    for pair in pairs:
        try:
            pages = [read_header(path, options).pages for path in pair.files]
        except (UnreadableError, FileNotFoundError):
            result.append(pair)  # reading it will say what is wrong
            continue
        if len(set(pages)) > 1:
            longest = pair.files[pages.index(max(pages))]
            text = f"got {min(pages)} pages, expected {max(pages)} as in {longest}; correct one"
            unequal.append((pair.files[pages.index(min(pages))], text))
            continue
        result += [pair._replace(stem=f"{pair.stem}#{i}", page=i) for i in range(pages[0])]
    errors += group_messages(unequal)
    return result


def natural_key(text: str) -> list[str | int]:
    """Sort key that puts `2.tif` before `10.tif`."""
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(text))]


def is_at(path: str | Path, root: Path, places: Places) -> bool:
    """Whether a file in `root` is one that a pattern describes, or one of several."""
    patterns = [places] if isinstance(places, str) else places
    return any(_compile(root, pattern).fullmatch(Path(path).as_posix()) for pattern in patterns)


def is_excluded(path: str, root: Path, patterns: Sequence[str]) -> bool:
    """Whether the path of a file in `root`, or its name, matches a pattern; * is any text."""
    inside = path.removeprefix(f"{root.as_posix()}/")
    names = (inside, path.rpartition("/")[2])
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _sort(keys: Iterable[Key]) -> list[Key]:
    return sorted(sorted(keys), key=lambda key: (key[0], natural_key(key[1])))  # 01 before 1


def _find_files(
    root: Path,
    patterns: Sequence[str],
    apart: bool,
    excluded: Collection[re.Pattern[str]],
    errors: list[str],
    unused: set[str],
    exclude: Sequence[str],
) -> dict[Key, str]:
    """Find the files that match one of the patterns, and none of the excluded ones.

    The number of the pattern is part of the key if the places are `apart`, else 0.
    """
    found: dict[Key, str] = {}
    twice: list[str] = []
    for place, pattern in enumerate(patterns):
        base = root / _fixed_folders(pattern)
        if not base.is_dir():
            raise FileNotFoundError(no_such(base, "folder"))
        expression = _compile(root, pattern)
        num_files = 0
        for path in list_files(base):
            if exclude and is_excluded(path, root, exclude):
                continue
            match = expression.fullmatch(path)
            if match is None or any(other.fullmatch(path) for other in excluded):
                if not is_named_as_image(path) and Path(path).is_dir():
                    errors.append(f"{path}: cannot be listed; correct its permissions")
                else:
                    unused.add(path)
                continue
            num_files += 1
            key = place if apart else 0, "/".join(match.groups())
            if key in found:
                twice.append(" and ".join(sorted((found[key], path))))
            found[key] = path
        if not num_files:
            there_are = [*list_files(base)]
            suffixes = Counter(Path(path).suffix or "(no ending)" for path in there_are)
            there = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
            raise ValueError(
                f"{root / pattern}: matches no file in {base} ({there or 'it is empty'}), expected "
                f"names ending in {', '.join(sorted(SUFFIXES))}; "
                f"{find_other_format(there_are) or 'check the pattern'}"
            )
    advice = "remove one, or let {stem} in the pattern contain the difference"
    text = f"have the same stem, expected one file of each stem; {advice}"
    errors += group_messages([(both, text) for both in sorted(twice)], "pairs of files")
    return found


def _complete_stems(
    root: Path,
    roles: Sequence[Sequence[str]],
    found: Sequence[Mapping[Key, str]],
    apart: bool,
    instances: Places | None,
    errors: list[str],
) -> set[Key]:
    """The keys with a file of every role; report the files of the others."""
    # A key is reported by its mask, else by its image, else by its label image.
    ordered = found if instances is None else [found[-1], *found[:-1]]
    file_of = {key: path for files in ordered for key, path in files.items()}
    for patterns, files in zip(roles, found, strict=True):
        missing: dict[int, list[Key]] = {}
        for key in _sort(file_of.keys() - files.keys()):
            missing.setdefault(key[0], []).append(key)
        for place, keys in missing.items():
            names = join_some([file_of[key] for key in keys])
            where = patterns[place : place + 1] if apart else patterns
            errors.append(
                f"{' or '.join(str(root / one) for one in where)}: there is no file of the same "
                f"stem for {names}; add or move the files, or correct the pattern"
            )
    return set.intersection(*(set(files) for files in found))


@cache
def _compile(root: Path, pattern: str) -> re.Pattern[str]:
    """The regular expression of whole paths, with a group `stem`."""
    path = (root / pattern).as_posix()
    if "{stem}" not in path:
        path += "/{stem}"
    suffix, ending = Path(path).suffix, _ANY_SUFFIX
    if suffix.lower() in SUFFIXES:
        path, ending = path.removesuffix(suffix), f"(?i:{re.escape(suffix)})"
    text = re.escape(path).replace(r"\{stem\}", "(?P<stem>.+)", 1)
    text = text.replace(r"\{case\}", "(?P<case>.+)", 1).replace(r"\{case\}", "(?P=case)")
    text = text.replace(r"\{stem\}", "(?P=stem)").replace(r"\*", "[^/]*")
    return re.compile(text + ending, re.DOTALL)


def _fixed_folders(pattern: str) -> Path:
    """The folders of a pattern before the first that varies."""
    parts = Path(pattern).parts if "{stem}" in pattern else (*Path(pattern).parts, "{stem}")
    return Path(*takewhile(lambda part: not re.search(r"\*|\{(stem|case)\}", part), parts))
