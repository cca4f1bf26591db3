"""Predict images and stacks that are read page by page, and write their masks."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
from unet.inference.uncertainty import Uncertainty, draw_uncertainty, predict_uncertainty
from unet.runtime.progress import show_progress
from unet.runtime.text import printable
from unet.visualize import image_to_rgb, mask_to_rgb, objects_to_rgb, overlay, save_picture

Writer = Callable[[Image.Image, str | None], None]


class Scored(NamedTuple):
    """An image (C, H, W) and its class ids (H, W), and what other options need."""

    image: Tensor
    ids: np.ndarray
    probabilities: Tensor | None = None  # (K, H, W)
    uncertainty: Uncertainty | None = None


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
        writers: dict[str, Writer] = {}
        for page in show_progress(range(job.pages), name, "page"):
            scored = predict_channels(model, read_channels(model, job, page), options, name)
            note = note or model.members[0].compare_range(scored.image)
            _write_page(model, job, options, origin, scored, files, writers)
    return note


def write_image(
    model: Model, job: Job, options: Options, origin: str, scored: Scored
) -> str | None:
    """Write the outputs of the job of a single image; returns and raises as `predict_stack`."""
    with ExitStack() as files:
        _write_page(model, job, options, origin, scored, files, {})
    return model.members[0].compare_range(scored.image)


def _write_page(
    model: Model,
    job: Job,
    options: Options,
    origin: str,
    scored: Scored,
    files: ExitStack,
    writers: dict[str, Writer],
) -> None:
    scored = scored._replace(ids=_clean(scored.ids, options))
    mask = draw_mask(scored.ids, model.classes, model.palette)
    drawn = {"mask": [mask], **_draw(model, options, scored)}
    texts = {"mask": origin}
    if scored.uncertainty is not None:
        texts["uncertainty"] = json.dumps(scored.uncertainty.means)
    for output, path in job.outputs.items():
        if output not in writers:  # not before the first page is ready
            num_bytes = (job.pages or 1) * sum(np.asarray(one).nbytes for one in drawn[output])
            writers[output] = files.enter_context(_open_writer(path, num_bytes))
    # The mask is written last, and closed last: if it exists, all files do.
    for output in reversed(job.outputs):
        for picture in drawn[output]:
            writers[output](picture, texts.get(output))


def predict_channels(
    model: Model, channels: np.ndarray, options: Options, bar: str | None = None
) -> Scored:
    """Predict an image of `read_channels`; objects of the result are not yet removed."""
    return _predict(model, torch.from_numpy(to_float(channels)), options, bar)


def predict_pixels(
    model: Model, image: Tensor, options: Options
) -> tuple[np.ndarray, Tensor | None]:
    """Return class ids (H, W) of an image (C, H, W), and probabilities (K, H, W) if needed."""
    scored = _predict(model, image, options, None)
    return _clean(scored.ids, options), scored.probabilities


def _predict(model: Model, image: Tensor, options: Options, bar: str | None) -> Scored:
    threshold, uncertainty = options.find_threshold(model), None
    if options.uncertainty:
        scores, uncertainty = predict_uncertainty(model, image, options.tta, bar)
    elif options.tta or threshold[0] is not None or options.probabilities:
        scores = mean_probabilities(model, image, options.tta, bar).cpu()
    else:
        return Scored(image, model.predict(image, bar).numpy())
    return Scored(image, choose_classes(scores, *threshold), scores, uncertainty)


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


def _draw(model: Model, options: Options, scored: Scored) -> dict[str, list[Image.Image]]:
    """Return the pages of each output in addition to the mask."""
    image, ids, scores, uncertainty = scored
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
    if uncertainty is not None:
        picture = draw_uncertainty(image, uncertainty.entropy)
        drawn["uncertainty"] = [Image.fromarray(picture)]
    return drawn


@contextmanager
def _open_writer(path: Path, num_bytes: int) -> Iterator[Writer]:
    """Yield a function that writes the picture of a PNG, or adds a page to a TIFF, with a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        yield partial(save_picture, path)
        return
    with stack_writer(path, num_bytes) as write:
        yield write
