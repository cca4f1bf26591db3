"""`unet check`: find the pairs of a config, read each once, split them, and collect errors."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unet.build import (
    build_encoder_normalization,
    build_normalization,
    build_read_options,
    build_training_reader,
    list_all_pairs,
    split_pairs,
)
from unet.config.schema import Config
from unet.data.file_list import list_files
from unet.data.image_range import ImageRange, image_range
from unet.data.normalization import Normalization, normalization_from_sums
from unet.data.pairing import PackedPairs, Pair, is_excluded
from unet.data.splits import TRAIN, UNUSED, VAL
from unet.data.synthetic import draw_quickstart
from unet.inspection.duplicates import find_duplicates, warn_of_similar
from unet.inspection.findings import find_errors, find_palette_errors, find_warnings
from unet.inspection.statistics import CACHE_VERSION, Collected, PairStatistics, collect_statistics
from unet.runtime.text import format_table, join_some, plural


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """The readable pairs of a config and their statistics, one row each."""

    train_pairs: PackedPairs
    val_pairs: PackedPairs
    train: PairStatistics
    val: PairStatistics
    errors: list[str]  # what must be corrected before training
    warnings: list[str]  # what is allowed, but likely a mistake
    skipped: int  # unreadable pairs that `data.skip_unreadable` left out

    @property
    def fingerprint(self) -> str:
        """A hash of the split, the images and the targets."""
        digest = hashlib.blake2b(digest_size=16)
        train, val = self.train, self.val
        # Cells give border weights, which validation does not use.
        for column in (train.contents, train.targets, train.cells, val.contents, val.targets):
            digest.update(column.tobytes())
        return digest.hexdigest()

    @property
    def image_range(self) -> ImageRange:
        """The brightness of the training images."""
        train = self.train
        dtypes = [name.decode().split(", ")[1].split(" ")[0] for name in train.types.tolist()]
        return image_range(dtypes, train["values"], train.sums, train.squares)

    def normalization(self, config: Config) -> Normalization:
        """Return the normalization that a config asks for."""
        train = self.train
        given = build_normalization(config) or build_encoder_normalization(config)
        return given or normalization_from_sums(
            train["values"].sum(0), train.sums.sum(0), train.squares.sum(0)
        )


def check_data(config: Config) -> CheckedData:
    """Find, read and split all pairs of a config. Unchanged files are not read a second time.

    Raises:
        FileNotFoundError: if a folder or table is missing.
        ValueError: if a pattern matches no file, `data.validation.fold` is missing, or border
            weights are asked for and scipy is not installed.
    """
    data, root = config.data, Path(config.data.root)
    if data.draw_quickstart and not root.exists():
        print(f"drawing the quickstart data into {root}")
        draw_quickstart(root)
    warnings: list[str] = []
    cache = _cache_path(config)
    listed, val_listed, errors = list_all_pairs(config, warnings)
    all_pairs, reader = [*listed, *val_listed], build_training_reader(config)
    collected = collect_statistics(all_pairs, reader, cache)
    skipped = collected.num_unreadable if data.skip_unreadable else 0
    if skipped:
        warnings += [
            *collected.unreadable,
            f"left out {plural(skipped, 'pair')} that cannot be read",
        ]
    else:
        errors += collected.unreadable
    errors += collected.errors
    splits = np.where(collected.kept < len(listed), TRAIN, VAL)
    if len(splits) and data.validation.images is None:
        splits = _try_split(config, all_pairs, collected, errors)
    if num_unused := np.count_nonzero(splits == UNUSED):
        warnings.append(
            f"{data.csv}: {plural(int(num_unused), 'row')} with a split that is neither train nor "
            f"{data.validation.split}: not used"
        )
    all_pairs_read = [all_pairs[i] for i in collected.kept.tolist()]
    train, val = (collected.statistics[splits == split] for split in (TRAIN, VAL))
    train_pairs, val_pairs = (
        PackedPairs(all_pairs[i] for i in collected.kept[splits == split].tolist())
        for split in (TRAIN, VAL)
    )
    errors += [] if errors else find_errors(config, train, val)
    errors += find_duplicates(train_pairs, val_pairs, train, val)
    errors += find_palette_errors(reader.classes, all_pairs_read, collected.statistics)
    # Some pairs do not tell what holds for all of them.
    if not errors:
        split = train_pairs, val_pairs, train, val
        warnings += find_warnings(config, *split) + warn_of_similar(config, reader, *split)
    return CheckedData(
        train_pairs=train_pairs,
        val_pairs=val_pairs,
        train=train,
        val=val,
        errors=errors,
        warnings=warnings,
        skipped=skipped,
    )


def describe(config: Config, data: CheckedData) -> str:
    """Format number, sizes, modes and classes of the images as text; empty without images."""
    if not (len(data.train) or len(data.val)):
        return ""
    sizes = np.concatenate([data.train.sizes, data.val.sizes])
    types = np.concatenate([data.train.types, data.val.types]).astype(str)
    lines = [
        f"{len(data.train)} training and {len(data.val)} validation images"
        + (", and others with errors" if data.errors else ""),
        f"size             {_most_common([f'{height} x {width}' for height, width in sizes])}",
        f"mode and dtype   {_most_common(types.tolist())}",
        *_describe_missing(data),
        *_describe_changes(config, data),
        *_describe_normalization(config),
        "",
    ]
    header = ("class", "training pixels", "images", "validation pixels", "images")
    columns: list[list[str]] = []
    for statistics in (data.train, data.val):
        pixels = statistics.class_pixels.sum(0)
        columns.append([f"{fraction:.2%}" for fraction in pixels / max(1, pixels.sum())])
        columns.append([str(count) for count in (statistics.class_pixels > 0).sum(0)])
    return "\n".join(lines) + format_table(
        [header, *zip(config.data.classes, *columns, strict=True)]
    )


def _try_split(
    config: Config, all_pairs: Sequence[Pair], collected: Collected, errors: list[str]
) -> np.ndarray:
    """Split the readable pairs; train on all of them after an error."""
    try:
        present = collected.statistics.class_pixels > 0
        return split_pairs(config, all_pairs, collected.kept, present)
    except (ValueError, FileNotFoundError) as error:
        validation = config.data.validation
        # A random split fails if too few pairs can be read, which is an error already.
        if validation.stems is not None or validation.split is not None or not errors:
            errors.append(str(error))
        return np.full(len(collected.kept), TRAIN)


def _describe_missing(data: CheckedData) -> list[str]:
    missing = np.concatenate([data.train.missing, data.val.missing])
    if not missing.any():
        return []
    pixels = np.concatenate([data.train.sizes, data.val.sizes]).prod(1).sum()
    images = plural(int(np.count_nonzero(missing)), "image")
    return [
        f"missing pixels   {missing.sum() / pixels:.2%}, in {images}: "
        "nodata, NaN, transparent or masked; they are neither trained on nor scored"
    ]


def _describe_changes(config: Config, data: CheckedData) -> list[str]:
    """State what the settings leave out or change, in numbers."""
    root, exclude = Path(config.data.root), config.data.exclude
    resized, absorbed = (
        int(data.train[column].sum() + data.val[column].sum()) for column in ("resized", "absorbed")
    )
    pixels = int(data.train.sizes.prod(1).sum() + data.val.sizes.prod(1).sum())
    lines = []
    if exclude:
        excluded = [path for path in list_files(root) if is_excluded(path, root, exclude)]
        lines.append(f"left out         {plural(len(excluded), 'file')} by data.exclude")
    if resized:
        lines.append(f"resized          {plural(resized, 'mask')} by data.resize_masks")
    if absorbed:
        part = f"{absorbed} pixels ({absorbed / pixels:.2%})"
        lines.append(f"nearest class    {part} by data.tolerance")
    return lines


def _describe_normalization(config: Config) -> list[str]:
    """State the normalization where the pretrained weights of the encoder decide it."""
    encoder = config.model.encoder
    if config.train.encoder_weights is None or config.data.normalization != "auto":
        return []
    normalization = build_encoder_normalization(config)
    if normalization is None:
        return [
            f"normalization    dataset, because the weights of {encoder} were trained on colour "
            f"images, not on {config.model.in_channels} channels"
        ]
    return [
        f"normalization    {normalization}, from the weights of {encoder}; set "
        "data.normalization=dataset to take it from the training images"
    ]


def _most_common(values: Sequence[str]) -> str:
    """The five most common values with their counts."""
    return join_some([f"{value} ({count})" for value, count in Counter(values).most_common()])


def _cache_path(config: Config) -> Path:
    """The file of cached statistics for these data settings."""
    data = config.data
    cells = None if config.loss.border is None else config.loss.border.classes
    channels = config.model.in_channels
    options = build_read_options(config)
    settings = (data.classes, data.ignore, data.tolerance, data.masks, channels, cells, options)
    text = f"{CACHE_VERSION} {Path(data.root).resolve()} {settings}"
    name = hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()
    return Path(config.runs) / ".checked" / f"{name}.npz"
