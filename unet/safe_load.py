"""Files of torch.save: their checksums compared, no code run that they may hold."""

import zipfile
from pathlib import Path
from typing import Any

import torch


class DamagedError(ValueError):
    """A file that torch.save did not write so, or that it would not be safe to load."""


def safe_load(path: Path) -> Any:
    """Read what torch.save wrote, to the CPU.

    Raises:
        DamagedError: if it is damaged, unsafe, or another kind of file.
        FileNotFoundError: if there is no such file.
    """
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
        raise DamagedError(
            f"{path}: cannot be loaded safely; it is another kind of file, is damaged, or holds "
            "code to run"
        ) from error
