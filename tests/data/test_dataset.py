from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HEIGHT, WIDTH
from PIL import Image
from torch.utils.data import DataLoader

from unet.data.augmentation import Augmentation
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import Normalization
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.data.sampler import SeededBatchSampler
from unet.runtime.errors import SampleError

READER = PairReader(classes=ClassMap({"ground": 0, "box": 200}), in_channels=1)

SIZES = np.full((6, 2), (HEIGHT, WIDTH))


def pairs_of(root: Path) -> list[Pair]:
    return find_pairs(root, ["images"], "masks")[0]


def test_crops_are_drawn_around_rare_classes(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((200, 300), np.uint8)
    mask[20:23, 280:283] = 200
    for folder in ("images", "masks"):
        Image.fromarray(mask).save(tmp_path / folder / "0.png")

    def fraction_around_rare(rare_fraction: float) -> float:
        samples = SegmentationDataset(
            pairs_of(tmp_path),
            READER,
            Normalization(mean=(0.4,), std=(0.2,)),
            Augmentation(crop=(40, 40), rotate=20, quarter_turns=True, scale=(0.8, 1.2)),
            crops_per_image=100,
            rare_classes=[1],
            rare_fraction=rare_fraction,
        )
        assert len(samples) == 100
        return float(np.mean([bool((samples[(0, i)][1] == 1).any()) for i in range(100)]))

    assert fraction_around_rare(0.0) < 0.1
    assert 0.4 < fraction_around_rare(0.5) < 0.65
    assert fraction_around_rare(1.0) == 1.0


def test_several_crops_of_an_image_differ(data_root: Path) -> None:
    samples = dataset(data_root)
    samples.crops_per_image = 2
    assert len(samples) == 12
    assert not torch.equal(samples[(0, 1)][0], samples[(0, 7)][0])


def dataset(root: Path, seed: int = 0, cache: DecodedCache | None = None) -> SegmentationDataset:
    return SegmentationDataset(
        pairs_of(root),
        READER,
        Normalization(mean=(0.4,), std=(0.2,)),
        Augmentation(crop=(20, 24), flip_horizontal=True, rotate=20, elastic_std=2, brightness=0.2),
        seed,
        cache=cache,
    )


def test_a_sample_is_a_function_of_seed_pass_and_index(data_root: Path) -> None:
    samples = dataset(data_root)
    first, _ = samples[(3, 1)]
    _ = samples[(0, 0)]
    assert torch.equal(samples[(3, 1)][0], first)
    assert not torch.equal(samples[(4, 1)][0], first)
    assert not torch.equal(dataset(data_root, seed=1)[(3, 1)][0], first)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_no_sample_and_no_order(data_root: Path, num_workers: int) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        stream = SeededBatchSampler(6, batch_size=4, seed=5, start=3, stop=6)
        loader = DataLoader(dataset(data_root), batch_sampler=stream, num_workers=workers)
        return [image for image, _ in loader]

    here, there = batches(0), batches(num_workers)
    assert [len(images) for images in here] == [4, 4, 4]
    assert len(there) == 3
    assert all(map(torch.equal, here, there))


def test_an_unexpected_error_names_the_file(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("too far")

    samples = dataset(data_root)
    monkeypatch.setattr(samples, "augment", fail)
    with pytest.raises(
        SampleError, match=r"2\.png: cannot make a sample from it \(IndexError: too far\)"
    ):
        _ = samples[(0, 2)]
