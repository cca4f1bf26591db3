"""Atomic writes, and safe loading of torch files."""

import csv
import math
import os
import re
import secrets
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from unet.runtime.errors import is_out_of_memory

# Texts that a spreadsheet may take for a formula or a command; negative numbers are none.
_FORMULA = re.compile(
    r"(?!-?\d+(\.\d*)?(e-?\d+)?$)\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\0-\x1f\x7f]"
)


class DamagedFileError(ValueError):
    """A file was not written by torch.save, is damaged, or is unsafe to load."""


def no_such(path: str | Path, what: str = "file") -> str:
    """Say that there is no such path, and which one may be meant; or that it is something else."""
    path, advice = Path(path), "check the path"
    with suppress(OSError):
        if path.exists():  # such as a device, or a file instead of a folder
            return f"{path}: exists, but is no {what}; {advice}"
        first = next(one for one in (path, *path.parents) if one.parent.is_dir())
        names = [entry.name for entry in islice(os.scandir(first.parent), 2000)]
        for name in get_close_matches(first.name, names, 1, 0.7):
            if (meant := first.with_name(name) / path.relative_to(first)).exists():
                advice = f"did you mean {meant}?"
    return f"{path}: there is no such {what}; {advice}"


def check_writable(folder: Path) -> None:
    """Raise an error unless files can be written to a folder, which need not exist yet.

    Raises:
        FileExistsError: if the folder or one above it is a file.
        PermissionError: if the system refuses to write.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise FileExistsError(f"{place}: is a file; choose another place")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise PermissionError(
            f"{place}: cannot be written to ({error.strerror}); choose another place"
        ) from error


@contextmanager
def atomic_path(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` if the block raises nothing.

    After an exception `path` is unchanged.

    Args:
        path: the file to write.
        flush: whether to wait until the new file is on the disk, so that it also survives a power
            failure. That takes longer than to write a small file.

    Raises:
        OSError: naming `path`, such as if the disk is full.
    """
    # Long names fit into 255 bytes; random, because several processes may write at once.
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        if flush:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows to a table of comma-separated values; the keys of the first are the head.

    NaN is an empty cell. An apostrophe precedes texts that a spreadsheet would run as a formula.
    """
    with (
        atomic_path(path) as temporary,
        # Names of files that are not UTF-8 keep their bytes.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)  # ends lines in \r\n, as only then names with either are quoted
        writer.writerow(map(_cell, rows[0]))
        writer.writerows([_cell(row[key]) for key in rows[0]] for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return "" if isinstance(value, float) and math.isnan(value) else value


def flush_folder(folder: Path) -> None:
    """Flush renamed files of a folder to disk; Windows cannot open folders and needs no flush."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_torch_file(path: Path) -> Any:
    """Load a file of torch.save to the CPU, without running code in it.

    Raises:
        DamagedFileError: if the file is damaged, unsafe, or of another type.
        FileNotFoundError: if the file does not exist.
    """
    import torch  # slow to import, and no other function here needs it

    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"  # the format since torch 1.6
        if is_zip:
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:  # the file may be good
        error.filename = error.filename or str(path)  # errors of reading have none
        raise
    except Exception as error:  # torch raises many types for files that it did not write
        if is_out_of_memory(error):
            raise
        raise DamagedFileError(
            f"{path}: cannot be loaded safely; it is another type of file, is damaged, or holds "
            "code to run"
        ) from error


def _check_archive(path: Path) -> None:
    """Raise ValueError for what torch accepts: a wrong checksum, or little that becomes much."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it is compressed, and torch.save compresses nothing")
        for entry in entries:
            # A number of bytes in the pickle, of any size.
            if entry.filename.endswith(".pkl") and b"\nbytearray\n" in archive.read(entry):
                raise ValueError("it holds a bytearray")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
