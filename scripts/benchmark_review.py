"""Corrupt a tenth of the masks of a folder, and count how many of them `unet review` ranks first.

On a copy of the folder, a third of the corrupted masks is shifted by 4 pixels, one class of a third
is dilated or eroded by 2 pixels, and the others are the mask of another image or lack an object.
Then the folds of the config that `unet init` proposes are trained on the copy, and the masks are
ranked. Of k corrupted masks, precision is the fraction of the k ranked first that are corrupted.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import yaml
from benchmarking import make_parser
from scipy import ndimage

from unet.build import build_classes, build_reader, list_pairs
from unet.config.loader import config_from_dict
from unet.config.schema import Config
from unet.data.classes import IGNORE_INDEX
from unet.data.masks import draw_mask
from unet.data.pairing import Pair
from unet.evaluation.review import review
from unet.inspection.propose import propose
from unet.runtime.text import shorten
from unet.training.series import configs_of_series, train_series

SHIFT, WIDTH, FEWEST = 4, 2, 3


class Corruption(NamedTuple):
    """What was done to a mask, and the words that the reason must contain, one of them."""

    text: str
    words: tuple[str, ...]


def corrupt(config: Config, pairs: Sequence[Pair], seed: int) -> dict[str, Corruption]:
    """Corrupt the mask files of a tenth of the pairs, at least three; by stem."""
    rng = np.random.default_rng(seed)
    reader = build_reader(config)
    chosen = rng.choice(len(pairs), max(FEWEST, round(len(pairs) / 10)), replace=False)
    ids_of = {i: reader(pairs[i])[1] for i in chosen.tolist()}
    done = {}
    for number, (i, ids) in enumerate(ids_of.items()):
        match number % 3:
            case 0:
                changed, what = shift(ids, rng)
            case 1:
                changed, what = widen(ids, rng)
            case _ if (number // 3 + seed) % 2:
                other = pairs[int(rng.choice([j for j in range(len(pairs)) if j not in ids_of]))]
                changed, what = exchange(ids, reader(other)[1], other.stem)
            case _:
                changed, what = remove_object(ids, rng)
        draw_mask(changed, build_classes(config)).save(pairs[i].masks[0])
        done[pairs[i].stem] = what
    return done


def shift(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Corruption]:
    """Shift class ids (H, W) by `SHIFT` pixels along one axis or both; edges are repeated."""
    moves = [(dy, dx) for dy in (-SHIFT, 0, SHIFT) for dx in (-SHIFT, 0, SHIFT) if dy or dx]
    dy, dx = moves[rng.integers(len(moves))]
    height, width = ids.shape
    rows = np.clip(np.arange(height) - dy, 0, height - 1)
    columns = np.clip(np.arange(width) - dx, 0, width - 1)
    return ids[rows[:, None], columns], Corruption(f"shifted by ({dy}, {dx})", ("shifted",))


def widen(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Corruption]:
    """Dilate or erode one of the classes except the first by `WIDTH` pixels."""
    present = [one for one in np.unique(ids).tolist() if one not in (0, IGNORE_INDEX)]
    one = int(rng.choice(present)) if present else 1
    if rng.random() < 0.5:
        near = ndimage.distance_transform_edt(ids != one) <= WIDTH
        return np.where(near, one, ids).astype(np.uint8), Corruption("dilated", ("wider",))
    far, (rows, columns) = ndimage.distance_transform_edt(ids == one, return_indices=True)
    edge = (far > 0) & (far <= WIDTH)
    return np.where(edge, ids[rows, columns], ids), Corruption("eroded", ("narrower",))


def exchange(ids: np.ndarray, other: np.ndarray, name: str) -> tuple[np.ndarray, Corruption]:
    """Replace class ids (H, W) by those of another image, resized."""
    rows, columns = (
        np.arange(side) * old // side for side, old in zip(ids.shape, other.shape, strict=True)
    )
    return other[rows[:, None], columns], Corruption(f"mask of {name}", ("another image",))


def remove_object(ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Corruption]:
    """Turn an object, one of the larger half, into the class that surrounds it."""
    classes = [one for one in np.unique(ids).tolist() if one not in (0, IGNORE_INDEX)]
    labels, count = max((ndimage.label(ids == one) for one in classes), key=lambda found: found[1])
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    larger = np.flatnonzero(sizes >= np.median(sizes)) + 1
    chosen = labels == int(rng.choice(larger))
    return np.where(chosen, 0, ids).astype(np.uint8), Corruption("object removed", ("missing",))


def score(folder: Path, seed: int, arguments: argparse.Namespace) -> str:
    """Corrupt a copy of a folder, train, review and count; return a line of the table."""
    with TemporaryDirectory() as temporary:
        copy = Path(temporary, "data")
        shutil.copytree(folder, copy, copy_function=shutil.copyfile)
        raw = yaml.safe_load(propose(copy, folder.name, minutes=arguments.minutes))
        validation = raw["data"]["validation"]
        group = {"group": validation["group"]} if "group" in validation else {}
        raw["data"] |= {"validation": {"folds": arguments.folds, **group}, "instances": None}
        raw |= {"name": folder.name, "runs": str(Path(temporary, "runs"))}
        config = config_from_dict(raw, ["train.previews=0", *arguments.settings])
        corrupted = corrupt(config, list_pairs(config)[0], seed)
        start = time.monotonic()
        train_series(config, all_folds=True)
        trained = time.monotonic()
        runs = [Path(config.runs, one.name) for one in configs_of_series(config, all_folds=True)]
        result = review(runs, Path(temporary, "review"))
        seconds = trained - start, time.monotonic() - trained
    count, reasons = len(corrupted), {}
    for rank, (stem, verdict) in enumerate(zip(result.stems, result.verdicts, strict=True), 1):
        reasons[stem] = verdict.reason
        if stem in corrupted or rank <= count:
            what = corrupted[stem].text if stem in corrupted else "-"
            print(f"{rank:4} {verdict.score:6.2f}  {shorten(what, 24):24}  {verdict.reason}")
    hits = sum(stem in corrupted for stem in result.stems[:count])
    right = sum(
        any(word in reasons[stem] for word in what.words) for stem, what in corrupted.items()
    )
    return (
        f"{folder.name:12} {seed:4} {count:9} {hits / count:12.2f} {right / count:13.2f} "
        f"{seconds[0] / 60:8.1f} {seconds[1] / 60:7.1f}"
    )


def main(argv: list[str] | None = None) -> int:
    """Review the corrupted copies of some folders."""
    parser = make_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of images and masks")
    parser.add_argument("--minutes", type=float, default=2.0, help="(default: %(default)g)")
    parser.add_argument("--folds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.minutes, arguments.folds, arguments.seeds = 0.15, 2, [0]
        small = ["model.widths=[4,8]", "augment.crop=[32,32]", "train.num_workers=0"]
        arguments.settings = [*small, *arguments.settings]
    lines = ["data         seed corrupted  precision@k  right reasons training  review (minutes)"]
    for folder in arguments.folders:
        for seed in arguments.seeds:
            lines.append(score(folder, seed, arguments))
            print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
