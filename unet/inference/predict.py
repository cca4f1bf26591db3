"""Predict images: one in memory, or files and folders, whose masks are written to a folder."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from unet.build import build_read_options
from unet.checkpoint import find_checkpoint
from unet.config.loader import Overrides
from unet.data.image_io import read_image, to_channels, to_float
from unet.data.image_types import SUFFIXES
from unet.inference.jobs import FOLDERS, Job, find_images, legend_path, plan_jobs
from unet.inference.loading import load_model
from unet.inference.options import OptionError, Options, describe_promise
from unet.inference.origin import check_origin, describe_origin
from unet.inference.pipeline import run_pipeline
from unet.inference.polygons import FOLDER as POLYGONS
from unet.inference.polygons import check_pages, polygon_files, write_polygons
from unet.inference.predict_geotiff import check_raster, predict_raster
from unet.inference.predict_pages import (
    predict_channels,
    predict_pixels,
    predict_stack,
    read_channels,
    write_image,
)
from unet.inference.predictor import Ensemble, Model, Predictor
from unet.inference.tta import TtaMode
from unet.inference.uncertainty import TABLE, describe_table, write_table
from unet.runtime import distributed
from unet.runtime.device import memory_advice
from unet.runtime.errors import UnpredictedError
from unet.runtime.files import check_writable
from unet.runtime.progress import Progress
from unet.runtime.text import plural, printable
from unet.visualize import draw_legend, save_picture

__all__ = ["OptionError", "Options", "predict", "predict_files"]

_DEFAULTS = Options()


def predict(
    model: Model | str | Path | Sequence[str | Path],
    image: str | Path | Image.Image | np.ndarray,
    *,
    probabilities: bool = False,
    tta: Sequence[TtaMode] = (),
    threshold: float | None = None,
    promise: str | None = None,
    min_size: int = 0,
    keep_largest: bool = False,
    network: nn.Module | None = None,
) -> np.ndarray:
    """Predict one image -> (H, W) uint8, the class ids: indices of `model.classes.names`.

    Args:
        model: from `load_model`, or the path of a checkpoint, which is loaded for this one image.
        image: a file, a Pillow image, or an array (H, W) or (H, W, C) of numbers.
        probabilities: whether to return the probabilities of all classes, (K, H, W) float32,
            instead of class ids.
        tta: modes of test-time augmentation, see `list_views`.
        threshold: as in `Options`, as are the next three.
        promise: a class.
        min_size: in pixels.
        keep_largest: whether to keep only the largest object of each class.
        network: as in `load_model`, if `model` is a path.

    Raises:
        FileNotFoundError: if a file does not exist.
        TypeError: if an argument is of another type.
        ValueError: if a file cannot be read, or the image or an option does not fit the model.
    """
    if not isinstance(model, Predictor | Ensemble):
        if not isinstance(model, str | Path | list | tuple):
            raise TypeError(
                f"model: got {_name_type(model)}, expected a model from load_model, or the path "
                "of a checkpoint"
            )
        model = load_model(model, network=network)
    options = Options(
        probabilities=probabilities,
        tta=tta,
        threshold=threshold,
        promise=promise,
        min_size=min_size,
        keep_largest=keep_largest,
    )
    if probabilities and (threshold is not None or min_size or keep_largest):
        raise OptionError(
            "probabilities",
            "got it with threshold, min_size or keep_largest, which change only class ids; leave "
            "out one of them",
        )
    options.check_model(model)
    in_channels = model.config.model.in_channels
    match image:
        case np.ndarray() | Image.Image():
            channels = to_channels(image, in_channels, "image")
        case str() | Path():
            read_options = build_read_options(model.config)
            channels = read_image(Path(image), in_channels, options=read_options)
        case _:
            raise TypeError(
                f"image: got {_name_type(image)}, expected a path, a Pillow image, or an array "
                "(H, W) or (H, W, C)"
            )
    ids, scores = predict_pixels(model, torch.from_numpy(to_float(channels)), options)
    if probabilities:
        assert scores is not None
        return scores.numpy()
    return ids


def predict_files(
    checkpoints: Sequence[str | Path],
    inputs: Sequence[str],
    out: Path = Path("predictions"),
    options: Options = _DEFAULTS,
    overwrite: bool = False,
    overrides: Overrides = (),
    network: nn.Module | None = None,
) -> list[Path]:
    """Predict image files and write a mask for each; processes divide the images.

    Images in a folder, at any depth, keep their place: `scans` with `scans/a/1.jpg` gives
    `out/a/1.png`. A stack gives a TIFF with as many pages, a raster a GeoTIFF (see `is_raster`).
    Other outputs have the same names in the subfolders `FOLDERS`. Existing masks are kept if these
    checkpoints and options predicted them, so that the same call continues an interrupted one.
    Polygons are traced from all masks, new and kept, which the table of uncertainty has, too.

    Args:
        checkpoints: a best.pt, last.pt or folder of a run; several for an `Ensemble`.
        inputs: files, folders and glob patterns; see `find_images` for what is left out.
        out: folder for the masks.
        options: how, and what else to write.
        overwrite: whether to replace existing files.
        overrides: as in `load_model`.
        network: as in `load_model`.

    Returns:
        The masks, including existing ones, without images that were not predicted.

    Raises:
        FileExistsError: before anything is written, if a mask was predicted in another way.
        FileNotFoundError, ValueError: before anything is written, if an argument is wrong.
        OSError: if a file cannot be written.
        UnpredictedError: at the end, in the first process, if images could not be predicted.
    """
    model, out = load_model(checkpoints, overrides=overrides, network=network), Path(out)
    options.check_model(model)
    found = find_images(inputs, model.config, out)
    extras = [name for name in FOLDERS if getattr(options, name)]
    jobs = plan_jobs(
        found.images,
        out,
        extras,
        options.windows,
        model.classes.mask_suffix,
        build_read_options(model.config),
    )
    _check_jobs(model, jobs, out, options)
    distributed.initialize()
    names = ("tta", "threshold", "promise", "min_size", "keep_largest")
    chosen = {name: getattr(options, name) for name in names}
    origin = describe_origin(list(map(find_checkpoint, checkpoints)), model, chosen)

    @distributed.on_first_rank
    def find_work() -> list[bool]:
        """Whether each job is to be done."""
        work = [overwrite or not _is_done(job, origin) for job in jobs]
        if overwrite:
            _check_others(jobs, out, options)
        return work

    todo = find_work()
    work = [job for job, is_open in zip(jobs, todo, strict=True) if is_open]
    for note in found.notes:
        print(note)
    if len(work) < len(jobs):
        kept = plural(len(jobs) - len(work), "existing mask")
        print(f"kept {kept} in {out}; overwrite=True predicts them again")
    unusual: dict[str, str] = {}
    own = _run_jobs(model, distributed.shard(work), options, origin, unusual)
    _note_unusual([item for some in distributed.all_gather(unusual) for item in some.items()])
    errors = {path: text for some in distributed.all_gather(own) for path, text in some.items()}
    failures, total = [*found.errors, *errors.values()], len(work) + len(found.errors)
    done = [job for job in jobs if job.files[0] not in errors]
    _write_others(model, done, out, options)
    if len(errors) < len(work):
        _finish(
            model, out, options, extras, f"predicted {len(work) - len(errors)} of {total} images"
        )
    if failures and distributed.rank() == 0:
        raise UnpredictedError(
            "\n".join(failures) + f"\n{len(failures)} of {total} images were not predicted"
        )
    return [job.outputs["mask"] for job in done]


def _write_others(model: Model, jobs: Sequence[Job], out: Path, options: Options) -> None:
    """Write what is made from the masks and pictures of jobs that are done, new and kept."""
    if options.polygons is not None:
        write_polygons(model, jobs, out, options.polygons)
        print(f"wrote polygons of {plural(len(jobs), 'image')} into {out / POLYGONS}")
    if options.uncertainty and jobs and distributed.rank() == 0:
        print(describe_table(write_table(jobs, out), out))


def _finish(
    model: Model, out: Path, options: Options, extras: Sequence[str], predicted: str
) -> None:
    """Draw the legend of overlays of classes, and print what was written."""
    print(f"{predicted} into {out}")
    if extras:
        print("also wrote " + ", ".join(str(out / FOLDERS[extra]) for extra in extras))
    classes = model.classes
    if "overlay" in extras and not options.instances and distributed.rank() == 0:
        labels = list(zip(classes.names, classes.colours, strict=True))
        save_picture(legend_path(out), draw_legend(labels))
    if (promise := options.find_promise(model)) is not None:
        print(f"classes: {describe_promise(model, promise)}")
    values = zip(classes.names, classes.values, strict=True)
    print("mask values: " + ", ".join(f"{name} {value}" for name, value in values))


def _note_unusual(images: Sequence[tuple[str, str]]) -> None:
    """Print once that images are far from the training images."""
    if images:
        (path, text), others = images[0], len(images) - 1
        also = f" ({plural(others, 'other image')} too)" if others else ""
        print(f"note: {path}: {text}{also}")


def _run_jobs(
    model: Model,
    jobs: Sequence[Job],
    options: Options,
    origin: dict[str, Any],
    unusual: dict[str, str],
) -> dict[str, str]:
    """Predict images and write their files; return the errors of those that failed, by file.

    Images that are far from the training images are described in `unusual`.
    """
    errors: dict[str, str] = {}
    advice = "read TIFFs in windows, which a lower tiling.size makes smaller; cut other images"
    written: list[Job] = []

    def read(job: Job) -> np.ndarray | None:
        return read_channels(model, job) if job.is_single else None

    def compute(job: Job, channels: np.ndarray | None) -> Any:
        """Predict an image; rasters and stacks, which are read in parts, are written, too."""
        if channels is not None:
            return predict_channels(model, channels, options, printable(Path(job.files[0]).name))
        text = json.dumps({**origin, "windows": job.is_raster})
        if not job.is_raster:
            return predict_stack(model, job, options, text)
        mask, probabilities = job.outputs["mask"], job.outputs.get("probabilities")
        path, tta, threshold = Path(job.files[0]), options.tta, options.find_threshold(model)
        return predict_raster(model, path, mask, probabilities, tta, threshold, text)

    def write(job: Job, result: Any) -> str | None:
        if job.is_single:
            text = json.dumps({**origin, "windows": False})
            result = write_image(model, job, options, text, result)
        written.append(job)
        return None if result is None else str(result)

    skips = MemoryError, ValueError  # others, such as of a full disk, end the run
    try:
        with (
            Progress(len(jobs), "predict", "image", leave=True) as progress,
            # Torch raises RuntimeError if memory runs out.
            closing(run_pipeline(jobs, read, compute, write, (RuntimeError, *skips))) as results,
        ):
            for job, note, error in results:
                path = job.files[0]
                try:
                    with memory_advice(advice):
                        if error is not None:
                            raise error
                except skips as reason:
                    is_memory = isinstance(reason, MemoryError)
                    errors[path] = f"{path}: {reason}" if is_memory else str(reason)
                if note is not None:
                    unusual[path] = note
                progress.update()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; {len(written)} of {len(jobs)} images have their masks, and the same "
            "command continues"
        ) from None
    return errors


def _check_jobs(model: Model, jobs: Sequence[Job], out: Path, options: Options) -> None:
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise ValueError(f"{out}: got the name of an image, expected a folder for the masks")
    check_writable(out)
    if options.polygons is not None:
        check_pages(jobs)
    for job in [job for job in jobs if job.is_raster]:
        check_raster(model, job.files[0], options.tta)
        options.check_windows(job.files[0])


def _is_done(job: Job, origin: dict[str, Any]) -> bool:
    """Whether an image has its mask, which is written last, and all other outputs.

    Raises:
        FileExistsError: if the mask has another origin.
    """
    if not job.outputs["mask"].exists():
        return False
    check_origin(job.outputs["mask"], {**origin, "windows": job.is_raster})
    return all(path.exists() for path in job.outputs.values())


def _check_others(jobs: Sequence[Job], out: Path, options: Options) -> None:
    """Raise FileExistsError if a new mask would leave an older file of the same image."""
    for job in jobs:
        polygons = polygon_files(job, out)
        polygons.pop(options.polygons or "", None)
        others = [*job.others, *polygons.values(), *([] if options.uncertainty else [out / TABLE])]
        if stale := [path for path in others if path.exists()]:
            raise FileExistsError(
                f"{stale[0]}: exists and belongs to {job.outputs['mask']}, which would be "
                "replaced; remove it, or write it again with the same option"
            )


def _name_type(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
