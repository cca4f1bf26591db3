"""Images that look alike in training and validation, and one image with two masks.

Thumbnails are compared in all eight turns and mirrorings, without their lowest frequencies, which
unrelated images of one kind of object share. Of the pairs that are most alike, the images
are read again, and their details are compared, too.
"""

import re
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

from unet.config.schema import Config
from unet.data.image_io import to_float
from unet.data.pairing import Pair
from unet.data.reader import PairReader
from unet.data.resize import resize_area
from unet.inspection.groups import GROUPS
from unet.inspection.statistics import THUMBNAIL_SIDE, PairStatistics
from unet.runtime.text import group_messages, plural

_ALIKE, _SAME_DETAILS = 0.95, 0.7  # correlations
_MOST_READ = 50  # pairs of images
_DETAIL_SIDE = 128
_BLOCK = 2000  # thumbnails compared at a time

# What copies of an image may have in common: img_12_turned and img_12, or turned_12 and img_12.
_PATTERNS = (*(pattern for pattern, _ in GROUPS), "^[^0-9]*[0-9]+", "([0-9]+)[^0-9]*$")


def find_duplicates(
    train_pairs: Sequence[Pair],
    val_pairs: Sequence[Pair],
    train: PairStatistics,
    val: PairStatistics,
) -> list[str]:
    """List equal images with different masks, and those that are in both training and validation.

    Constant images do not count.
    """
    pairs, both = [*train_pairs, *val_pairs], np.concatenate([train, val])
    squares, sums, pixels = both["squares"], both["sums"], both["sizes"].prod(1)
    varied = (squares * pixels[:, None] - sums**2 > 1e-9 * sums**2).any(1)
    groups: dict[bytes, list[int]] = {}
    for i in np.flatnonzero(varied).tolist():
        groups.setdefault(both["contents"][i], []).append(i)
    messages = []
    for first, *others in groups.values():
        other = next((i for i in others if both["targets"][i] != both["targets"][first]), None)
        if other is not None:
            one, two = (f"{pairs[i].images[0]} with {pairs[i].masks[0]}" for i in (first, other))
            text = f"got the same pixels as in {one}, but another mask, expected one for an image"
            messages.append((two, f"{text}; remove or correct one of them"))
            continue
        held_out = next((i for i in others if i >= len(train)), None)
        if held_out is not None and first < len(train):
            text = (
                f"got the same pixels in the validation image {pairs[held_out].images[0]}, "
                "expected no image in both training and validation; remove one, or keep them "
                "together with data.validation.group"
            )
            messages.append((pairs[first].images[0], text))
    return group_messages(messages)


def warn_of_similar(
    config: Config,
    reader: PairReader,
    train_pairs: Sequence[Pair],
    val_pairs: Sequence[Pair],
    train: PairStatistics,
    val: PairStatistics,
) -> list[str]:
    """Describe images in training and validation that are nearly the same, and how to part them."""
    found = find_similar(reader, train_pairs, val_pairs, train, val)
    if not found:
        return []
    (one, other), *others = found
    also = f" ({plural(len(others), 'other pair')} too)" if others else ""
    group = _find_group(config, [*train_pairs, *val_pairs], found)
    advice = f"keep them together with data.validation.group={group!r}"
    if group is None:
        advice = "leave out one of them with data.exclude"
    return [
        f"{one.images[0]}: is nearly the same as the validation image {other.images[0]}, perhaps "
        f"turned, mirrored or compressed{also}, which makes scores too high; {advice}"
    ]


def propose_group(
    config: Config, pairs: Sequence[Pair], similar: Sequence[tuple[Pair, Pair]]
) -> list[str]:
    """Comments of a config on similar images that a split may separate."""
    if not similar:
        return []
    one, other = similar[0]
    lines = [
        f"# {plural(len(similar), 'pair')} of images are nearly the same, such as {one.images[0]} "
        f"and {other.images[0]}."
    ]
    if (group := _find_group(config, pairs, similar)) is not None:
        lines.append("# To keep each pair together in training or in validation:")
        lines.append(f"#   validation: {{fraction: 0.2, group: '{group}'}}")
    return lines


def find_similar(
    reader: PairReader,
    one_pairs: Sequence[Pair],
    other_pairs: Sequence[Pair],
    ones: PairStatistics,
    others: PairStatistics,
) -> list[tuple[Pair, Pair]]:
    """Find pairs of images, one of each sequence, that are nearly the same, and not equal.

    At most 50 pairs are found, those with the most similar thumbnails. If both sequences are the
    same, each image is compared with those after it, and equal ones are found, too.
    """
    candidates: list[tuple[float, int, int]] = []
    own, theirs = _describe(ones.thumbnails), _describe(others.thumbnails)
    blocks = (range(0, len(some), _BLOCK) for some in (own, theirs))
    for top, left in product(*blocks):
        rows, columns = own[top : top + _BLOCK], theirs[left : left + _BLOCK]
        # No turn or mirroring makes two images more alike than their symmetric descriptions.
        near = _symmetric(rows) @ _symmetric(columns).T >= _ALIKE
        for i, j in np.argwhere(near).tolist():
            is_equal = ones.contents[top + i] == others.contents[left + j]
            if left + j <= top + i if ones is others else is_equal:
                continue
            alike = max(float((rows[i] * view).sum()) for view in _views(columns[j]))
            if alike >= _ALIKE:
                candidates.append((alike, top + i, left + j))
    found = []
    for _, i, j in sorted(candidates, reverse=True)[:_MOST_READ]:
        one, other = one_pairs[i], other_pairs[j]
        sizes = sorted(ones["sizes"][i].tolist()), sorted(others["sizes"][j].tolist())
        # A smaller copy has no finer details.
        smallest = _DETAIL_SIDE if sizes[0] == sizes[1] else min(sizes[0][0], sizes[1][0])
        side = min(max(smallest, 2 * THUMBNAIL_SIDE), _DETAIL_SIDE)
        details, other_details = (_details(reader, pair, side) for pair in (one, other))
        if max(float((details * view).sum()) for view in _views(other_details)) >= _SAME_DETAILS:
            found.append((one, other))
    return found


def _find_group(
    config: Config, pairs: Sequence[Pair], together: Sequence[tuple[Pair, Pair]]
) -> str | None:
    """Find a regular expression of `data.validation.group` that keeps pairs of images together.

    Of several, the one with the most groups; None if there is none, or no random split.
    """
    if config.data.validation.fraction is None and config.data.validation.folds is None:
        return None
    best, most = None, 2
    for pattern in _PATTERNS:
        matches = {pair.stem: re.search(pattern, pair.stem) for pair in pairs}
        texts = {stem: match[match.re.groups] for stem, match in matches.items() if match}
        complete = len(texts) == len(matches)
        if complete and all(texts[one.stem] == texts[other.stem] for one, other in together):
            count = len({*texts.values()})
            best, most = (pattern, count) if count > most else (best, most)
    return best


def _describe(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails (N, S, S) without their lowest frequencies, (N, S, S) of unit length."""
    matrix = _cosines()
    frequencies = matrix @ thumbnails.astype(np.float32) @ matrix.T
    order = np.arange(THUMBNAIL_SIDE)
    frequencies[:, order[:, None] + order < 3] = 0
    lengths = np.sqrt((frequencies**2).sum((1, 2), keepdims=True))
    described: np.ndarray = matrix.T @ (frequencies / np.maximum(lengths, 1e-6)) @ matrix
    return described


def _symmetric(described: np.ndarray) -> np.ndarray:
    """Describe images (N, S, S) by numbers (N, D) that are equal in all turns and mirrorings.

    These change the signs of frequencies, and exchange rows and columns.
    """
    frequencies = _cosines() @ described @ _cosines().T
    squares = (frequencies**2 + frequencies.transpose(0, 2, 1) ** 2) / 2
    symmetric: np.ndarray = np.sqrt(squares).reshape(len(described), THUMBNAIL_SIDE**2)
    return symmetric


def _cosines() -> np.ndarray:
    """The matrix of the discrete cosine transform."""
    order = np.arange(THUMBNAIL_SIDE)
    matrix = np.cos(np.pi * order[:, None] * (order + 0.5) / THUMBNAIL_SIDE)
    matrix *= np.sqrt(np.where(order, 2, 1) / THUMBNAIL_SIDE)[:, None]
    return matrix.astype(np.float32)


def _views(square: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(one, turns) for one in (square, square[:, ::-1]) for turns in range(4)]


def _details(reader: PairReader, pair: Pair, side: int) -> np.ndarray:
    """The differences of an image from its local mean, (S, S) of unit length."""
    image = torch.from_numpy(to_float(reader.read(pair)[0])).mean(0, keepdim=True).nan_to_num()
    small = resize_area(image, (side, side))
    details = small - F.avg_pool2d(small, 5, 1, 2, count_include_pad=False)
    unit: np.ndarray = (details / details.norm().clamp(min=1e-6))[0].numpy()
    return unit
