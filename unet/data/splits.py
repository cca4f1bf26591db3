"""Which pairs are for training, and which for validation."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unet.data.image_types import SUFFIXES
from unet.data.pairing import Pair
from unet.runtime.seeds import Stream
from unet.runtime.text import join_some, plural

# The split of a pair; rows of a table may belong to neither.
TRAIN, VAL, UNUSED = 0, 1, -1


def split_randomly(
    pairs: Sequence[Pair],
    present: np.ndarray,
    fractions: Sequence[float],
    seed: int,
    group: str | None = None,
) -> np.ndarray:
    """Split the N pairs at random, each combination of classes in the same proportions.

    `present` (N, K) says whether a pair has pixels of a class. Stems in which the regular
    expression `group` finds the same text (its first group, if it has one) stay together. Returns
    (N,) the index of each pair's subset, one of `fractions`, which sum to 1. No subset is empty.

    Raises:
        ValueError: if there are fewer groups than subsets, or `group` finds nothing in a stem.
    """
    groups: dict[str, int] = {}
    group_of = [groups.setdefault(_find_group(pair.stem, group), len(groups)) for pair in pairs]
    if len(groups) < len(fractions):
        by = "" if group is None else f" by {group!r}"
        what = plural(len(groups), "pair" if group is None else "group") + by
        raise ValueError(
            f"data.validation: got {what} to split, expected at least "
            f"{len(fractions)}; add images, choose the validation images by "
            "data.validation.images, or train on all pairs by data.validation=none"
        )
    order = np.random.default_rng([Stream.SPLIT, seed]).permutation(len(groups)).tolist()
    # Groups with the same classes follow each other, so that all subsets get some of them.
    classes = np.zeros((len(groups), present.shape[1]), bool)
    np.logical_or.at(classes, group_of, present)
    order.sort(key=[row.tobytes() for row in classes].__getitem__)
    sizes = np.bincount(group_of).tolist()
    subsets = np.zeros(len(groups), np.int64)
    counts, seen = [0] * len(fractions), 0
    for i in order:
        seen += sizes[i]
        missing = [f * seen - count for f, count in zip(fractions, counts, strict=True)]
        subsets[i] = subset = missing.index(max(missing))
        counts[subset] += sizes[i]
    for empty in [subset for subset, count in enumerate(counts) if not count]:
        # Its fraction is less than one group: take one from the largest subset.
        largest = int(np.bincount(subsets[group_of], minlength=len(fractions)).argmax())
        subsets[next(i for i in order if subsets[i] == largest)] = empty
    return subsets[group_of]


def split_by_stems(pairs: Sequence[Pair], stems: Sequence[str]) -> np.ndarray:
    """Return (N,) bool, True for the pairs with the given stems, which are for validation.

    In place of a stem, the path of an image or mask may be given, with or without its ending.

    Raises:
        ValueError: if a stem is unknown, or all are given.
    """
    known = [pair.stem for pair in pairs]
    stems = find_stems(pairs, stems)
    if unknown := sorted(set(stems) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"data.validation.stems: got {join_some([*map(repr, unknown)])}, expected stems of "
            f"images such as {pairs[0].images[0]} ({pairs[0].stem!r}){hint}"
        )
    if set(stems) == set(known):
        raise ValueError("data.validation.stems: lists every image; leave some to train on")
    return np.isin(known, list(stems))


def find_stems(pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """Return the stem for each name that is a stem or the path of a file, other names as they are.

    Of a path, the name of the file and of its folder must agree.
    """
    known = {pair.stem for pair in pairs}
    if known.issuperset(names):
        return list(names)
    by_path: dict[str, str] = {}
    for pair in pairs:
        for file in pair.files:
            parts = Path(file).with_suffix("").parts
            for start in range(max(0, len(parts) - 6), len(parts)):
                by_path.setdefault("/".join(parts[start:]), pair.stem)

    def find_stem(name: str) -> str:
        if name in known:
            return name
        # Some lists have a second column.
        path = Path((name.split() or [""])[0].replace("\\", "/").lstrip("/"))
        path = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
        parts = path.parts
        for start in range(max(1, len(parts) - 1)):
            tail = "/".join(parts[start:])
            if tail in known or tail in by_path:
                return tail if tail in known else by_path[tail]
        return name

    return [find_stem(name) for name in names]


def split_by_table(pairs: Sequence[Pair], val_split: str) -> np.ndarray:
    """Return (N,) the split of each pair by its column `split`: train, `val_split` or another.

    Raises:
        ValueError: if there is no pair for training or none for validation.
    """
    names = [pair.split for pair in pairs]
    for name in ("train", val_split):
        if name not in names:
            known = ", ".join(sorted(set(names)))
            raise ValueError(
                f"data.validation.split: no row has {name!r} in the column split ("
                f"{known or 'which is empty'}); correct it or the table"
            )
    return np.array([{"train": TRAIN, val_split: VAL}.get(name, UNUSED) for name in names])


def read_stems(path: Path) -> list[str]:
    """Read a file with a stem on each line; raise ValueError if it is empty or no text."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check data.validation.stems")
    try:
        stems = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text ({error}); give a stem on each line") from error
    if not any(stems):
        raise ValueError(f"{path}: is empty, expected a stem on each line")
    return [stem for stem in stems if stem]


def _find_group(stem: str, group: str | None) -> str:
    if group is None:
        return stem
    match = re.search(group, stem)
    text = match and match[1 if match.re.groups else 0]
    if text is None:
        raise ValueError(
            f"data.validation.group: {group!r} finds nothing in {stem!r}, expected something in "
            "every stem"
        )
    return str(text)
