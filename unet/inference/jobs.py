"""From the inputs of a prediction to jobs: which images, and which files to write for each."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from unet.data.image_io import read_header
from unet.data.image_types import SUFFIXES, ImageTypeError, UnreadableError
from unet.data.pairing import find_pairs, list_files, natural_key
from unet.inference.geotiff import is_raster

# Other formats that can hold several pages are read as a single image, or refused.
_STACK_SUFFIXES = frozenset({".tif", ".tiff", ".gif"})
_MAX_NAME_BYTES = 255  # of all common file systems


@dataclass(frozen=True, kw_only=True)
class Job:
    """An image to predict.

    Args:
        files: one file, or one for each channel.
        outputs: the files to write: first the mask, then others by the name of their option.
        pages: number of pages of a stack; None for a single image.
        is_raster: whether the image is read window by window.
    """

    files: tuple[str, ...]
    outputs: dict[str, Path]
    pages: int | None
    is_raster: bool


def find_images(
    inputs: Sequence[str], channels: Sequence[str] | None, out: Path
) -> list[tuple[str, tuple[str, ...]]]:
    """List the images of files, folders and glob patterns, without those in the folder `out`.

    With patterns for `channels`, every input is a folder with a file for each channel.

    Returns:
        The name of each image, with its subfolder and without suffix, and its files.

    Raises:
        FileNotFoundError: if an input does not exist, or a pattern matches nothing.
        ValueError: if a folder has no images, or the channels of an image are incomplete.
    """
    if channels is not None:
        return [image for entry in inputs for image in _find_channels(entry, channels)]
    names: dict[Path, str] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            base, paths = path, _list_folder(path, out)
        elif path.is_file():
            base, paths = path.parent, [path]
        elif glob.has_magic(entry):
            # Path.glob does not take absolute patterns before Python 3.13.
            matches = glob.glob(entry, recursive=True)  # noqa: PTH207
            base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            paths = _sort(_outside(out, base, filter(Path.is_file, map(Path, matches))))
            if not paths:
                raise FileNotFoundError(f"{entry}: matches no file to predict; check the pattern")
        else:
            raise FileNotFoundError(f"{entry}: there is no such file or folder; check the path")
        for one in paths:
            names.setdefault(one, one.relative_to(base).with_suffix("").as_posix())
    return [(name, (str(path),)) for path, name in names.items()]


def _find_channels(folder: str, channels: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder}: is not a folder, expected one that holds {', '.join(channels)}, as the "
            "model was trained on"
        )
    pairs, errors = find_pairs(Path(folder), channels[:-1], channels[-1])
    if errors:
        raise ValueError("\n".join(errors))
    return [(pair.stem, pair.files) for pair in pairs]


def _list_folder(folder: Path, out: Path) -> list[Path]:
    files = (path for path in map(Path, list_files(folder)) if path.suffix.lower() in SUFFIXES)
    paths = _outside(out, folder, files)
    if not paths:
        raise ValueError(
            f"{folder}: got no image, expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return _sort(paths)


def _outside(out: Path, folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Leave out the files in `out`, if it is inside the searched folder."""
    results = out.resolve()
    if folder.resolve() not in results.parents:
        return list(paths)
    return [path for path in paths if not path.parent.resolve().is_relative_to(results)]


def _sort(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (natural_key(str(path)), str(path)))


def plan_jobs(
    images: Sequence[tuple[str, tuple[str, ...]]],
    out: Path,
    extras: Sequence[str] = (),
    windows: bool | None = None,
) -> list[Job]:
    """Decide for each image of `find_images` how it is read and which files are written.

    Args:
        images: names and files.
        out: the folder for the masks.
        extras: outputs in addition to the mask: overlay, probabilities, instances.
        windows: as in `is_raster`.

    Raises:
        ValueError: if an output would replace an image or another output, or has too long a name.
    """
    jobs = []
    for name, files in images:
        raster = len(files) == 1 and is_raster(files[0], windows)
        pages = None if raster else _count_stack(files[0])
        suffix = ".tif" if raster or pages is not None else ".png"
        outputs = {"mask": out / f"{name}{suffix}"}
        for extra in extras:
            outputs[extra] = extra_path(outputs["mask"], extra)
        jobs.append(Job(files=files, outputs=outputs, pages=pages, is_raster=raster))
    _check_outputs(jobs)
    return jobs


def extra_path(mask: Path, extra: str) -> Path:
    """Return the file of an output in addition to a mask, next to it."""
    return mask.with_name(f"{mask.stem}_{extra}{mask.suffix if extra == 'overlay' else '.tif'}")


def _check_outputs(jobs: Sequence[Job]) -> None:
    inputs = {Path(path).resolve() for job in jobs for path in job.files}
    taken: dict[Path, str] = {}
    for job in jobs:
        for path in job.outputs.values():
            if path in taken:
                raise ValueError(
                    f"{taken[path]} and {job.files[0]}: got two images that would both write "
                    f"{path}, expected a file for each; predict them into different folders"
                )
            taken[path] = job.files[0]
            if (length := len(os.fsencode(path.name))) > _MAX_NAME_BYTES:
                raise ValueError(
                    f"{job.files[0]}: got a name that makes {path.name} {length} bytes long, "
                    f"expected at most {_MAX_NAME_BYTES}; rename the image"
                )
            if path.resolve() in inputs:
                raise ValueError(f"{path}: is an image to predict; choose another output folder")


def _count_stack(path: str) -> int | None:
    """Return the number of pages of a stack; None for a single image."""
    if Path(path).suffix.lower() not in _STACK_SUFFIXES:
        return None
    try:
        pages = read_header(path).pages
    except (UnreadableError, ImageTypeError, FileNotFoundError):
        return None  # reading it later reports the error
    return pages if pages > 1 else None
