import csv
import errno
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from unet.runtime.files import (
    DamagedFileError,
    atomic_path,
    check_writable,
    load_torch_file,
    no_such,
    write_csv,
)

STATE = {"weight": torch.arange(1000.0), "names": ["a", "b"]}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has this file")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'"):
        load_torch_file(Path("/proc/self/mem"))


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/"])
def test_a_path_that_is_something_else_is_not_suggested_itself(path: str) -> None:
    assert no_such(path, "checkpoint") == f"{path}: exists, but is no checkpoint; check the path"


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("configs/mine.yml", "did you mean configs/mine.yaml?"),
        ("config/mine.yaml", "did you mean configs/mine.yaml?"),
        ("confgis", "did you mean configs?"),
        ("configs/other.yaml", "check the path"),
        ("config/other.yaml", "check the path"),
        ("a" * 300, "check the path"),
    ],
)
def test_a_missing_path_gets_a_suggestion(typed: str, advice: str, workdir: Path) -> None:
    (workdir / "configs").mkdir()
    (workdir / "configs/mine.yaml").touch()
    assert no_such(typed, "file") == f"{typed}: there is no such file; {advice}"


def test_a_file_is_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_flushed_to_disk_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("os.fsync", calls.append)
    for flush, count in ((False, 0), (True, 2)):  # the file and its folder
        with atomic_path(tmp_path / "a.txt", flush=flush) as temporary:
            temporary.write_text("new")
        assert len(calls) == count
        assert (tmp_path / "a.txt").read_text() == "new"


def test_after_an_exception_only_the_old_file_is_left(tmp_path: Path) -> None:
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


def test_names_may_be_as_long_as_the_system_allows_and_start_alike(tmp_path: Path) -> None:
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


def test_system_errors_name_the_file_and_not_the_temporary_file(tmp_path: Path) -> None:
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


def test_checking_a_writable_folder_changes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a/b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken/a/b"):
        with pytest.raises(FileExistsError, match=r"taken: is a file; choose another place"):
            check_writable(folder)
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_read_only_folder_raises_an_error() -> None:
    message = r"^/proc: cannot be written to \(.+\); choose another place"
    with pytest.raises(PermissionError, match=message):
        check_writable(Path("/proc/new/masks"))


@pytest.mark.parametrize("as_zip", [True, False])
def test_both_formats_of_torch_save_are_loaded(tmp_path: Path, as_zip: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=as_zip)
    assert zipfile.is_zipfile(path) == as_zip
    found = load_torch_file(path)
    assert torch.equal(found["weight"], STATE["weight"])
    assert found["names"] == STATE["names"]


def test_a_changed_byte_raises_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    contents = path.read_bytes()
    number = torch.tensor(500.0).numpy().tobytes()
    assert contents.count(number) == 1
    path.write_bytes(contents.replace(number, torch.tensor(501.0).numpy().tobytes()))
    assert torch.load(path)["weight"][500] == 501  # torch does not notice
    with pytest.raises(
        DamagedFileError, match=r"weights\.pth: cannot be loaded safely; .* is damaged"
    ):
        load_torch_file(path)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_raises_an_error(tmp_path: Path, as_zip: bool, fraction: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=as_zip)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(DamagedFileError):
        load_torch_file(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, as_zip: bool) -> None:
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(DamagedFileError, match="holds code to run"):
        load_torch_file(tmp_path / "a")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_not_reported_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_torch_file(tmp_path / "no.pth")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_lack_of_memory_does_not_make_a_file_damaged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    torch.save(STATE, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)) as caught:
        load_torch_file(tmp_path / "weights.pth")
    assert caught.value is error


FORMULAS = [
    "=1+1",
    "+1+1",
    "-1+cmd|x",
    "@SUM(A1)",
    " =1",
    "\t=1",
    "\r=1",
    "\n1",
    "\x1b[2J",
    "\uff1d1",
    "-",
]
PLAIN = ["a=1", "1-2", "cell", "-3", "-0.25", "-1e-5", "", "'a", "\u00e9", "a,b", 'a"b', "\udcff"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_would_run_is_marked_as_text(tmp_path: Path, text: str) -> None:
    assert table_of(tmp_path, [{text: text, "b": 1}]) == [[f"'{text}", "b"], [f"'{text}", "1"]]


def test_other_texts_and_numbers_stay_as_they_are(tmp_path: Path) -> None:
    assert table_of(tmp_path, [{"a": text, "b": "b"} for text in PLAIN])[1:] == [
        [text, "b"] for text in PLAIN
    ]
    numbers = {"a": -1.5, "b": -2, "c": math.nan, "d": -math.inf, "e": None}
    assert table_of(tmp_path, [numbers])[1] == ["-1.5", "-2", "", "-inf", ""]


def table_of(folder: Path, rows: list[dict[str, object]]) -> list[list[str]]:
    write_csv(folder / "table.csv", rows)
    path = folder / "table.csv"
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))
