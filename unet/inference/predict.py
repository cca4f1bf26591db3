"""Predict images: one in memory, or files and folders, whose masks are written to a folder."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unet.build import build_read_options
from unet.data.image_io import read_image, to_channels, to_float
from unet.data.image_types import SUFFIXES
from unet.data.label_images import clean, number_objects
from unet.data.masks import draw_mask
from unet.data.tiff_stack import stack_writer
from unet.inference.jobs import Job, extra_path, find_images, plan_jobs
from unet.inference.origin import check_origin, describe_origin
from unet.inference.predict_geotiff import check_raster, predict_raster
from unet.inference.predictor import Model, load_model
from unet.inference.tta import TtaMode, choose_classes, mean_probabilities
from unet.runtime import distributed
from unet.runtime.device import memory_advice
from unet.runtime.errors import UnpredictedError
from unet.runtime.files import check_writable
from unet.runtime.optional import import_extra
from unet.runtime.text import plural, printable
from unet.visualize import image_to_rgb, mask_to_rgb, overlay, save_picture


class OptionError(ValueError):
    """An option is out of range, or does not fit the model or an image."""

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"{option}: {reason}")
        self.option, self.reason = option, reason


_EXTRAS = ("overlay", "probabilities", "instances")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are predicted, and what is written in addition to the masks.

    Args:
        tta: modes of test-time augmentation, see `list_views`.
        threshold: of two classes, choose the second where its probability is at least this.
        min_size: remove objects with fewer pixels, see `clean`.
        keep_largest: keep only the largest object of each class.
        overlay: write NAME_overlay.png, the mask over the image, with a legend.
        probabilities: write NAME_probabilities.tif, a float32 page for each class.
        instances: write NAME_instances.tif, 32-bit integers, see `number_objects`.
        windows: whether to read TIFFs window by window, see `is_raster`.

    Raises:
        OptionError: if a number is out of range.
    """

    tta: tuple[TtaMode, ...] = ()
    threshold: float | None = None
    min_size: int = 0
    keep_largest: bool = False
    overlay: bool = False
    probabilities: bool = False
    instances: bool = False
    windows: bool | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise OptionError("threshold", f"got {self.threshold:g}, expected 0 to 1")
        if self.min_size < 0:
            raise OptionError("min_size", f"got {self.min_size}, expected 0 pixels or more")


def predict(
    model: Model, image: str | Path | Image.Image | np.ndarray, options: Options = Options()
) -> np.ndarray:
    """Predict one image -> (H, W) uint8, the class ids: indices of `model.classes.names`.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image, or an array (H, W) or (H, W, C) of uint8, uint16 or float32.
        options: tta, threshold and clean-up are used.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the image cannot be read, or it or an option does not fit the model.
    """
    _check_options(model, options)
    in_channels = model.config.model.in_channels
    match image:
        case np.ndarray() | Image.Image():
            channels = to_channels(image, in_channels, "image")
        case _:
            read_options = build_read_options(model.config)
            channels = read_image(Path(image), in_channels, options=read_options)
    return _predict_pixels(model, torch.from_numpy(to_float(channels)), options)[0]


def predict_files(
    checkpoints: Sequence[Path],
    inputs: Sequence[str],
    out: Path,
    options: Options = Options(),
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Predict image files and write a mask for each; processes divide the images.

    Images in a folder, at any depth, keep their place: `scans` with `scans/a/1.jpg` gives
    `out/a/1.png`. A stack gives a TIFF with as many pages, a raster a GeoTIFF (see `is_raster`).
    Existing masks are kept if these checkpoints and options predicted them, so that the same call
    continues an interrupted one.

    Args:
        checkpoints: a best.pt or last.pt; several for an `Ensemble`.
        inputs: files, folders and glob patterns.
        out: folder for the masks.
        options: how, and what else to write.
        overwrite: whether to replace existing files.
        overrides: as in `load_model`.

    Returns:
        The masks, including existing ones.

    Raises:
        FileExistsError: before anything is written, if a mask was predicted in another way.
        FileNotFoundError, ValueError: before anything is written, if an argument is wrong.
        OSError: if a file cannot be written.
        UnpredictedError: at the end, in the first process, if images could not be predicted.
    """
    model = load_model(checkpoints, overrides=overrides)
    _check_options(model, options)
    images = find_images(inputs, model.config.data.channels, out)
    extras = [name for name in _EXTRAS if getattr(options, name)]
    jobs = plan_jobs(images, out, extras, options.windows)
    _check_jobs(model, jobs, out, options)
    distributed.initialize()
    names = ("tta", "threshold", "min_size", "keep_largest")
    origin = describe_origin(checkpoints, model, {name: getattr(options, name) for name in names})

    @distributed.on_first_rank
    def find_done() -> list[bool]:
        return [not overwrite and _is_done(job, origin) for job in jobs]

    done = find_done()
    if any(done):
        print(
            f"kept {plural(sum(done), 'existing mask')} in {out}; "
            "overwrite=True predicts them again"
        )
    work = [job for job, exists in zip(jobs, done, strict=True) if not exists]
    distributed.on_first_rank(lambda: _check_extras(jobs, work))()
    own = _run_jobs(model, distributed.shard(work), options, origin)
    errors = [error for some in distributed.all_gather(own) for error in some]
    if len(errors) < len(work):
        print(f"predicted {len(work) - len(errors)} of {len(work)} images into {out}")
        values = zip(model.classes.names, model.classes.values, strict=True)
        print("mask values: " + ", ".join(f"{name} {value}" for name, value in values))
    if errors and distributed.rank() == 0:
        raise UnpredictedError(
            "\n".join(errors) + f"\n{len(errors)} of {len(work)} images were not predicted"
        )
    return [job.outputs["mask"] for job in jobs]


def _run_jobs(
    model: Model, jobs: Sequence[Job], options: Options, origin: dict[str, Any]
) -> list[str]:
    """Predict images and write their files; return the errors of those that failed."""
    errors: list[str] = []
    bar = tqdm(jobs, "predict", unit="image", disable=distributed.disable_progress())
    for i, job in enumerate(bar):
        text = json.dumps({**origin, "windows": job.is_raster})
        try:
            with memory_advice(
                "read TIFFs in windows, which a lower tiling.size makes smaller; cut other images"
            ):
                if job.is_raster:
                    predict_raster(
                        model,
                        Path(job.files[0]),
                        job.outputs["mask"],
                        job.outputs.get("probabilities"),
                        options.tta,
                        options.threshold,
                        text,
                    )
                else:
                    _predict_pages(model, job, options, text)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {i - len(errors)} of {len(jobs)} images have their masks, and the "
                "same command continues"
            ) from None
        except MemoryError as error:
            errors.append(f"{job.files[0]}: {error}")
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # from the system: a file cannot be written
            errors.append(str(error))
    return errors


def _check_options(model: Model, options: Options) -> None:
    num_classes = len(model.classes.names)
    if options.threshold is not None and num_classes != 2:
        raise OptionError(
            "threshold",
            f"got a model of {num_classes} classes, expected one of two; leave it out to choose "
            "the most probable class",
        )
    for name in ("min_size", "keep_largest", "instances"):
        if getattr(options, name):
            import_extra("skimage.measure", name)


def _check_jobs(model: Model, jobs: Sequence[Job], out: Path, options: Options) -> None:
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise ValueError(f"{out}: got the name of an image, expected a folder for the masks")
    check_writable(out)
    for job in [job for job in jobs if job.is_raster]:
        check_raster(model, job.files[0], options.tta)
        for name in ("min_size", "keep_largest", "overlay", "instances"):
            if getattr(options, name):
                raise OptionError(
                    name,
                    f"got {job.files[0]}, a raster that is read in windows, expected images that "
                    "are read whole; leave it out, or turn windows off to read the raster whole, "
                    "without georeference and nodata, if memory suffices",
                )


def _is_done(job: Job, origin: dict[str, Any]) -> bool:
    """Whether an image has its mask, which is written last, with this origin.

    Raises:
        FileExistsError: if the mask has another origin, or another output is missing.
    """
    mask, *extras = job.outputs.values()
    if not mask.exists():
        return False
    check_origin(mask, {**origin, "windows": job.is_raster})
    if missing := [path for path in extras if not path.exists()]:
        raise FileExistsError(
            f"{mask}: exists, but {missing[0].name} does not; pass overwrite=True to write "
            "both again, or write to another folder"
        )
    return True


def _check_extras(jobs: Sequence[Job], work: Sequence[Job]) -> None:
    """Raise FileExistsError if a new mask would leave an older file of the same image."""
    outputs = {path for job in jobs for path in job.outputs.values()}
    for mask in [job.outputs["mask"] for job in work if job.outputs["mask"].exists()]:
        for path in (extra_path(mask, extra) for extra in _EXTRAS):
            if path not in outputs and path.exists():
                raise FileExistsError(
                    f"{path}: exists and belongs to {mask}, which would be replaced; remove it, "
                    "or write it again with the same option"
                )


def _predict_pages(model: Model, job: Job, options: Options, origin: str) -> None:
    """Predict an image, or a stack page by page."""
    pages: Sequence[int | None] = [None] if job.pages is None else range(job.pages)
    hide = True if job.pages is None else distributed.disable_progress()
    name, read_options = printable(Path(job.files[0]).name), build_read_options(model.config)
    with ExitStack() as files:
        writers: dict[str, Callable[[Image.Image], None]] = {}
        for page in tqdm(pages, name, unit="page", leave=False, disable=hide):
            image = torch.from_numpy(
                to_float(read_image(job.files, model.config.model.in_channels, page, read_options))
            )
            ids, scores = _predict_pixels(model, image, options, name)
            mask = draw_mask(ids, model.classes, model.palette)
            for output, path in job.outputs.items():
                pictures = [mask] if output == "mask" else _draw(output, model, image, ids, scores)
                if output not in writers:  # not before the first page is ready
                    num_bytes = len(pages) * sum(np.asarray(one).nbytes for one in pictures)
                    description = origin if output == "mask" else None
                    writer = _open_writer(path, num_bytes, description)
                    writers[output] = files.enter_context(writer)
                if output != "mask":
                    for picture in pictures:
                        writers[output](picture)
            writers["mask"](mask)  # written last, and closed last: if it exists, all files do


def _predict_pixels(
    model: Model, image: Tensor, options: Options, bar: str | None = None
) -> tuple[np.ndarray, Tensor | None]:
    """Return class ids (H, W), and probabilities (K, H, W) if they were needed."""
    scores = None
    if options.tta or options.threshold is not None or options.probabilities:
        scores = mean_probabilities(model, image, options.tta, bar).cpu()
        ids = choose_classes(scores, options.threshold)
    else:
        ids = model.predict(image, bar).numpy()
    if options.min_size or options.keep_largest:
        ids = clean(ids, options.min_size, options.keep_largest)
    return ids, scores


def _draw(
    output: str, model: Model, image: Tensor, ids: np.ndarray, scores: Tensor | None
) -> list[Image.Image]:
    """Return the pages of an output in addition to the mask."""
    match output:
        case "overlay":
            colours = mask_to_rgb(ids, model.classes.colours)
            picture = overlay(image_to_rgb(image, stretch=False), ids, colours)
            return [Image.fromarray(picture)]
        case "probabilities":
            assert scores is not None
            return [Image.fromarray(score) for score in scores.numpy()]
        case _:  # instances
            return [Image.fromarray(number_objects(ids))]


@contextmanager
def _open_writer(
    path: Path, num_bytes: int, description: str | None
) -> Iterator[Callable[[Image.Image], None]]:
    """Yield a function that writes the picture of a PNG, or adds a page to a TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        yield partial(save_picture, path, description=description)
        return
    with stack_writer(path, num_bytes, description) as write:
        yield write
