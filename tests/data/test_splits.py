from pathlib import Path

import numpy as np
import pytest

from unet.data.pairing import Pair
from unet.data.splits import read_stems, split_by_stems, split_randomly


def make_pairs(stems: list[str]) -> list[Pair]:
    return [Pair(stem=stem, images=(f"{stem}.png",), masks=(f"m/{stem}.png",)) for stem in stems]


PAIRS = make_pairs([str(i) for i in range(60)])
ALL_CLASSES = np.ones((60, 2), bool)


def test_the_split_is_a_function_of_the_seed() -> None:
    first = split_randomly(PAIRS, ALL_CLASSES, (0.8, 0.2), seed=1)
    assert np.bincount(first).tolist() == [48, 12]
    assert np.array_equal(split_randomly(PAIRS, ALL_CLASSES, (0.8, 0.2), seed=1), first)
    assert not np.array_equal(split_randomly(PAIRS, ALL_CLASSES, (0.8, 0.2), seed=2), first)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.34, 0.5])
def test_every_combination_of_classes_is_split_in_the_same_proportions(fraction: float) -> None:
    rng = np.random.default_rng(0)
    present = np.zeros((60, 3), bool)
    present[:, 0] = True
    present[rng.permutation(60)[:20], 1] = True
    present[rng.permutation(60)[:10], 2] = True
    for seed in range(5):
        subsets = split_randomly(PAIRS, present, (1 - fraction, fraction), seed)
        assert abs(np.count_nonzero(subsets) - 60 * fraction) <= 1
        for combination in np.unique(present, axis=0):
            these = (present == combination).all(1)
            assert abs(subsets[these].sum() - these.sum() * fraction) <= 1.5


def test_folds_are_equal_and_cover_everything() -> None:
    subsets = split_randomly(PAIRS, ALL_CLASSES, (0.2,) * 5, seed=3)
    assert np.bincount(subsets).tolist() == [12] * 5


def test_a_group_stays_together() -> None:
    pairs = make_pairs([f"patient{i % 12}_slice{i}" for i in range(60)])
    for seed in range(5):
        subsets = split_randomly(pairs, ALL_CLASSES, (0.75, 0.25), seed, group=r"patient(\d+)_")
        for patient in range(12):
            assert len({int(subsets[i]) for i in range(60) if i % 12 == patient}) == 1
        assert np.count_nonzero(subsets) == 15
    with pytest.raises(ValueError, match=r"data\.validation\.group: 'slide' finds nothing in 'pat"):
        split_randomly(pairs, ALL_CLASSES, (0.75, 0.25), 0, group="slide")
    with pytest.raises(ValueError, match=r"got 1 group by 'patient' to split"):
        split_randomly(pairs, ALL_CLASSES, (0.75, 0.25), 0, group="patient")


def test_no_subset_is_empty() -> None:
    assert np.bincount(split_randomly(PAIRS, ALL_CLASSES, (0.999, 0.001), 0)).tolist() == [59, 1]
    assert np.bincount(split_randomly(PAIRS[:2], ALL_CLASSES[:2], (0.1, 0.9), 0)).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"got 1 pair to split, expected at least 2"):
        split_randomly(PAIRS[:1], ALL_CLASSES[:1], (0.5, 0.5), 0)


def test_the_split_by_stems_takes_the_given_ones() -> None:
    assert np.flatnonzero(split_by_stems(PAIRS, ["4", "0"])).tolist() == [0, 4]
    with pytest.raises(ValueError, match=r"data\.validation\.stems: got '77', expected stems"):
        split_by_stems(PAIRS, ["77"])
    with pytest.raises(ValueError, match="lists every image"):
        split_by_stems(PAIRS, [pair.stem for pair in PAIRS])


def test_stems_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_text("a/1\n\n b \n")
    assert read_stems(path) == ["a/1", "b"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty, expected a stem on each line"):
        read_stems(path)
    with pytest.raises(FileNotFoundError, match=r"check data\.validation\.stems"):
        read_stems(tmp_path / "other.txt")


def test_lists_may_contain_paths() -> None:
    pairs = [
        Pair(stem, (f"/data/set/train/{stem}.png",), (f"/data/set/labels/{stem}_gt.png",))
        for stem in ("1", "2", "3", "4", "5")
    ]
    lines = ["1", "train/2.png", "/elsewhere/set/train/3.jpg labels/3_gt.png", "4_gt.png"]
    assert split_by_stems(pairs, lines).tolist() == [True, True, True, True, False]
    with pytest.raises(ValueError, match=r"got .test/5\.png., expected stems of images"):
        split_by_stems(pairs, ["1", "test/5.png"])
