"""Files that are either whole or not there."""

import os
import secrets
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_writable(folder: Path) -> None:
    """Raise unless files can be written to a folder that is there or is yet to be made.

    Raises:
        FileExistsError: if a file has its place.
        PermissionError: if the system, for any reason, lets nothing be written.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise FileExistsError(f"{place}: is a file; give another place with -o")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise PermissionError(
            f"{place}: cannot be written to ({error.strerror}); give another place with -o"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; it becomes `path` only when all went well.

    The new file is flushed to disk before it takes the place of an old one; after an
    exception nothing of it stays.

    Raises:
        OSError: with the path, if the disk is full or does not let itself be written.
    """
    # Short enough for 255 bytes; several long names may begin alike, and be written at once.
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Write new names in a folder to disk; where folders cannot be opened, the system does."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class DamagedFileError(ValueError):
    """A file that torch.save did not write so, or that it would not be safe to load."""


def load_torch_file(path: Path) -> Any:
    """Read what torch.save wrote, to the CPU.

    Raises:
        DamagedFileError: if it is damaged, unsafe, or another kind of file.
        FileNotFoundError: if there is no such file.
    """
    import torch  # slow to import, and the other functions of this module need none of it

    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"  # as all of it since torch 1.6
        if is_zip:
            with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise  # which says nothing of the file
    except Exception as error:  # what torch.save did not write fails in any of torch's ways
        raise DamagedFileError(
            f"{path}: cannot be loaded safely; it is another kind of file, is damaged, or holds "
            "code to run"
        ) from error
