import errno
import os
from pathlib import Path

import pytest

from unet.runtime.files import atomic_path, check_writable


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


def test_names_may_be_as_long_as_the_system_allows_and_begin_alike(tmp_path: Path) -> None:
    paths = [tmp_path / f"{'細' * 83}{ending}.txt" for ending in "ab"]  # 254 bytes each
    with atomic_path(paths[0]) as one, atomic_path(paths[1]) as other:
        for path, temporary in zip(paths, (one, other), strict=True):
            temporary.write_text(path.name)
    assert [path.read_text() for path in paths] == [path.name for path in paths]
    too_long = tmp_path / ("細" * 90)
    with (
        pytest.raises(OSError, match="File name too long") as caught,
        atomic_path(too_long) as temporary,
    ):
        temporary.write_text("all")
    assert caught.value.filename == str(too_long)
    assert sorted(tmp_path.iterdir()) == paths


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


def test_a_place_that_files_can_be_written_to_stays_as_it_is(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_file_or_lies_in_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken/a/b"):
        with pytest.raises(FileExistsError, match=r"taken: is a file; give another place with -o"):
            check_writable(folder)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_place_where_the_system_lets_nothing_be_written_is_named() -> None:
    message = r"^/proc: cannot be written to \(.+\); give another place with -o"
    with pytest.raises(PermissionError, match=message):
        check_writable(Path("/proc/new/masks"))
