import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HEIGHT, WIDTH, write_instances
from PIL import Image
from torch.utils.data import DataLoader

from unet.data.border_weights import Border, border_weights, separate_cells
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import Normalization
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.data.sampler import SeededBatchSampler
from unet.data.transforms import Augmentation
from unet.runtime.errors import SampleError

READER = PairReader(classes=ClassMap({"ground": 0, "box": 200}), in_channels=1)

SIZES = np.full((6, 2), (HEIGHT, WIDTH))

BORDER_READER = replace(READER, border=Border(sigma=3.0))


def pairs_of(root: Path) -> list[Pair]:
    return find_pairs(root, ["images"], "masks")[0]


@pytest.mark.parametrize("limit", [0, 2.5 * 2 * HEIGHT * WIDTH, 1e9])
def test_what_is_kept_in_memory_changes_no_sample(data_root: Path, limit: float) -> None:
    pairs = pairs_of(data_root)
    num_bytes = np.full(6, 2 * HEIGHT * WIDTH)
    cache = DecodedCache(pairs, READER, SIZES, num_bytes, limit)
    assert cache.num_cached == {0: 0, 1e9: 6}.get(limit, 2)
    anew, kept = dataset(data_root), dataset(data_root, cache=cache)
    for place in ((0, 0), (1, 1), (5, 5)):
        for _ in range(2):  # read from the file, then from memory
            assert all(map(torch.equal, anew[place], kept[place]))


def test_images_of_16_bits_and_of_floats_are_kept_in_memory_as_they_are(tmp_path: Path) -> None:
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
    for i, array in [*enumerate(arrays)] * 2:  # read from the file, then from memory
        image, ids = cache[i]
        assert image.dtype == array.dtype
        assert np.array_equal(image[0], array)
        assert ids.shape == array.shape
        assert (ids == 1).all()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_what_a_worker_reads_is_there_for_all(data_root: Path, start: str) -> None:
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


def test_a_pair_that_no_longer_fits_is_read_anew(data_root: Path) -> None:
    cache = DecodedCache(pairs_of(data_root), READER, SIZES, np.full(6, 2 * HEIGHT * WIDTH), 1e6)
    _, neighbour = cache[3]
    for folder in ("images", "masks"):
        Image.fromarray(np.full((99, 99), 200, np.uint8)).save(data_root / folder / "2.png")
    for _ in range(2):
        image, ids = cache[2]
        assert image.shape == (1, 99, 99)
        assert (ids == 1).all()
    assert np.array_equal(cache[3][1], neighbour)


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
            crops_per_image=200,
            rare_classes=[1],
            rare_fraction=rare_fraction,
        )
        assert len(samples) == 200
        return float(np.mean([bool((samples[(0, i)][1] == 1).any()) for i in range(200)]))

    assert fraction_around_rare(0.0) < 0.1
    assert 0.4 < fraction_around_rare(0.5) < 0.65
    assert fraction_around_rare(1.0) == 1.0


def test_several_crops_of_an_image_differ(data_root: Path) -> None:
    samples = dataset(data_root)
    samples.crops_per_image = 2
    assert len(samples) == 12
    assert not torch.equal(samples[(0, 1)][0], samples[(0, 7)][0])


def test_a_workers_memory_does_not_grow_with_the_pairs_it_has_seen(data_root: Path) -> None:
    pairs = dataset(data_root).pairs
    assert list(pairs) == pairs_of(data_root)
    assert not any(isinstance(part, list) for part in vars(pairs).values())


def dataset(root: Path, seed: int = 0, cache: DecodedCache | None = None) -> SegmentationDataset:
    return SegmentationDataset(
        pairs_of(root),
        READER,
        Normalization(mean=(0.4,), std=(0.2,)),
        Augmentation(crop=(20, 24), flip_horizontal=True, rotate=20, elastic_std=2, brightness=0.2),
        seed,
        cache=cache,
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
        stream = SeededBatchSampler(6, batch_size=4, seed=5, start=3, stop=6)
        loader = DataLoader(dataset(data_root), batch_sampler=stream, num_workers=workers)
        return [image for image, _ in loader]

    here, there = batches(0), batches(num_workers)
    assert [len(images) for images in here] == [4, 4, 4]
    assert len(there) == 3
    assert all(map(torch.equal, here, there))


def test_one_pass_follows_the_other_in_full_batches() -> None:
    places = [place for batch in SeededBatchSampler(6, 4, 5, start=0, stop=6) for place in batch]
    assert len(places) == 24
    orders = [[index for number, index in places if number == which] for which in range(4)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) == 4  # each its own
    assert [number for number, _ in places] == sorted(number for number, _ in places)


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    whole = list(SeededBatchSampler(50, 8, 5, start=0, stop=20))
    assert list(SeededBatchSampler(50, 8, 5, start=13, stop=20)) == whole[13:]
    stream = SeededBatchSampler(50, 8, 5, start=0, stop=20)
    assert [stream.batch(i) for i in (17, 3, 9)] == [whole[i] for i in (17, 3, 9)]
    assert list(SeededBatchSampler(50, 8, 6, start=0, stop=20)) != whole


def test_processes_share_every_batch() -> None:
    whole = list(SeededBatchSampler(50, 6, 5, start=2, stop=9))
    parts = [list(SeededBatchSampler(50, 6, 5, 2, 9, shard=(rank, 3))) for rank in range(3)]
    assert [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)] == whole


def test_batches_may_be_larger_than_the_data() -> None:
    (batch,) = SeededBatchSampler(3, 8, 0, start=1, stop=2)
    assert [number for number, _ in batch] == [2, 3, 3, 3, 4, 4, 4, 5]


def test_what_fails_unforeseen_names_the_file(
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


def numbered_pairs(root: Path) -> list[Pair]:
    write_instances(root)
    return find_pairs(root, ["images"], "masks", instances="instances")[0]


def test_a_reader_with_a_border_gives_parted_cells_and_their_weights(data_root: Path) -> None:
    for pair in numbered_pairs(data_root):
        image, ids, weights = BORDER_READER(pair)
        before, whole = READER(pair)
        assert np.array_equal(image, before)
        with Image.open(str(pair.instances)) as file:
            expected, cells = separate_cells(whole, np.asarray(file))
        assert np.array_equal(ids, expected)
        assert (whole != ids).sum() == 2 * 16  # the height of the box
        assert weights.dtype == np.float16
        np.testing.assert_allclose(weights, border_weights(cells, sigma=3), rtol=1e-3, atol=1e-4)
        assert weights[ids != whole].min() > 5


def test_parts_of_a_class_are_cells_where_none_are_numbered(tmp_path: Path) -> None:
    mask = np.full((9, 20), 200, np.uint8)
    mask[:, 9:12] = 0
    Image.fromarray(mask).save(tmp_path / "1.png")
    pair = Pair(stem="1", images=(f"{tmp_path}/1.png",), masks=(f"{tmp_path}/1.png",))
    _, ids, weights = replace(READER, border=Border(classes=(1,)))(pair)
    assert np.array_equal(ids > 0, mask > 0)
    assert (weights[:, 10] == np.float16(10 * np.exp(-16 / 50))).all()
    assert not replace(READER, border=Border(classes=(0,)))(pair)[2].any()


def test_cells_of_another_image_are_refused(data_root: Path) -> None:
    pair = numbered_pairs(data_root)[0]
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(str(pair.instances))
    with pytest.raises(ValueError, match=r"0\.png: got objects that are \d+% ground in .*0\.png"):
        BORDER_READER(pair)


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
