import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import HEIGHT, WIDTH, make_config
from PIL import Image

from unet.build import build_reader
from unet.data.pairing import Pair, find_pairs
from unet.data.reader import PairReader
from unet.inspection import statistics
from unet.inspection.check import check_data
from unet.inspection.statistics import collect_statistics
from unet.runtime.signals import Stopped, stop_errors

pytestmark = pytest.mark.usefixtures("workdir")


def test_statistics_match_the_files(data_root: Path) -> None:
    pairs, _ = find_pairs(data_root, ["images"], "masks")
    (data_root / "images" / "2.png").write_text("no image")
    Image.fromarray(np.full((HEIGHT, WIDTH), 5, np.uint8)).save(data_root / "masks" / "4.png")
    kept, found, unreadable, errors, _ = collect_statistics(
        pairs, build_reader(make_config(data_root))
    )
    assert kept.tolist() == [0, 1, 3, 5]
    assert len(found) == 4
    assert "2.png: cannot be read" in unreadable[0]
    assert "4.png: got the mask value 5" in errors[0]
    for row, place in enumerate(kept.tolist()):
        with Image.open(pairs[place].images[0]) as image, Image.open(pairs[place].masks[0]) as mask:
            pixels, values = np.asarray(image) / 255, np.asarray(mask)
        assert found.sizes[row].tolist() == [HEIGHT, WIDTH]
        assert found.class_pixels[row].tolist() == [(values == 0).sum(), (values == 200).sum()]
        assert found.sums[row] == pytest.approx(pixels.sum())
        assert found.squares[row] == pytest.approx((pixels**2).sum())
        assert found.num_bytes[row] == 2 * HEIGHT * WIDTH
    assert len(set(found.contents.tolist())) == 4


def test_a_signal_does_not_wait_for_the_pairs_in_the_queue(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        time.sleep(0.1)
        raise ValueError("wrong")

    pairs = 40 * find_pairs(data_root, ["images"], "masks")[0]  # for 10 seconds
    monkeypatch.setattr(PairReader, "read", read)
    # It handles the first error.
    monkeypatch.setattr(statistics, "_split", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    start = time.monotonic()
    reader = build_reader(make_config(data_root))
    with stop_errors(), pytest.raises(Stopped):
        collect_statistics(pairs, reader)
    assert time.monotonic() - start < 1


def test_a_second_check_reads_only_changed_files(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data_root)
    first = check_data(config)
    read = []
    read_pair = PairReader.read

    def spy(reader: PairReader, pair: Pair) -> object:
        read.append(pair.stem)
        return read_pair(reader, pair)

    monkeypatch.setattr(PairReader, "read", spy)
    again = check_data(config)
    assert read == []
    assert np.array_equal(again.train, first.train)
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(data_root / "images" / "3.png")
    os.utime(data_root / "masks" / "5.png", (1, 1))
    check_data(config)
    assert sorted(read) == ["3", "5"]
    read.clear()
    check_data(make_config(data_root, "data.classes={ground: 0, box: 200, new: 1}"))
    assert len(read) == 6


def test_a_damaged_cache_is_written_again(data_root: Path) -> None:
    config = make_config(data_root)
    first = check_data(config)
    (cache,) = Path("runs/.checked").iterdir()
    whole = cache.read_bytes()
    for damaged in (b"", b"no archive", whole[:1000]):
        cache.write_bytes(damaged)
        assert np.array_equal(check_data(config).train.sums, first.train.sums)
        assert len(cache.read_bytes()) == len(whole)


def test_a_cache_without_rows_does_no_harm(data_root: Path) -> None:
    for path in (data_root / "masks").iterdir():
        path.write_text("no image")
    config = make_config(data_root)
    assert check_data(config).errors == check_data(config).errors
    (error,) = check_data(config).errors
    assert error.startswith("6 files, such as ")
