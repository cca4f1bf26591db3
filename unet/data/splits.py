"""Which pairs are trained on, and which are kept to be scored."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unet.data.pairing import Pair
from unet.runtime.seeds import Stream


def split_randomly(
    pairs: Sequence[Pair],
    present: np.ndarray,
    shares: Sequence[float],
    seed: int,
    group: str | None = None,
) -> np.ndarray:
    """Deal the pairs out to parts by lot, every combination of classes alike.

    Args:
        pairs: to be dealt out.
        present: (N, K), whether a pair has a class.
        shares: of each part; they sum to 1.
        seed: of the lot.
        group: regular expression; stems in which it finds the same (its first group, if it has
            one) stay together.

    Returns:
        (N,) the part of each pair. No part is empty.

    Raises:
        ValueError: if there are fewer groups than parts, or `group` finds nothing in a stem.
    """
    units: dict[str, int] = {}
    unit_of = [units.setdefault(_group_of(pair.stem, group), len(units)) for pair in pairs]
    if len(units) < len(shares):
        what = "pair(s)" if group is None else f"group(s) by {group!r}"
        raise ValueError(
            f"data.validation: got {len(units)} {what} to split, expected at least {len(shares)}; "
            "add images, or give those to keep by data.validation.images"
        )
    order = np.random.default_rng([Stream.SPLIT, seed]).permutation(len(units)).tolist()
    # Units of the same classes follow each other, so that dealing in turn divides them evenly.
    classes = np.zeros((len(units), present.shape[1]), bool)
    np.logical_or.at(classes, unit_of, present)
    order.sort(key=[row.tobytes() for row in classes].__getitem__)
    sizes = np.bincount(unit_of).tolist()
    parts = np.zeros(len(units), np.int64)
    counts, seen = [0] * len(shares), 0
    for unit in order:
        seen += sizes[unit]
        lacking = [share * seen - count for share, count in zip(shares, counts, strict=True)]
        parts[unit] = part = lacking.index(max(lacking))
        counts[part] += sizes[unit]
    for part in [part for part, count in enumerate(counts) if not count]:
        # So small a share that none fell to it.
        largest = int(np.bincount(parts[unit_of], minlength=len(shares)).argmax())
        parts[next(unit for unit in order if parts[unit] == largest)] = part
    return parts[unit_of]


def _group_of(stem: str, group: str | None) -> str:
    if group is None:
        return stem
    match = re.search(group, stem)
    if match is None or (match.re.groups and match[1] is None):
        raise ValueError(
            f"data.validation.group: {group!r} finds nothing in {stem!r}, expected something in "
            "every stem"
        )
    return str(match[1] if match.re.groups else match[0])


def split_by_stems(pairs: Sequence[Pair], stems: Sequence[str]) -> np.ndarray:
    """Take the pairs of the given stems for validation: (N,) of bool.

    Raises:
        ValueError: if a stem is not among the pairs, or none is left to train on.
    """
    known = [pair.stem for pair in pairs]
    if unknown := sorted(set(stems) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"data.validation.stems: got {', '.join(map(repr, unknown[:5]))}{more}, expected stems "
            f"of images such as {pairs[0].images[0]} ({pairs[0].stem!r}){hint}"
        )
    chosen = set(stems)
    if chosen == set(known):
        raise ValueError("data.validation.stems: got every image, expected some left to train on")
    return np.array([stem in chosen for stem in known])


def read_stems(path: Path) -> list[str]:
    """Read a file with a stem on each line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty or no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check data.validation.stems")
    try:
        stems = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text ({error}); give a stem on each line") from error
    if not any(stems):
        raise ValueError(f"{path}: is empty, expected a stem on each line")
    return [stem for stem in stems if stem]
