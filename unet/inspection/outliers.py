"""The pairs -> those that are unlike all others, such as an overview figure and its drawing."""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

from unet.data.image_io import read_header
from unet.data.pairing import Pair
from unet.inspection.discovery import read_each
from unet.inspection.mask_values import count_values

_FEWEST = 6
"""Among fewer pairs, none is unlike the others."""


class _Traits(NamedTuple):
    """Where a pair is unlike others."""

    folder: Hashable
    size: Hashable
    image: Hashable
    mask: Hashable


_WORDS = ("folder", "size", "type of the image", "type of the mask")


def find_outliers(pairs: Sequence[Pair]) -> list[tuple[Pair, list[str]]]:
    """Find pairs that differ in two traits in which nearly all others agree, with these traits."""
    if len(pairs) < _FEWEST:
        return []
    described = list(read_each(lambda pair: (pair, _describe(pair)), pairs))
    few = max(1, len(described) // 50)
    usual = [
        Counter(column).most_common(1)[0] for column in zip(*(t for _, t in described), strict=True)
    ]
    outliers = []
    for pair, traits in described:
        unlike = [
            word
            for word, trait, (most, count) in zip(_WORDS, traits, usual, strict=True)
            if trait != most and count >= len(described) - few
        ]
        if len(unlike) == 1 and _has_foreign_values(pair, pairs):
            unlike.append("values of the mask")
        if len(unlike) > 1:
            outliers.append((pair, unlike))
    return outliers if len(outliers) <= few else []


def _has_foreign_values(pair: Pair, pairs: Sequence[Pair]) -> bool:
    """Whether a mask has many values, and some other masks do not have most of them."""
    some = [one for one in pairs[:: max(1, len(pairs) // 9)] if one != pair]
    drawn, *others = [set(count_values([(one.masks[0], one.page)]).pixels) for one in (pair, *some)]
    return len(drawn) > 8 and 2 * len(drawn.difference(*others)) > len(drawn)


def _describe(pair: Pair) -> _Traits:
    image, mask = read_header(pair.images[0]), read_header(pair.masks[0])
    types = (
        (header.bands - header.alpha, header.dtype, header.palette is None)
        for header in (image, mask)
    )
    depth = len(Path(pair.images[0]).parts)
    return _Traits(depth, image.upright_size, *types)
