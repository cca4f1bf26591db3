"""Which image file belongs to which mask file."""

import csv
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unet.data.image_io import SUFFIXES, UnreadableError, count_pages

_NUMBER = re.compile(r"(\d+)")
_ENDING = rf"(?i:{'|'.join(re.escape(suffix) for suffix in sorted(SUFFIXES))})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The files of an image and of its mask.

    Paths are text, because there may be hundreds of thousands.
    """

    stem: str
    """What both names have in common; with `#` and the page, of a stack."""
    images: tuple[str, ...]
    """One file, or one for each channel."""
    masks: tuple[str, ...]
    """One file, or one for each class but the first."""
    page: int | None = None
    """Which image of a stack, from 0."""
    split: str = ""
    """What the table says."""
    instances: str | None = None
    """The file of a label image, where there are such."""

    @property
    def files(self) -> tuple[str, ...]:
        """All its files."""
        return self.images + self.masks + ((self.instances,) if self.instances else ())


class PackedPairs(Sequence[Pair]):
    """Pairs in one array of bytes: a third of the memory of a list, and none of its counters.

    A list's items count who refers to them, and that writes to the memory that a forked worker
    shares with its parent, page by page, until it has a copy of all.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        packed = [
            pickle.dumps(
                (pair.stem, pair.images, pair.masks, pair.page, pair.split, pair.instances)
            )
            for pair in pairs
        ]
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
        index %= len(self)
        start, end = self._ends[index], self._ends[index + 1]
        stem, images, masks, page, split, instances = pickle.loads(  # noqa: S301 (packed above)
            self._bytes[start:end].data
        )
        return Pair(
            stem=stem, images=images, masks=masks, page=page, split=split, instances=instances
        )


def find_pairs(
    root: Path,
    images: Sequence[str],
    masks: str | Mapping[str, str],
    stacks: bool = False,
    notes: list[str] | None = None,
    instances: str | None = None,
) -> tuple[list[Pair], list[str]]:
    """Find the files that patterns describe, and pair those of one stem.

    Args:
        root: the folder that the patterns are relative to.
        images: a folder or pattern, or one for each channel. `{stem}` stands for what image and
            mask have in common (it may hold folders), `*` for anything else within a name. A
            folder means all that lies in it.
        masks: likewise; or one for each class but the first.
        stacks: whether each file is a stack of images.
        notes: to be told of files that lie there, but that no pattern describes.
        instances: as masks, of the label images; None for none. May be the masks themselves.

    Returns:
        The pairs in natural order, and what is wrong: files that lack their other half, stems that
        are there twice.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a pattern describes no file.
    """
    mask_patterns = list(masks.values()) if isinstance(masks, Mapping) else [masks]
    faults: list[str] = []
    # A file that is a mask is no image: both may lie in one folder.
    label_patterns = [*mask_patterns, *([] if instances is None else [instances])]
    of_masks = [_compile(root, pattern) for pattern in label_patterns]
    if {_compile(root, one) for one in images} & set(of_masks):
        raise ValueError(
            f"{root / images[0]}: got the same place for images and masks, expected two; correct "
            "data.images, data.masks or data.instances"
        )
    sides = []
    unused: set[str] = set()
    for pattern in [*images, *label_patterns]:
        others = of_masks if pattern in images else []
        sides.append((pattern, _find(root, pattern, others, faults, unused)))
    unused.difference_update(path for _, files in sides for path in files.values())
    if unused and notes is not None:
        notes.append(
            f"{len(unused)} other file(s) beside the images and masks, such as {min(unused)}"
        )
    # In the order of the first side; what others have besides comes after.
    stems = dict.fromkeys(stem for _, files in sides for stem in files)
    incomplete: set[str] = set()
    for pattern, files in sides:
        if lacking := sorted((one for one in stems if one not in files), key=natural_key):
            incomplete.update(lacking)
            # Named by the mask, else the image, else the label image.
            ordered = sides if instances is None else [sides[-1], *sides[:-1]]
            have = {s: file for _, other in ordered for s, file in other.items()}
            faults.append(
                f"{root / pattern}: got nothing for {_some(have[stem] for stem in lacking)}, "
                "expected a file of the same stem: add or move the files, or correct the pattern"
            )
    pairs = [
        Pair(
            stem=stem,
            images=tuple(files[stem] for _, files in sides[: len(images)]),
            masks=tuple(files[stem] for _, files in sides[len(images) :][: len(mask_patterns)]),
            instances=None if instances is None else sides[-1][1][stem],
        )
        for stem in sorted(sorted(stems), key=natural_key)  # 01 before 1, however they are listed
        if stem not in incomplete
    ]
    return (_unstack(pairs, faults) if stacks else pairs), faults


def read_table(root: Path, table: str, stacks: bool = False) -> tuple[list[Pair], list[str]]:
    """Read pairs from a CSV file with the columns image and mask, and split if there is one.

    Args:
        root: the folder that the table and the paths in it are relative to.
        table: the file.
        stacks: whether each file is a stack of images.

    Returns:
        The pairs in the table's order, and what is wrong: files that are not there, rows that
        lack one, images that are there twice.

    Raises:
        FileNotFoundError: if there is no such table.
        ValueError: if it lacks a column or has no rows.
    """
    path = root / table
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such table; check data.csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8") from error
    if lacking := {"image", "mask"} - set(columns):
        raise ValueError(
            f"{path}: got the columns {', '.join(columns) or '(none)'}, expected "
            f"{' and '.join(sorted(lacking))} too, with commas in between"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: got a column twice in {', '.join(columns)}; remove one")
    faults: list[str] = []
    pairs: dict[str, Pair] = {}
    used = {row["image"] for _, row in rows}
    for number, row in rows:
        files = [row["image"], row["mask"]]
        if not all(files):
            faults.append(f"{path}: line {number} lacks an image or a mask; complete it")
            continue
        missing = [name for name in files if not (root / name).is_file()]
        stem = Path(files[0]).with_suffix("").as_posix()
        if missing:
            faults.append(
                f"{path}: line {number}: there is no file {root / missing[0]}; correct the path"
            )
            continue
        if stem in pairs:
            faults.append(
                f"{path}: line {number}: {files[0]} has the stem of {pairs[stem].images[0]}, "
                "expected each once; remove or rename one"
            )
            continue
        if files[1] in used:
            faults.append(
                f"{path}: line {number}: {files[1]} is there twice, expected a file of its own for "
                "each image and mask; correct one"
            )
            continue
        used.update(files)
        pairs[stem] = Pair(
            stem=stem,
            images=(str(root / files[0]),),
            masks=(str(root / files[1]),),
            split=row.get("split") or "",
        )
    if not rows:
        raise ValueError(f"{path}: got no rows, expected one for each image")
    found = list(pairs.values())
    return (_unstack(found, faults) if stacks else found), faults


def natural_key(text: str) -> list[str | int]:
    """Sort key by which `2.tif` comes before `10.tif`."""
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(text))]


def list_images(folder: Path) -> list[Path]:
    """All image files of a folder in natural order; hidden files and other endings are not.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; check the path")
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not files:
        raise ValueError(
            f"{folder}: got no image, expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(files, key=lambda path: (natural_key(path.name), path.name))


def list_files(folder: str | Path, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """All files in a folder and the folders in it, but hidden ones, in no certain order."""
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry.path.replace(os.sep, "/").removeprefix("./")
            # A link may lead back to a folder that it lies in.
            elif not entry.is_symlink() or os.path.realpath(entry.path) not in above:
                yield from list_files(entry.path, above)


def _find(
    root: Path,
    pattern: str,
    others: Sequence[re.Pattern[str]],
    faults: list[str],
    unused: set[str],
) -> dict[str, str]:
    """Find the files of a pattern that no other describes, by their stems."""
    base = root / _fixed_part(pattern)
    if not base.is_dir():
        raise FileNotFoundError(f"{base}: there is no such folder; check the path")
    expression = _compile(root, pattern)
    files: dict[str, str] = {}
    for path in list_files(base):
        match = expression.fullmatch(path)
        if match is None or any(other.fullmatch(path) for other in others):
            unused.add(path)
            continue
        stem = match["stem"]
        if stem in files:
            faults.append(
                f"{path}: has the stem {stem!r} of {files[stem]}, expected one file of each stem; "
                "remove one, or let {stem} in the pattern hold what differs"
            )
        files[stem] = path
    if not files:
        there = Counter(Path(path).suffix or "(no ending)" for path in list_files(base))
        found = ", ".join(f"{count} {ending}" for ending, count in there.most_common(5))
        raise ValueError(
            f"{root / pattern}: matches no file in {base} ({found or 'it is empty'}), expected "
            f"names ending in {', '.join(sorted(SUFFIXES))}; check the pattern"
        )
    return files


def _compile(root: Path, pattern: str) -> re.Pattern[str]:
    """A regular expression of whole paths, with a group `stem`."""
    path = (root / pattern).as_posix()
    if "{stem}" not in path:
        path += "/{stem}"
    ending = Path(path).suffix
    if ending.lower() in SUFFIXES:
        path = path.removesuffix(ending)
    text = re.escape(path) + (
        f"(?i:{re.escape(ending)})" if ending.lower() in SUFFIXES else _ENDING
    )
    text = text.replace(r"\{stem\}", "(?P<stem>.+)", 1).replace(r"\{stem\}", "(?P=stem)")
    return re.compile(text.replace(r"\*", "[^/]*"), re.DOTALL)


def _fixed_part(pattern: str) -> Path:
    """The folders of a pattern before anything that varies."""
    parts = Path(pattern).parts
    if "{stem}" not in pattern:
        pattern += "/{stem}"
        parts = (*parts, "{stem}")
    fixed = next(i for i, part in enumerate(parts) if "*" in part or "{stem}" in part)
    return Path(*parts[:fixed])


def _unstack(pairs: Sequence[Pair], faults: list[str]) -> list[Pair]:
    """Make a pair of each page."""
    result = []
    for pair in pairs:
        try:
            pages = [count_pages(path) for path in pair.files]
        except (UnreadableError, FileNotFoundError):
            result.append(pair)  # reading it will say what is wrong
            continue
        if len(set(pages)) > 1:
            faults.append(
                f"{pair.files[pages.index(min(pages))]}: got {min(pages)} pages, expected "
                f"{max(pages)} as in {pair.files[pages.index(max(pages))]}; correct one"
            )
            continue
        result += [replace(pair, stem=f"{pair.stem}#{page}", page=page) for page in range(pages[0])]
    return result


def _some(paths: Iterable[str]) -> str:
    """Name the first few of many files."""
    names = list(paths)
    shown = ", ".join(names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
