import errno
import os
from pathlib import Path

import pytest

from unet.atomic import atomic_path


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_exception_the_old_file_stays_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_names_the_file_and_not_the_one_beside_it(tmp_path: Path) -> None:
    def write(path: Path, number: int | None) -> None:
        with atomic_path(path) as temporary:
            if number is not None:
                raise OSError(number, os.strerror(number))
            temporary.write_text("all")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "a.txt", errno.ENOSPC)
    assert caught.value.filename == str(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "nowhere" / "a.txt", None)
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.txt")
    assert not list(tmp_path.iterdir())
