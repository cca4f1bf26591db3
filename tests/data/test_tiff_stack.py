import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.data.tiff_stack import stack_writer


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_stack_is_written_page_by_page(tmp_path: Path, dtype: type) -> None:
    pages = [np.full((4, 5 + i), i, dtype) for i in range(3)]
    path = tmp_path / "a.tif"
    with stack_writer(path, 1000) as add:
        for page in pages:
            add(Image.fromarray(page))
            assert not path.exists()
    with Image.open(path) as file:
        assert file.n_frames == 3
        for i, page in enumerate(pages):
            file.seek(i)
            assert np.array_equal(np.asarray(file), page)


def test_an_unfinished_stack_is_removed(tmp_path: Path) -> None:
    def stop_after_a_page() -> None:
        with stack_writer(tmp_path / "a.tif", 1000) as add:
            add(Image.new("L", (4, 5)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_after_a_page()
    assert not list(tmp_path.iterdir())


def write_beyond_4_gib(path: Path, pages: list[np.ndarray], num_bytes: int) -> None:
    """Write a stack with a hole after its first two pages, which takes no room on the disk."""
    with stack_writer(path, num_bytes) as add:
        for i, page in enumerate(pages):
            add(Image.fromarray(page))
            if i == 1:
                os.truncate(next(path.parent.glob(".*.tmp")), 5 * 2**30)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_stack_may_be_larger_than_4_gib(tmp_path: Path, dtype: type) -> None:
    pages = [np.full((4, 5 + i), i, dtype) for i in range(5)]
    write_beyond_4_gib(tmp_path / "a.tif", pages, num_bytes=5 * 2**30)
    assert (tmp_path / "a.tif").stat().st_size > 5 * 2**30
    with Image.open(tmp_path / "a.tif") as file:
        assert file.n_frames == 5
        for i, page in enumerate(pages):
            file.seek(i)
            assert np.array_equal(np.asarray(file), page)


def test_a_stack_larger_than_announced_is_an_error_and_removed(tmp_path: Path) -> None:
    pages = [np.zeros((4, 5), np.uint8)] * 5
    with pytest.raises(
        ValueError, match=r"a\.tif: got more than 4 GiB, expected pages of the size"
    ):
        write_beyond_4_gib(tmp_path / "a.tif", pages, num_bytes=1000)
    assert not list(tmp_path.iterdir())
