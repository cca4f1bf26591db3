import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH
from PIL import Image
from torch.utils.data import DataLoader

from unet.augment import Augment
from unet.data import (
    EpochSampler,
    Normalization,
    SegmentationDataset,
    check_pairs,
    class_pixels_of,
    find_pairs,
    list_images,
    normalization_of,
    split_by_fraction,
    split_by_stems,
)
from unet.images import read_image
from unet.masks import ClassMap

CLASSES = ClassMap({"ground": 0, "box": 200})


def test_files_come_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.tif", "2.TIF", "1.png", "a10b2.png", "a9b10.png", "a9b9.png", "01.png"):
        (tmp_path / name).touch()
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["01.png", "1.png", "2.TIF", "10.tif", "a9b9.png", "a9b10.png", "a10b2.png"]


def test_images_pair_with_masks_of_the_same_stem(data_root: Path) -> None:
    (data_root / "masks" / "3.png").rename(data_root / "masks" / "3.tif")
    pairs = find_pairs(data_root / "images", data_root / "masks")
    assert [(pair.image.name, pair.mask.name) for pair in pairs][2:4] == [
        ("2.png", "2.png"),
        ("3.png", "3.tif"),
    ]


def test_a_missing_half_is_named_on_both_sides(data_root: Path) -> None:
    (data_root / "masks" / "3.png").unlink()
    (data_root / "images" / "5.png").unlink()
    with pytest.raises(ValueError, match=r"3\.png without a mask.*5\.png without an image"):
        find_pairs(data_root / "images", data_root / "masks")


def test_a_stem_twice_is_named(data_root: Path) -> None:
    shutil.copy(data_root / "images" / "3.png", data_root / "images" / "3.bmp")
    with pytest.raises(ValueError, match=r"got both 3\.bmp and 3\.png"):
        find_pairs(data_root / "images", data_root / "masks")


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got no image, expected files ending in"):
        list_images(tmp_path)


def test_the_split_by_fraction_is_a_function_of_the_seed(data_root: Path) -> None:
    pairs = find_pairs(data_root / "images", data_root / "masks")
    train, val = split_by_fraction(pairs, 0.34, seed=1)
    assert len(val) == 2
    assert sorted(pair.stem for pair in train + val) == list("012345")
    assert split_by_fraction(pairs, 0.34, seed=1) == (train, val)
    assert any(split_by_fraction(pairs, 0.34, seed=seed)[1] != val for seed in range(2, 9))
    assert len(split_by_fraction(pairs, 0.001, seed=0)[1]) == 1
    assert len(split_by_fraction(pairs[:2], 0.9, seed=0)[0]) == 1


def test_one_pair_cannot_be_split(data_root: Path) -> None:
    pairs = find_pairs(data_root / "images", data_root / "masks")[:1]
    with pytest.raises(ValueError, match="got 1 pair to split"):
        split_by_fraction(pairs, 0.5, seed=0)


def test_the_split_by_stems_takes_those(data_root: Path) -> None:
    pairs = find_pairs(data_root / "images", data_root / "masks")
    train, val = split_by_stems(pairs, ["4", "0"])
    assert [pair.stem for pair in val] == ["0", "4"]
    assert [pair.stem for pair in train] == ["1", "2", "3", "5"]
    with pytest.raises(ValueError, match=r"data\.validation\.stems: got '7', expected the stem"):
        split_by_stems(pairs, ["7"])
    with pytest.raises(ValueError, match="got every image"):
        split_by_stems(pairs, list("012345"))


def test_the_check_measures_the_training_images(data_root: Path) -> None:
    pairs = find_pairs(data_root / "images", data_root / "masks")
    summaries = check_pairs(pairs, CLASSES, 1, "check")
    normalization = normalization_of(summaries)
    pixels = np.stack([np.asarray(Image.open(pair.image)) for pair in pairs]) / 255
    assert normalization.mean == pytest.approx([pixels.mean()])
    assert normalization.std == pytest.approx([pixels.std()])
    masks = np.stack([np.asarray(Image.open(pair.mask)) for pair in pairs])
    assert class_pixels_of(summaries, "all") == [(masks == 0).sum(), (masks == 200).sum()]
    assert {summary.size for summary in summaries} == {(HEIGHT, WIDTH)}
    image = normalization(torch.from_numpy(read_image(pairs[0].image, 1)))
    assert abs(float(image.mean())) < 0.5


def test_a_constant_channel_does_not_divide_by_0(data_root: Path) -> None:
    for path in (data_root / "images").iterdir():
        Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(path)
    pairs = find_pairs(data_root / "images", data_root / "masks")
    normalization = normalization_of(check_pairs(pairs, CLASSES, 1, "check"))
    assert torch.equal(
        normalization(torch.from_numpy(read_image(pairs[0].image, 1))).round(),
        torch.zeros(1, HEIGHT, WIDTH),
    )


def test_the_check_reports_every_fault_at_once(data_root: Path) -> None:
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(data_root / "masks" / "1.png")
    Image.fromarray(np.full((HEIGHT, WIDTH), 5, np.uint8)).save(data_root / "masks" / "2.png")
    (data_root / "images" / "4.png").write_bytes(b"")
    pairs = find_pairs(data_root / "images", data_root / "masks")
    with pytest.raises(ValueError, match="got a mask of 8 x 9 pixels") as caught:
        check_pairs(pairs, CLASSES, 1, "check")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert f"expected {HEIGHT} x {WIDTH} as its image" in lines[0]
    assert "got the mask value 5" in lines[1]
    assert "4.png: cannot be read as an image" in lines[2]


def test_masks_that_are_ignored_throughout_are_refused(data_root: Path) -> None:
    pairs = find_pairs(data_root / "images", data_root / "masks")
    summaries = check_pairs(pairs, ClassMap({"a": 1, "b": 2}, ignore=[0, 200]), 1, "check")
    with pytest.raises(ValueError, match="got training masks in which every pixel is ignored"):
        class_pixels_of(summaries, "training")


def dataset(root: Path, seed: int = 0) -> SegmentationDataset:
    return SegmentationDataset(
        find_pairs(root / "images", root / "masks"),
        CLASSES,
        1,
        Normalization(mean=(0.4,), std=(0.2,)),
        Augment(crop=(20, 24), flip_horizontal=True, rotate=20, elastic_std=2, brightness=0.2),
        seed,
    )


def test_a_sample_is_a_function_of_seed_epoch_and_index(data_root: Path) -> None:
    samples = dataset(data_root)
    first, _ = samples[(3, 1)]
    _ = samples[(0, 0)]
    assert torch.equal(samples[(3, 1)][0], first)
    assert not torch.equal(samples[(4, 1)][0], first)
    assert not torch.equal(dataset(data_root, seed=1)[(3, 1)][0], first)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_sample_and_no_order(data_root: Path, num_workers: int) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        sampler = EpochSampler(6, seed=5)
        sampler.epoch = 2
        loader = DataLoader(dataset(data_root), 4, sampler=sampler, num_workers=workers)
        return [image for image, _ in loader]

    here, there = batches(0), batches(num_workers)
    assert len(here) == len(there) == 2
    assert all(map(torch.equal, here, there))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(50, seed=5)
    first = list(sampler)
    assert sorted(first) == [(0, i) for i in range(50)]
    assert first != sorted(first)
    sampler.epoch = 1
    assert [index for _, index in sampler] != [index for _, index in first]
    assert list(EpochSampler(50, seed=5)) == first
