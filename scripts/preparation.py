"""Download the archives of a public data set with torchvision, and list its pairs in a CSV file."""

import argparse
import csv
import errno
import shlex
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from unet.runtime.files import atomic_path

CSV_NAME = "pairs.csv"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive to download."""

    path: Path
    """The file to download to; it is unpacked into the same folder."""
    url: str
    md5: str


def folder_parser(description: str | None, default: str) -> argparse.ArgumentParser:
    """Return a parser with the argument `root`, the folder for the data."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "root",
        nargs="?",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help="folder for the data (default: %(default)s)",
    )
    return parser


def prepare(
    root: Path,
    archives: Sequence[Archive],
    rows: Callable[[], Iterable[tuple[str | Path, str | Path, str]]],
    config: str,
) -> int:
    """Download a data set, list its pairs in root/pairs.csv, and return the exit code.

    A complete archive is not downloaded again, but it is always unpacked: a second run repairs an
    interrupted one.

    Args:
        root: folder of the data set.
        archives: the archives to download and unpack.
        rows: called after unpacking; returns image, mask (both in `root`) and split (train, val or
            test) of each pair.
        config: the config file that trains on the data set, for the message.

    Returns:
        0 done; 2 after an error, which is printed in one line; 130 interrupted.
    """
    try:
        if root.exists() and not root.is_dir():
            raise NotADirectoryError(f"{root}: is a file, expected a folder; give another name")
        for archive in archives:
            _fetch(archive, archives)
        counts = _write_pairs(root, rows())
    except OSError as error:
        text = str(error)
        if error.strerror:  # from the system
            text = f"{error.filename or root}: {error.strerror}; check the path, its rights and "
            text += "the space"
        print(f"error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    images = ", ".join(f"{counts[one]} {one}" for one in ("train", "val", "test") if one in counts)
    print(f"{root / CSV_NAME}: {counts.total()} images ({images})")
    print(f"next: {shlex.join(['unet', 'train', config, f'data.root={root}'])}")
    return 0


def _fetch(archive: Archive, archives: Sequence[Archive]) -> None:
    """Download, check and unpack one of the archives.

    Raises:
        OSError: the system's own, or one that names every archive that is still missing.
    """
    path = archive.path
    print(f"{path}: downloading, unless it exists, and unpacking", flush=True)
    try:
        download_and_extract_archive(archive.url, path.parent, filename=path.name, md5=archive.md5)
    except (OSError, HTTPException, RuntimeError, tarfile.TarError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and _is_local(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if path.is_file() and not check_integrity(path, archive.md5):
            reason += ", and the existing file is damaged, incomplete or another one"
        wanted = " and ".join(
            f"{one.url} (MD5 checksum {one.md5}) as {one.path}"
            for one in archives
            if one is archive or not check_integrity(one.path, one.md5)
        )
        raise OSError(
            f"{path}: could not be downloaded and unpacked ({reason}), expected {wanted}; run this "
            "again, or download the missing files by other means"
        ) from error


def _is_local(error: OSError) -> bool:
    """Whether an error is about a file of this machine, not about the network."""
    named = error.filename is not None and not isinstance(error, URLError)
    return named or error.errno in {errno.ENOSPC, errno.EDQUOT}


def _write_pairs(root: Path, rows: Iterable[tuple[str | Path, str | Path, str]]) -> Counter[str]:
    """Write root/pairs.csv, completely or not at all, and count the pairs of each split."""
    counts: Counter[str] = Counter()
    with (
        atomic_path(root / CSV_NAME) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "mask", "split"])
        for image, mask, split in rows:
            paths = [Path(path).relative_to(root).as_posix() for path in (image, mask)]
            writer.writerow([*paths, split])
            counts[split] += 1
    return counts
