"""The data of a config: found, read once in full, split, and described."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unet.build import (
    build_training_reader,
    find_root,
    given_normalization,
    list_pairs,
    list_validation_pairs,
    numbers_of_weights,
)
from unet.config.schema import Config
from unet.data.normalization import Normalization, normalization_from_sums
from unet.data.pairing import PackedPairs, Pair
from unet.data.splits import read_stems, split_by_stems, split_randomly
from unet.data.synthetic import draw_quickstart
from unet.inspection.statistics import CACHE_VERSION, PairStatistics, collect_statistics
from unet.runtime.text import table


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """The pairs of a config that can be read, and what was found out about them.

    Args:
        train_pairs: to be trained on.
        val_pairs: to be scored.
        train: what was found in the training pairs.
        val: what was found in the validation pairs.
        errors: what must be corrected before training.
        warnings: what is possible, but likely a mistake.
        skipped: pairs left out because they cannot be read.
    """

    train_pairs: PackedPairs
    val_pairs: PackedPairs
    train: PairStatistics
    val: PairStatistics
    errors: list[str]
    warnings: list[str]
    skipped: int

    @property
    def fingerprint(self) -> str:
        """Of the images and of what is learned from their masks; of the split as well."""
        digest = hashlib.blake2b(digest_size=16)
        train, val = self.train, self.val
        # Border weights are learned, never scored.
        for column in (train.contents, train.targets, train.cells, val.contents, val.targets):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def normalization(self, config: Config) -> Normalization:
        """Return the normalization that a config asks for."""
        return (
            given_normalization(config)
            or numbers_of_weights(config)
            or normalization_from_sums(
                self.train.pixels, self.train.sums.sum(0), self.train.squares.sum(0)
            )
        )


def check_data(config: Config) -> CheckedData:
    """Find, read and split everything that a config names; what was read before is remembered.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        ValueError: if a pattern matches nothing, or scipy is needed and not installed.
    """
    reader = build_training_reader(config)
    if config.data.draw_quickstart and not Path(config.data.root).exists():
        print(f"drawing the quickstart data into {config.data.root}")
        draw_quickstart(Path(config.data.root))
    validation = config.data.validation
    if validation.folds is not None and validation.fold is None:
        raise ValueError(
            f"data.validation.fold: got none of 0 to {validation.folds - 1}; set one, or train "
            "each with --folds all"
        )
    notes: list[str] = []
    pairs, faults = list_pairs(config, notes, instances=True)
    own_val_pairs, val_faults = list_validation_pairs(config, notes, instances=True)
    faults += val_faults
    if {pair.images for pair in pairs} & {pair.images for pair in own_val_pairs}:
        faults.append(
            f"data.validation.images: got {validation.images}, of which data.images names files "
            "too, expected others"
        )
    everything = [*pairs, *own_val_pairs]
    kept, found, unreadable, read_faults = collect_statistics(
        everything, reader, _memory_of(config)
    )
    skipped = len(unreadable) if config.data.skip_unreadable else 0
    if skipped:
        notes += [*unreadable, f"left out {skipped} pair(s) that cannot be read"]
    else:
        faults += [line for text in unreadable for line in text.splitlines()]
    faults += read_faults
    # 0 trained on, 1 scored, -1 neither.
    side = (kept >= len(pairs)).astype(np.int64)
    readable = [everything[i] for i in kept.tolist()]
    if readable and config.data.validation.images is None:
        try:
            side = _split(config, everything, kept, found.class_pixels > 0)
        except (ValueError, FileNotFoundError) as error:
            # Too few to split by lot, if others cannot be read, is no fault of its own.
            validation = config.data.validation
            if validation.stems is not None or validation.split is not None or not faults:
                faults.append(str(error))
    if (side < 0).any():
        notes.append(f"{np.count_nonzero(side < 0)} row(s) of {config.data.csv} are in no part")
    train_pairs, val_pairs = (
        [readable[i] for i in np.flatnonzero(side == part).tolist()] for part in (0, 1)
    )
    train, val = found[side == 0], found[side == 1]
    if not faults:
        faults = _contradictions(config, train, val)
    faults += _on_both_sides(train_pairs, val_pairs, train, val)
    return CheckedData(
        train_pairs=PackedPairs(train_pairs),
        val_pairs=PackedPairs(val_pairs),
        train=train,
        val=val,
        errors=faults,
        warnings=[*notes, *_oddities(config, [*train_pairs, *val_pairs], train, val)],
        skipped=skipped,
    )


def describe(config: Config, data: CheckedData) -> str:
    """Lay out sizes, modes and classes of checked data as text."""
    sizes = np.concatenate([data.train.sizes, data.val.sizes])
    types = np.concatenate([data.train.types, data.val.types]).astype(str)
    lines = [
        f"{len(data.train)} training and {len(data.val)} validation images",
        "size             " + _most([f"{height} x {width}" for height, width in sizes.tolist()]),
        "mode and dtype   " + _most(types.tolist()),
        *_describe_normalization(config),
        "",
    ]
    rows = [("class", "training pixels", "images", "validation pixels", "images")]
    columns = []
    for part in (data.train, data.val):
        pixels = part.class_pixels.sum(0)
        columns.append([f"{share:.2%}" for share in pixels / max(1, pixels.sum())])
        columns.append([str(count) for count in (part.class_pixels > 0).sum(0)])
    rows += zip(config.data.classes, *columns, strict=True)
    return "\n".join(lines) + table(rows)


def _split(
    config: Config, everything: Sequence[Pair], kept: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """For the pairs kept: 0 for those to train on, 1 for those to score, -1 for others."""
    validation = config.data.validation
    pairs = [everything[i] for i in kept.tolist()]
    if validation.fraction is not None:
        shares = (1 - validation.fraction, validation.fraction)
        return split_randomly(pairs, present, shares, validation.seed, validation.group)
    if validation.folds is not None:
        parts = split_randomly(
            pairs,
            present,
            (1 / validation.folds,) * validation.folds,
            validation.seed,
            validation.group,
        )
        return np.array([int(part == validation.fold) for part in parts.tolist()])
    if validation.split is not None:
        return _split_by_table(pairs, validation.split)
    stems = validation.stems
    assert stems is not None  # the config holds one of these
    if isinstance(stems, str):
        stems = tuple(read_stems(find_root(config.data.root) / stems))
    return np.where(split_by_stems(everything, stems)[kept], 1, 0)


def _split_by_table(pairs: Sequence[Pair], split: str) -> np.ndarray:
    names = [pair.split for pair in pairs]
    for name in ("train", split):
        if name not in names:
            known = ", ".join(sorted(set(names)))
            raise ValueError(
                f"data.validation.split: got no row whose column split is {name!r}, expected some "
                f"({known or 'the column is empty'}); correct it or the table"
            )
    return np.array([0 if name == "train" else 1 if name == split else -1 for name in names])


def _contradictions(config: Config, train: PairStatistics, val: PairStatistics) -> list[str]:
    """What of the images does not go together with the config."""
    faults = []
    for which, part in (("training", train), ("validation", val)):
        if not len(part):
            faults.append(
                f"data.validation: leaves no {which} image, expected some on both sides; correct "
                "it, or add images"
            )
        elif not part.class_pixels.any():
            faults.append(
                f"data.ignore: got {which} masks in which every pixel is ignored, expected some "
                "of data.classes; correct data.ignore or the masks"
            )
    if config.loss.border is not None and len(train) and train.num_cells.max() < 2:
        faults.append(
            "loss.border: got no training image with two cells, expected some, as it weighs what "
            "lies between; correct "
            + ("loss.border.classes" if config.loss.border.classes else "data.instances")
        )
    sizes = np.unique(train.sizes, axis=0).tolist()
    if config.augment.crop is None and config.train.batch_size > 1 and len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes[:5])
        faults.append(
            f"augment.crop: got none, but training images of {len(sizes)} sizes ({shown}"
            f"{', ...' if len(sizes) > 5 else ''}), expected one size in a batch; set "
            "augment.crop=[HEIGHT,WIDTH] or train.batch_size=1"
        )
    return faults


def _on_both_sides(
    train_pairs: Sequence[Pair],
    val_pairs: Sequence[Pair],
    train: PairStatistics,
    val: PairStatistics,
) -> list[str]:
    """Images that are trained on and scored."""
    _, ours, theirs = np.intersect1d(train.contents, val.contents, return_indices=True)
    # Frames that are the same all over, such as black ones, give nothing away.
    variance = train.squares * train.sizes.prod(1)[:, None] - train.sums**2
    varied = (variance > 1e-9 * train.sums**2).any(1)
    ours, theirs = ours[varied[ours]], theirs[varied[ours]]
    return [
        f"{train_pairs[i].images[0]}: is trained on, and {val_pairs[j].images[0]}, the same image "
        "pixel by pixel, is scored, expected it on one side; remove one, or keep them together "
        "with data.validation.group"
        for i, j in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]


def _oddities(
    config: Config, pairs: Sequence[Pair], train: PairStatistics, val: PairStatistics
) -> list[str]:
    """What is possible, but mostly a mistake."""
    notes = []
    present = np.concatenate([train.class_pixels, val.class_pixels]) > 0
    if len(single := np.flatnonzero(present.sum(1) <= 1)):
        notes.append(
            f"{len(single)} of {len(pairs)} masks hold one class only, such as "
            f"{pairs[single[0]].masks[0]}"
        )
    dtypes = {
        kind.decode().rpartition(" ")[2] for kind in {*train.types.tolist(), *val.types.tolist()}
    }
    if len(dtypes) > 1:
        notes.append(
            f"images of {' and '.join(sorted(dtypes))}: integers are scaled from 0 to 1 by the "
            "range of their type, floats are taken as they are"
        )
    stacks = [{pair.images for pair in part} for part in (pairs[: len(train)], pairs[len(train) :])]
    if config.data.stacks and stacks[0] & stacks[1] and config.data.validation.stems is None:
        notes.append(
            "pages of one stack are on both sides, and neighbours look alike; "
            + (
                "data.validation.group='^[^#]+' keeps each stack together"
                if len(stacks[0] | stacks[1]) > 1
                else f"hold out a block, as by data.validation.stems=[{pairs[0].stem!r}, ...]"
            )
        )
    for name, pixels in zip(config.data.classes, val.class_pixels.sum(0), strict=True):
        if not pixels and len(val):
            notes.append(f"data.classes.{name}: no validation mask has a pixel of it: no score")
    for name, pixels in zip(config.data.classes, train.class_pixels.sum(0), strict=True):
        if not pixels and len(train):
            notes.append(f"data.classes.{name}: no training mask has a pixel of it")
    return notes


def _describe_normalization(config: Config) -> list[str]:
    """Say how images are normalised where the pretrained weights of the encoder decide it."""
    encoder, weights = config.model.encoder, config.train.encoder_weights
    if weights is None or config.data.normalization != "auto":
        return []
    normalization = numbers_of_weights(config)
    if normalization is None:
        return [
            f"normalization    dataset, because the weights of {encoder} were trained on colour "
            f"images, not on {config.model.in_channels} channels"
        ]
    return [
        f"normalization    {normalization}, from the weights of {encoder}; set "
        "data.normalization=dataset to take it from the training images"
    ]


def _most(values: Sequence[str]) -> str:
    """The most common values, and how often each is there."""
    counts = Counter(values).most_common()
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    return ", ".join(f"{value} ({count})" for value, count in counts[:5]) + more


def _memory_of(config: Config) -> Path:
    """The file that remembers what was found with the same data settings."""
    data = config.data
    cells = None if config.loss.border is None else config.loss.border.classes
    channels = config.model.in_channels
    settings = (data.classes, data.ignore, data.tolerance, data.masks, channels, cells)
    text = f"{CACHE_VERSION} {Path(data.root).resolve()} {settings}"
    name = hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
    return Path(config.runs) / ".checked" / f"{name}.npz"
