"""From the inputs of a prediction to jobs: which images, and which files to write for each."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from unet.build import list_pairs
from unet.config.data_schema import DataConfig
from unet.config.schema import Config
from unet.data.file_list import list_files
from unet.data.image_file import other_format
from unet.data.image_io import read_header
from unet.data.image_types import DEFAULT_OPTIONS, SUFFIXES, ReadOptions
from unet.data.pairing import find_pairs, is_at, natural_key
from unet.inference.geotiff import is_raster
from unet.runtime.files import no_such
from unet.runtime.text import join_some, plural

FOLDERS = {"overlay": "overlays"}
FOLDERS |= {name: name for name in ("probabilities", "instances", "uncertainty")}
"""Outputs in addition to the masks, and their subfolders."""

# Other formats can hold several pages.
_SINGLE_SUFFIXES = frozenset({".jpg", ".jpeg", ".bmp", ".jp2", ".j2k"})

_MAX_NAME_BYTES = 255  # of all common file systems


@dataclass(frozen=True, kw_only=True)
class Job:
    """An image to predict.

    Args:
        files: one file, or one for each channel.
        outputs: the files to write: first the mask, then others by the name of their option.
        others: the files of the outputs that are not written.
        pages: number of pages of a stack; None for a single image.
        is_raster: whether the image is read window by window.
    """

    files: tuple[str, ...]
    outputs: dict[str, Path]
    others: tuple[Path, ...]
    pages: int | None
    is_raster: bool

    @property
    def is_single(self) -> bool:
        """Whether it is one image that is read whole."""
        return self.pages is None and not self.is_raster


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """The images of the inputs.

    Args:
        images: the name of each, with its subfolder and without suffix, and its files.
        errors: what in the inputs should be an image and is none.
        notes: messages about files that are left out.
    """

    images: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_images(inputs: Sequence[str], config: Config, out: Path) -> FoundImages:
    """List the images of files, folders and glob patterns, without those in the folder `out`.

    In folders, files that are named as no image are left out, and the label files of the model's
    data set, or of one with the same layout. If the model has a file for each channel, every input
    is a folder with these files.

    Raises:
        FileNotFoundError: if an input does not exist, or a pattern matches nothing.
        ValueError: if a folder has no images.
    """
    found = FoundImages()
    if config.data.channels is not None:
        for entry in inputs:
            _find_channels(entry, config.data.channels, found)
        return found
    names: dict[Path, str] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            base, paths = path, _list_folder(path, config, out, found)
        elif os.path.lexists(path):  # reading it reports what is no regular file
            base, paths = path.parent, [path]
        elif glob.has_magic(entry):
            # Path.glob does not take absolute patterns before Python 3.13.
            matches = glob.glob(entry, recursive=True)  # noqa: PTH207
            base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            files = (path for path in map(Path, matches) if not path.is_dir())
            paths = _sort(_outside(out, base, files))
            if not paths:
                raise FileNotFoundError(f"{entry}: matches no file to predict; check the pattern")
        else:
            raise FileNotFoundError(no_such(entry, "file or folder"))
        for one in paths:
            names.setdefault(one, one.relative_to(base).with_suffix("").as_posix())
    found.images.extend((name, (str(path),)) for path, name in names.items())
    return found


def _find_channels(folder: str, channels: Sequence[str], found: FoundImages) -> None:
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder}: is not a folder, expected one that holds {', '.join(channels)}, as the "
            "model was trained on"
        )
    pairs, errors = find_pairs(Path(folder), channels[:-1], channels[-1])
    found.errors.extend(errors)
    found.images.extend((pair.stem, pair.files) for pair in pairs)


def _list_folder(folder: Path, config: Config, out: Path, found: FoundImages) -> list[Path]:
    """List the images of a folder; add what is left out to `found`."""
    images, others = list[Path](), list[Path]()
    for path in _sort(_outside(out, folder, map(Path, list_files(folder)))):
        if path.is_dir():
            problem = "cannot be listed; correct its permissions"
            if os.access(path, os.R_OK | os.X_OK):
                problem = "is a folder with the name of an image; remove or rename it"
            found.errors.append(f"{path}: {problem}")
        else:
            (images if path.suffix.lower() in SUFFIXES else others).append(path)
    labels, unlike = _list_labels(folder, config) if images else (set(), set())
    real = [Path(os.path.realpath(path)) for path in images]
    masks = [path for path, whole in zip(images, real, strict=True) if str(whole) in labels]
    beside = [path for path, whole in zip(images, real, strict=True) if whole in unlike]
    left_out = {*masks, *beside}
    notes = _describe_unread(folder, others)
    if masks:
        notes.append(
            f"note: {folder}: left out {plural(len(masks), 'label file')} of the data set "
            f"({_join(folder, masks)}); name files or a pattern to predict them"
        )
    if beside:
        notes.append(
            f"note: {folder}: left out {plural(len(beside), 'file')} next to label files that "
            f"data.images does not describe ({_join(folder, beside)}); name files or a pattern to "
            "predict them"
        )
    found.notes.extend(notes)
    images = [path for path in images if path not in left_out]
    if not images and not found.errors:
        raise ValueError(
            "\n".join(
                [
                    f"{folder}: contains no images (files that end in "
                    f"{', '.join(sorted(SUFFIXES))}); check the path",
                    *notes,
                ]
            )
        )
    return images


def _list_labels(folder: Path, config: Config) -> tuple[set[str], set[Path]]:
    """List the label files of a folder, and other files next to them that are no images.

    The folder may be laid out as the data set, or be near it, or have images and masks side by
    side, which the patterns then tell apart by the names.
    """
    data, here = replace(config.data, stacks=False), folder.resolve()
    root, validation = Path(data.root), data.validation
    layouts = [data]
    if validation.images is not None and validation.masks is not None:
        names = {name: getattr(validation, name) for name in _PLACES}
        layouts.append(replace(data, **names))
    layouts = [one for layout in layouts for one in _single_places(layout)]
    laid_out = [replace(one, root=str(folder)) for one in layouts]
    if data.csv is None:
        laid_out += [_map_places(one, _without_folders) for one in laid_out]
    if here.is_relative_to(root.resolve()) or root.resolve().is_relative_to(here):
        laid_out += layouts
    labels: set[str] = set()
    found = list[DataConfig]()
    for one in laid_out:
        try:
            pairs, _ = list_pairs(replace(config, data=one), instances=True)
        except (ValueError, OSError):  # the folder has another layout
            continue
        if pairs:
            found.append(one)
        for pair in pairs:
            labels.update(map(os.path.realpath, pair.masks + tuple(filter(None, [pair.instances]))))
    near = {Path(label).parent for label in labels} if data.csv is None else set()
    files = [path for place in near for path in place.iterdir() if str(path) not in labels]
    return labels, {path for path in files if not _is_image(path, found)}


def _is_image(path: Path, layouts: Sequence[DataConfig]) -> bool:
    """Whether a file is where one of the layouts has images, and not named like a mask."""
    for data in layouts:
        root = Path(data.root).resolve()
        masks = [*data.masks.values()] if isinstance(data.masks, dict) else [data.masks]
        at_masks = any(is_at(path, root, one) for one in masks)
        if is_at(path, root, data.images) and not at_masks:
            return True
    return False


_PLACES = ("images", "masks", "instances")


def _map_places(data: DataConfig, change: Callable[[Any], Any]) -> DataConfig:
    """Change each place of images, masks and label images, which may be by class."""

    def apply(places: Any) -> Any:
        if isinstance(places, dict):
            return {name: change(one) for name, one in places.items()}
        return None if places is None else change(places)

    return replace(data, **{name: apply(getattr(data, name)) for name in _PLACES})


def _without_folders(place: Any) -> Any:
    """The last name of a pattern, or any name for a folder."""
    if isinstance(place, tuple):
        return tuple(map(_without_folders, place))
    return place.rpartition("/")[2] if "{stem}" in place else "{stem}"


def _single_places(data: DataConfig) -> list[DataConfig]:
    """Settings for each of several places, as a folder may have one of them."""
    count = len(data.images) if isinstance(data.images, tuple) else 1

    def pick(i: int) -> Callable[[Any], Any]:
        return lambda place: place[i] if isinstance(place, tuple) and len(place) == count else place

    return [_map_places(data, pick(i)) for i in range(count)]


def _describe_unread(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Say which files of a folder are not read, and how those of other formats are converted."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(other_format(path) or "", []).append(path)
    notes = []
    for reason, members in groups.items():
        sign, text = ("warning", f": {reason}") if reason else ("note", ", not named as an image")
        what = f"{plural(len(members), 'file')} ({_join(folder, members)})"
        notes.append(f"{sign}: {folder}: did not read {what}{text}")
    return notes


def _join(folder: Path, paths: Sequence[Path]) -> str:
    return join_some([path.relative_to(folder).as_posix() for path in paths], limit=3)


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
    mask_suffix: str = ".png",
    options: ReadOptions = DEFAULT_OPTIONS,
) -> list[Job]:
    """Decide for each image of `find_images` how it is read and which files are written.

    Args:
        images: names and files.
        out: the folder for the masks.
        extras: outputs in addition to the mask, keys of `FOLDERS`.
        windows: as in `is_raster`.
        mask_suffix: ending of the masks of single images.
        options: how the images are read.

    Raises:
        ValueError: if an output would replace an image or another output, or has too long a name.
    """
    jobs = []
    for name, files in images:
        raster, pages = _look_into(files, windows, options)
        suffix = ".tif" if raster or pages is not None else ".png"
        endings = {"overlay": suffix, "uncertainty": suffix}
        paths = {
            extra: out / folder / f"{name}{endings.get(extra, '.tif')}"
            for extra, folder in FOLDERS.items()
        }
        mask = out / f"{name}{suffix if suffix == '.tif' else mask_suffix}"
        outputs = {"mask": mask, **{extra: paths[extra] for extra in extras}}
        others = tuple(path for extra, path in paths.items() if extra not in extras)
        job = Job(files=files, outputs=outputs, others=others, pages=pages, is_raster=raster)
        jobs.append(job)
    _check_outputs(jobs, {legend_path(out): "the legend"} if "overlay" in extras else {})
    return jobs


def legend_path(out: Path) -> Path:
    """Return the file of the legend of all overlays."""
    return out / FOLDERS["overlay"] / "legend.png"


def _check_outputs(jobs: Sequence[Job], taken: dict[Path, str]) -> None:
    inputs = {os.path.realpath(path) for job in jobs for path in job.files}
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
            if os.path.realpath(path) in inputs:
                raise ValueError(f"{path}: is an image to predict; choose another output folder")


def _look_into(
    files: Sequence[str], windows: bool | None, options: ReadOptions
) -> tuple[bool, int | None]:
    """Return whether an image is read in windows, and the number of pages of a stack, else None."""
    path, raster = Path(files[0]), False
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            return False, None
        raster = len(files) == 1 and is_raster(path, windows)
        if windows if raster else path.suffix.lower() in _SINGLE_SUFFIXES:
            return raster, None
        pages = read_header(path, replace(options, windows=raster)).pages
    except Exception:  # reading it later reports the error
        return raster, None
    return raster and pages == 1, pages if pages > 1 else None
