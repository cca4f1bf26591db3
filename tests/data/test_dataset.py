from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HEIGHT, WIDTH, draw, write_raster
from PIL import Image
from torch.utils.data import DataLoader

from unet.data.augmentation import Augmentation
from unet.data.border_weights import Border
from unet.data.cache import DecodedCache
from unet.data.classes import ClassMap
from unet.data.dataset import SegmentationDataset
from unet.data.image_file import ImageFile
from unet.data.image_types import Pixels, Window
from unet.data.normalization import Method, Normalization
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
    monkeypatch.setattr(Augmentation, "place", fail)
    with pytest.raises(
        SampleError, match=r"2\.png: cannot make a sample from it \(IndexError: too far\)"
    ):
        _ = samples[(0, 2)]


@pytest.mark.parametrize("method", ["given", "image", "percentiles"])
def test_windows_of_tiled_tiffs_give_the_samples_of_whole_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    write_tiled_pairs(tmp_path)
    pairs = pairs_of(tmp_path)
    monkeypatch.setattr("unet.data.reader._SMALLEST_IN_WINDOWS", 100)
    windows = []
    real = ImageFile.read

    def read(file: ImageFile, page: int | None = None, window: Window | None = None) -> Pixels:
        windows.append(window)
        return real(file, page, window)

    monkeypatch.setattr(ImageFile, "read", read)

    def samples(limit: float) -> SegmentationDataset:
        numbers = ((0.4,) * 3, (0.2,) * 3) if method == "given" else ((), ())
        sizes = np.full((2, 2), (90, 130))
        return SegmentationDataset(
            pairs,
            replace(READER, in_channels=3),
            Normalization(method, *numbers),
            Augmentation(crop=(20, 24), rotate=20, scale=(0.8, 1.2)),
            rare_classes=[1],
            rare_fraction=0.5,
            cache=DecodedCache(
                pairs, replace(READER, in_channels=3), sizes, sizes.prod(1) * 13, limit
            ),
        )

    cached, uncached = samples(1e9), samples(0)
    for place in ((number, i) for number in range(8) for i in range(2)):
        windows.clear()
        one = uncached[place]
        # Whole only once, for the statistics and the rows of rare pixels.
        assert (None in windows) == (place[0] == 0)
        assert all(map(torch.equal, one, cached[place]))


def write_tiled_pairs(root: Path) -> None:
    """An image with missing pixels and one with alpha."""
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    rgb = draw(4, 90, 130)
    rgb[:3, 10:50, 20:40], rgb[3] = 0, np.where(rgb[0] > 110, 255, 0)
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}
    write_raster(str(root / "images" / "0.tif"), rgb[:3], nodata=0, **tiles)
    write_raster(str(root / "images" / "1.tif"), rgb, photometric="RGB", ALPHA="YES", **tiles)
    for i in range(2):
        mask = np.where(rgb[i] > 130, 200, 0).astype(np.uint8)
        write_raster(str(root / "masks" / f"{i}.tif"), mask, **tiles)


def test_files_without_cheap_windows_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiled_pairs(tmp_path)
    first, second = pairs_of(tmp_path)
    assert READER.window_size(first) is None  # small
    monkeypatch.setattr("unet.data.reader._SMALLEST_IN_WINDOWS", 100)
    assert READER.window_size(first) == (90, 130)
    for other in (replace(READER, scale=0.5), replace(READER, border=Border())):
        assert other.window_size(first) is None
    Image.fromarray(np.zeros((90, 130), np.uint8)).save(tmp_path / "masks" / "0.png")
    (tmp_path / "masks" / "0.tif").unlink()
    write_raster(
        str(tmp_path / "masks" / "1.tif"), draw(45, 65), tiled=True, blockxsize=16, blockysize=16
    )
    assert [READER.window_size(pair) for pair in pairs_of(tmp_path)] == [None, None]
    monkeypatch.setattr("unet.data.reader.is_installed", lambda *_: False)
    assert READER.window_size(second) is None


def test_a_rare_pixel_is_the_one_that_a_choice_among_all_of_them_gives(data_root: Path) -> None:
    samples = dataset(data_root)
    samples.rare_classes, samples.rare_fraction = [1], 1.0
    source = samples._open(2)
    assert source.arrays is not None
    for seed in range(20):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        one.permutation([1])
        place = int(one.choice(np.flatnonzero(source.arrays[1] == 1)))
        assert samples._rare_pixel(2, source, other) == divmod(place, WIDTH)
        assert one.random() == other.random()
