import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HEIGHT, WIDTH, write_instances
from PIL import Image
from torch.utils.data import DataLoader

from unet.data.augmentation import Augmentation
from unet.data.border_weights import Border, border_weights
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import Normalization
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.data.sampler import SeededBatchSampler

READER = PairReader(classes=ClassMap({"ground": 0, "box": 200}), in_channels=1)


SIZES = np.full((6, 2), (HEIGHT, WIDTH))


def pairs_of(root: Path) -> list[Pair]:
    return find_pairs(root, ["images"], "masks")[0]


def dataset(root: Path, seed: int = 0, cache: DecodedCache | None = None) -> SegmentationDataset:
    return SegmentationDataset(
        pairs_of(root),
        READER,
        Normalization(mean=(0.4,), std=(0.2,)),
        Augmentation(crop=(20, 24), flip_horizontal=True, rotate=20, elastic_std=2, brightness=0.2),
        seed,
        cache=cache,
    )


BORDER_READER = replace(READER, border=Border(sigma=3.0))


def numbered_pairs(root: Path) -> list[Pair]:
    write_instances(root)
    return find_pairs(root, ["images"], "masks", instances="instances")[0]


@pytest.mark.parametrize("limit", [0, 2.5 * 2 * HEIGHT * WIDTH, 1e9])
def test_the_cache_changes_no_sample(data_root: Path, limit: float) -> None:
    pairs = pairs_of(data_root)
    num_bytes = np.full(6, 2 * HEIGHT * WIDTH)
    cache = DecodedCache(pairs, READER, SIZES, num_bytes, limit)
    assert cache.num_cached == {0: 0, 1e9: 6}.get(limit, 2)
    uncached, cached = dataset(data_root), dataset(data_root, cache=cache)
    for place in ((0, 0), (1, 1), (5, 5)):
        for _ in range(2):  # from the files, then from the cache
            assert all(map(torch.equal, uncached[place], cached[place]))


def test_the_cache_keeps_the_dtype_of_images(tmp_path: Path) -> None:
    rng, pairs = np.random.default_rng(0), []
    arrays = [
        rng.integers(0, 65536, (5, 7), dtype=np.uint16),
        rng.random((3, 3), dtype=np.float32),
        rng.integers(0, 256, (4, 9), dtype=np.uint8),
    ]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.tif")
        Image.fromarray(np.full(array.shape, 200, np.uint8)).save(tmp_path / f"{i}.png")
        pairs.append(
            Pair(stem=str(i), images=(f"{tmp_path}/{i}.tif",), masks=(f"{tmp_path}/{i}.png",))
        )
    sizes = np.array([array.shape for array in arrays])
    num_bytes = np.array([array.nbytes + array.size for array in arrays])
    cache = DecodedCache(pairs, READER, sizes, num_bytes, 1e6)
    for i, array in [*enumerate(arrays)] * 2:  # from the files, then from the cache
        image, ids = cache[i]
        assert image.dtype == array.dtype
        assert np.array_equal(image[0], array)
        assert ids.shape == array.shape
        assert (ids == 1).all()


@pytest.mark.parametrize("start", ["fork", "spawn"])  # spawn: the worker imports torch, 5 s
def test_a_pair_that_a_worker_reads_is_cached_for_all(data_root: Path, start: str) -> None:
    cache = DecodedCache(pairs_of(data_root), READER, SIZES, np.full(6, 2 * HEIGHT * WIDTH), 1e6)
    samples = dataset(data_root, cache=cache)
    before = [dataset(data_root)[(0, i)] for i in range(6)]
    loader = DataLoader(
        samples,
        batch_sampler=SeededBatchSampler(6, 1, 0, 0, 6),
        num_workers=1,
        multiprocessing_context=start,
    )
    assert len(list(loader)) == 6
    shutil.rmtree(data_root)
    for i in range(6):
        assert all(map(torch.equal, samples[(0, i)], before[i]))


@pytest.mark.parametrize("late", ["_images", "_ids"])
def test_a_pair_is_not_taken_from_the_cache_before_all_its_bytes_are_there(
    data_root: Path, late: str
) -> None:
    """As a process may find it that reads while another one stores it, in any order."""
    pairs = pairs_of(data_root)
    cache = DecodedCache(pairs, READER, SIZES, np.full(6, 2 * HEIGHT * WIDTH), 1e6)
    expected = cache[0]
    getattr(cache, late)[0][-WIDTH * 9 :] ^= 1
    for files in ("complete", "complete", "gone"):
        if files == "gone":
            shutil.rmtree(data_root)
        assert all(map(np.array_equal, cache[0], expected)), files


def test_a_pair_whose_size_has_changed_is_not_cached(data_root: Path) -> None:
    cache = DecodedCache(pairs_of(data_root), READER, SIZES, np.full(6, 2 * HEIGHT * WIDTH), 1e6)
    _, neighbour = cache[3]
    for folder in ("images", "masks"):
        Image.fromarray(np.full((99, 99), 200, np.uint8)).save(data_root / folder / "2.png")
    for _ in range(2):
        image, ids = cache[2]
        assert image.shape == (1, 99, 99)
        assert (ids == 1).all()
    assert np.array_equal(cache[3][1], neighbour)


@pytest.mark.parametrize("limit", [0, 3.5 * 4 * HEIGHT * WIDTH, 1e9])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_weights_are_computed_once_and_change_no_sample(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, limit: float, num_workers: int
) -> None:
    pairs, computed = numbered_pairs(data_root), []

    def spy(cells: np.ndarray, weight: float, sigma: float) -> np.ndarray:
        computed.append(sigma)
        return border_weights(cells, weight, sigma)

    def samples(cache: DecodedCache | None) -> list[list[torch.Tensor]]:
        data = SegmentationDataset(
            pairs,
            BORDER_READER,
            Normalization(mean=(0.4,), std=(0.2,)),
            Augmentation(crop=(20, 24), rotate=20),
            cache=cache,
        )
        stream = SeededBatchSampler(6, 3, 0, 0, 6)
        return list(DataLoader(data, batch_sampler=stream, num_workers=num_workers))

    expected = samples(None)
    monkeypatch.setattr("unet.data.reader.border_weights", spy)
    cache = DecodedCache(pairs, BORDER_READER, SIZES, np.full(6, 4 * HEIGHT * WIDTH), limit)
    for ours, theirs in zip(samples(cache), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert [one.dtype for one in expected[0]] == [torch.float32, torch.int64, torch.float32]
    assert expected[0][2].shape == expected[0][1].shape == (3, 20, 24)
    assert max(float(weights.max()) for _, _, weights in expected) > 5
    if num_workers == 0:
        assert len(computed) == {0: 18, 1e9: 6}.get(limit, 3 + 3 * 3)
