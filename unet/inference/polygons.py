"""Outlines of predicted masks, in files of annotation tools."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unet.build import build_read_options
from unet.data.annotations import coco, geojson, imagej, labelme
from unet.data.annotations.outlines import Outline, trace
from unet.data.annotations.regions import Size
from unet.data.image_io import read_stored
from unet.data.masks import read_mask
from unet.inference.jobs import Job
from unet.inference.options import OptionError, PolygonFormat
from unet.inference.predictor import Model
from unet.runtime import distributed
from unet.runtime.files import atomic_path
from unet.runtime.progress import show_progress

FOLDER = "polygons"
"""The subfolder of the files."""

_SUFFIXES = {"geojson": ".geojson", "labelme": ".json", "imagej": ".zip"}
_ALL = "coco.json"  # the file of all images


def polygon_files(job: Job, out: Path) -> dict[str, Path]:
    """Return the file of each format that has the outlines of a job; that of COCO has all."""
    name = _name(job, out)
    files = {kind: out / FOLDER / name.with_suffix(suffix) for kind, suffix in _SUFFIXES.items()}
    return {**files, "coco": out / FOLDER / _ALL}


def check_pages(jobs: Sequence[Job]) -> None:
    """Raise OptionError for a stack."""
    for job in jobs:
        if job.pages is not None:
            raise OptionError(
                "polygons",
                f"got {job.files[0]}, a stack of {job.pages} pages, expected single images; save "
                "each page as a file",
            )


def write_polygons(model: Model, jobs: Sequence[Job], out: Path, kind: PolygonFormat) -> None:
    """Write the outlines of the masks of jobs that are done; processes divide the files.

    Raises:
        OSError: if a file cannot be written.
        OptionError: if an image is too large for ImageJ.
    """
    names, colours = model.classes.names[1:], model.classes.colours[1:]
    if kind == "coco":
        if distributed.rank() == 0:
            traced = show_progress(jobs, "trace", "mask")
            images = [(_image_name(job, out), *_trace(model, job)) for job in traced]
            _write(out / FOLDER / _ALL, coco.write(images, names))
        return
    for job in show_progress(distributed.shard(jobs), "trace", "mask"):
        path = polygon_files(job, out)[kind]
        size, outlines = _trace(model, job)
        if kind == "labelme":
            image = Path(os.path.relpath(job.files[0], path.parent)).as_posix()
            _write(path, labelme.write(image, size, outlines, names))
        elif kind == "imagej":
            if max(size) > imagej.LARGEST:
                raise OptionError(
                    "polygons",
                    f"got {job.files[0]} of {size[0]} x {size[1]} pixels, expected at most "
                    f"{imagej.LARGEST} for ImageJ; write geojson",
                )
            _write(path, imagej.write(outlines, names, colours))
        else:
            place = geojson.read_place(Path(job.files[0]), "polygons")
            _write(path, geojson.write(outlines, names, colours, place))


def _trace(model: Model, job: Job) -> tuple[Size, list[Outline]]:
    """Read the mask of a job, and trace its objects."""
    path, classes = job.outputs["mask"], model.classes
    # The mask is as large as the image, which may be larger than what is read whole.
    options = replace(build_read_options(model.config), max_pixels=10**12, exif="ignore")
    valid = read_stored(path, options=options)[1].valid
    missing = None if valid is None else ~np.asarray(valid.all(2))
    ids: np.ndarray = read_mask(path, classes, options=options, missing=missing)
    return (ids.shape[0], ids.shape[1]), [*trace(ids, len(classes.names))]


def _name(job: Job, out: Path) -> Path:
    return job.outputs["mask"].relative_to(out)


def _image_name(job: Job, out: Path) -> str:
    return _name(job, out).with_suffix(Path(job.files[0]).suffix).as_posix()


def _write(path: Path, data: dict[str, Any] | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, flush=False) as temporary:
        temporary.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
