"""Predict images and stacks that are read page by page, and write their masks."""

from collections.abc import Callable, Iterator, Sequence
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


def predict_pages(model: Model, job: Job, options: Options, origin: str) -> str | None:
    """Predict an image, or a stack page by page, and write the outputs of its job.

    Returns a description of an image that is far from the training images; None for others.

    Raises:
        OSError: if a file cannot be written.
        ValueError: if the image cannot be read, or does not fit the model.
    """
    pages: Sequence[int | None] = [None] if job.pages is None else range(job.pages)
    name = printable(Path(job.files[0]).name)
    note = None
    with ExitStack() as files:
        writers: dict[str, Callable[[Image.Image], None]] = {}
        for page in show_progress(pages, name, "page", hide=job.pages is None):
            image = _read(model, job, page)
            note = note or model.members[0].compare_range(image)
            ids, scores = predict_pixels(model, image, options, name)
            mask = draw_mask(ids, model.classes, model.palette)
            drawn = _draw(model, options, image, ids, scores)
            for output, path in job.outputs.items():
                pictures = [mask] if output == "mask" else drawn[output]
                if output not in writers:  # not before the first page is ready
                    num_bytes = len(pages) * sum(np.asarray(one).nbytes for one in pictures)
                    description = origin if output == "mask" else None
                    writer = _open_writer(path, num_bytes, description)
                    writers[output] = files.enter_context(writer)
                if output != "mask":
                    for picture in pictures:
                        writers[output](picture)
            writers["mask"](mask)  # written last, and closed last: if it exists, all files do
    return note


def predict_pixels(
    model: Model, image: Tensor, options: Options, bar: str | None = None
) -> tuple[np.ndarray, Tensor | None]:
    """Return class ids (H, W) of an image (C, H, W), and probabilities (K, H, W) if needed."""
    scores = None
    if options.tta or options.threshold is not None or options.probabilities:
        scores = mean_probabilities(model, image, options.tta, bar).cpu()
        ids = choose_classes(scores, options.threshold)
    else:
        ids = model.predict(image, bar).numpy()
    if options.min_size or options.keep_largest:
        ids = clean(ids, options.min_size, options.keep_largest)
    return ids, scores


def _read(model: Model, job: Job, page: int | None) -> Tensor:
    """Read an image (C, H, W). Errors are of the file, whatever class they have."""
    try:
        options, in_channels = build_read_options(model.config), model.config.model.in_channels
        return torch.from_numpy(to_float(read_image(job.files, in_channels, page, options)))
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
