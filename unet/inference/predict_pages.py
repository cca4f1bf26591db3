"""Predict images and stacks that are read page by page, and write their masks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unet.build import build_read_options
from unet.data.image_io import read_image, to_float
from unet.data.image_types import UnreadableError
from unet.data.label_images import clean, number_objects
from unet.data.masks import draw_mask
from unet.data.tiff_stack import stack_writer
from unet.inference.jobs import Job
from unet.inference.options import Options
from unet.inference.predictor import Model
from unet.inference.tta import choose_classes, mean_probabilities
from unet.runtime.progress import show_progress
from unet.runtime.text import printable
from unet.visualize import image_to_rgb, mask_to_rgb, objects_to_rgb, overlay, save_picture

Writers = dict[str, Callable[[Image.Image], None]]
Scored = tuple[Tensor, np.ndarray, Tensor | None]
"""An image (C, H, W), its class ids (H, W), and probabilities (K, H, W) if needed."""


def predict_stack(model: Model, job: Job, options: Options, origin: str) -> str | None:
    """Predict a stack page by page, and write the outputs of its job.

    Returns a description of a page that is far from the training images; None for others.

    Raises:
        OSError: if a file cannot be written.
        ValueError: if the image cannot be read, or does not fit the model.
    """
    assert job.pages is not None
    name, note = printable(Path(job.files[0]).name), None
    with ExitStack() as files:
        writers: Writers = {}
        for page in show_progress(range(job.pages), name, "page"):
            scored = predict_channels(model, read_channels(model, job, page), options, name)
            note = note or model.members[0].compare_range(scored[0])
            _write_page(model, job, options, origin, scored, files, writers)
    return note


def write_image(
    model: Model, job: Job, options: Options, origin: str, scored: Scored
) -> str | None:
    """Write the outputs of the job of a single image; returns and raises as `predict_stack`."""
    with ExitStack() as files:
        _write_page(model, job, options, origin, scored, files, {})
    return model.members[0].compare_range(scored[0])


def _write_page(
    model: Model,
    job: Job,
    options: Options,
    origin: str,
    scored: Scored,
    files: ExitStack,
    writers: Writers,
) -> None:
    image, ids, scores = scored
    ids = _clean(ids, options)
    mask = draw_mask(ids, model.classes, model.palette)
    drawn = _draw(model, options, image, ids, scores)
    for output, path in job.outputs.items():
        pictures = [mask] if output == "mask" else drawn[output]
        if output not in writers:  # not before the first page is ready
            num_bytes = (job.pages or 1) * sum(np.asarray(one).nbytes for one in pictures)
            description = origin if output == "mask" else None
            writer = _open_writer(path, num_bytes, description)
            writers[output] = files.enter_context(writer)
        if output != "mask":
            for picture in pictures:
                writers[output](picture)
    writers["mask"](mask)  # written last, and closed last: if it exists, all files do


def predict_channels(
    model: Model, channels: np.ndarray, options: Options, bar: str | None = None
) -> Scored:
    """Predict an image of `read_channels`; objects of the result are not yet removed."""
    image = torch.from_numpy(to_float(channels))
    return image, *_predict(model, image, options, bar)


def predict_pixels(
    model: Model, image: Tensor, options: Options
) -> tuple[np.ndarray, Tensor | None]:
    """Return class ids (H, W) of an image (C, H, W), and probabilities (K, H, W) if needed."""
    ids, scores = _predict(model, image, options, None)
    return _clean(ids, options), scores


def _predict(
    model: Model, image: Tensor, options: Options, bar: str | None
) -> tuple[np.ndarray, Tensor | None]:
    threshold, class_id = options.find_threshold(model)
    if options.tta or threshold is not None or options.probabilities:
        scores = mean_probabilities(model, image, options.tta, bar).cpu()
        return choose_classes(scores, threshold, class_id), scores
    return model.predict(image, bar).numpy(), None


def _clean(ids: np.ndarray, options: Options) -> np.ndarray:
    if options.min_size or options.keep_largest:
        return clean(ids, options.min_size, options.keep_largest)
    return ids


def read_channels(model: Model, job: Job, page: int | None = None) -> np.ndarray:
    """Read an image as `read_image`. Errors are of the file, whatever class they have."""
    try:
        options, in_channels = build_read_options(model.config), model.config.model.in_channels
        return read_image(job.files, in_channels, page, options)
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno is None:  # of our own, which names the file
            raise UnreadableError(reason) from error
        raise UnreadableError(f"{job.files[0]}: cannot be read ({reason})") from error


def _draw(
    model: Model, options: Options, image: Tensor, ids: np.ndarray, scores: Tensor | None
) -> dict[str, list[Image.Image]]:
    """Return the pages of each output in addition to the mask."""
    drawn = {}
    regions, colours = ids, None
    if options.instances:
        regions = number_objects(ids)
        drawn["instances"] = [Image.fromarray(regions)]
        colours = objects_to_rgb(regions) if options.overlay else None
    if options.overlay:
        colours = mask_to_rgb(ids, model.classes.colours) if colours is None else colours
        picture = overlay(image_to_rgb(image, stretch=False), regions, colours)
        drawn["overlay"] = [Image.fromarray(picture)]
    if options.probabilities:
        assert scores is not None
        drawn["probabilities"] = [Image.fromarray(score) for score in scores.numpy()]
    return drawn


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
