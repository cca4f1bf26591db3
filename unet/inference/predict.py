"""A model and images -> masks, and what goes with them."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unet.data.image_io import (
    SUFFIXES,
    UnreadableError,
    count_pages,
    read_image,
    to_channels,
    to_float,
    to_pixels,
)
from unet.data.label_images import clean, number_objects
from unet.data.masks import draw_mask
from unet.data.pairing import find_pairs, list_files, natural_key
from unet.data.tiff_stack import stack_writer
from unet.inference.geotiff import is_raster
from unet.inference.predict_geotiff import check_rasters, predict_raster
from unet.inference.predictor import Predictor, load_model
from unet.inference.tta import Kind, choose, probabilities
from unet.runtime import distributed
from unet.runtime.device import memory_advice
from unet.runtime.errors import UnpredictedError
from unet.runtime.files import check_writable
from unet.runtime.optional import import_extra
from unet.visualize import add_legend, image_to_rgb, overlay, save_picture

# Only these are taken for stacks; other formats that may move are read as before, or refused.
_STACKS = frozenset({".tif", ".tiff", ".gif"})

_LONGEST_NAME = 255
"""Bytes of a file's name that all usual systems have room for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are segmented, and what is written beside the masks.

    Raises:
        ValueError: if a number is out of its range.
    """

    tta: tuple[Kind, ...] = ()
    """Test-time augmentation, see `views`."""
    threshold: float | None = None
    """With two classes: the second is where it has at least this probability."""
    min_size: int = 0
    """Pixels of the smallest objects that are left, see `clean`."""
    keep_largest: bool = False
    """Whether of each class only the largest object is left."""
    overlay: bool = False
    """Whether to write <stem>_overlay.png, the mask over the image and a legend."""
    probabilities: bool = False
    """Whether to write <stem>_probabilities.tif, a float32 page for each class."""
    instances: bool = False
    """Whether to write <stem>_instances.tif, of 32-bit integers, see `number_objects`."""
    windows: bool | None = None
    """See `is_raster`."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold: got {self.threshold:g}, expected 0 to 1")
        if self.min_size < 0:
            raise ValueError(f"--min-size: got {self.min_size}, expected 0 pixels or more")

    @property
    def needs_whole_masks(self) -> list[str]:
        """What was asked for that cannot be had window by window, as on the command line."""
        wanted = {
            "--min-size": self.min_size > 0,
            "--keep-largest": self.keep_largest,
            "--overlay": self.overlay,
            "--instances": self.instances,
        }
        return [name for name, asked in wanted.items() if asked]


def predict(
    model: Predictor,
    image: str | Path | Image.Image | np.ndarray,
    options: Options = Options(),
) -> np.ndarray:
    """Segment one image.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image, or an array (H, W) or (H, W, C) of uint8, uint16
            or float32.
        options: test-time augmentation, threshold and clean-up; what is to be written besides
            means nothing here.

    Returns:
        (H, W) uint8: the class ids, places in `model.classes.names`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the image cannot be read or does not have the model's channels, or the
            options do not fit the model.
    """
    _check_options(model, options)
    in_channels = model.config.model.in_channels
    match image:
        case np.ndarray():
            channels = to_channels(image, in_channels, "image")
        case Image.Image():
            channels = to_channels(to_pixels(image, "image"), in_channels, "image")
        case _:
            channels = read_image(Path(image), in_channels)
    return _segment(model, torch.from_numpy(to_float(channels)), options)[0]


def predict_files(
    checkpoints: Sequence[Path],
    inputs: Sequence[str],
    out: Path,
    options: Options = Options(),
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Segment image files and write a mask for each.

    A file in a folder given, at whatever depth, keeps its place: `scans` with `scans/a/1.jpg`
    gives `out/a/1.png`. A stack gives a TIFF of as many pages, a raster a GeoTIFF (see
    `is_raster`). Files that are there are kept: the same call goes on with what was interrupted.
    The processes share the images.

    Args:
        checkpoints: a best.pt or last.pt; of several the probabilities are averaged.
        inputs: files, folders, and glob patterns.
        out: folder for the masks, made if need be.
        options: how, and what besides masks.
        overwrite: whether to replace files that are there.
        overrides: changes to the checkpoint's config, such as `tiling.overlap=64`.

    Returns:
        The masks, also those that were there.

    Raises:
        FileNotFoundError: if an input or the checkpoint is missing.
        UnpredictedError: in the first process, at the end, if images could not be read, or were
            too large for the memory.
        OSError: at once, if a file cannot be written.
        ValueError, OSError: before anything is written, if all this does not fit together.
    """
    model = load_model(checkpoints if len(checkpoints) > 1 else checkpoints[0], overrides=overrides)
    _check_options(model, options)
    jobs = _plan(_find_inputs(inputs, model.config.data.channels, out), out, options)
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        raise ValueError(f"{out}: got the name of an image, expected a folder for the masks")
    check_writable(out)
    for job in jobs:
        if job.is_raster:
            check_rasters(model, job.files[0], options.tta)
            if asked := options.needs_whole_masks:
                raise ValueError(
                    f"{job.files[0]}: got {asked[0]} and a raster that is read in windows, "
                    "expected only what windows can give; leave it out, or pass --no-windows to "
                    "read it whole, if memory lasts, without georeference and nodata"
                )
    distributed.initialize()
    there = distributed.run_on_first_rank(lambda: [not overwrite and _is_done(job) for job in jobs])
    if any(there):
        print(f"kept {sum(there)} mask(s) that exist in {out}; --overwrite predicts them anew")
    work = [job for job, is_there in zip(jobs, there, strict=True) if not is_there]
    faults: list[str] = []
    mine = distributed.shard(work)
    for i, job in enumerate(
        tqdm(mine, "predict", unit="image", disable=distributed.disable_progress())
    ):
        try:
            with memory_advice(
                "TIFFs can be predicted in windows (--windows), which a lower tiling.size makes "
                "smaller; other images can be cut"
            ):
                if job.is_raster:
                    predict_raster(
                        model,
                        Path(job.files[0]),
                        job.outputs["mask"],
                        job.outputs.get("probabilities"),
                        options.tta,
                        options.threshold,
                    )
                else:
                    _predict_pages(model, job, options)
        except KeyboardInterrupt:
            done = f"interrupted; {i - len(faults)} of {len(mine)} images have their masks"
            raise KeyboardInterrupt(f"{done}, and the same command goes on") from None
        except MemoryError as error:
            faults.append(f"{job.files[0]}: {error}")
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the system's, of a file that cannot be written
            faults.append(str(error))
    faults = [fault for part in distributed.all_gather(faults) for fault in part]
    if len(faults) < len(work):
        print(f"predicted {len(work) - len(faults)} of {len(work)} images into {out}")
        values = zip(model.classes.names, model.classes.values, strict=True)
        print("mask values: " + ", ".join(f"{name} {value}" for name, value in values))
    if faults and distributed.rank() == 0:
        raise UnpredictedError(
            "\n".join(faults) + f"\n{len(faults)} of {len(work)} images were not predicted"
        )
    return [job.outputs["mask"] for job in jobs]


def _is_done(job: "_Job") -> bool:
    """Whether an image has its mask, which is written last of all.

    Raises:
        FileExistsError: if it was predicted without something that is now asked for.
    """
    mask, *beside = job.outputs.values()
    lacking = [path for path in beside if not path.exists()]
    if mask.exists() and lacking:
        raise FileExistsError(
            f"{mask}: exists, but {lacking[0].name} beside it does not; pass --overwrite to write "
            "both anew, or another folder with -o"
        )
    return mask.exists()


@dataclass(frozen=True, kw_only=True)
class _Job:
    """An image and what to write for it."""

    files: tuple[str, ...]
    """One, or one for each channel."""
    outputs: dict[str, Path]
    """By kind: first the mask, then what goes with it."""
    pages: int | None = None
    """Of a stack; None for a single image."""
    is_raster: bool = False


def _plan(images: Sequence[tuple[str, tuple[str, ...]]], out: Path, options: Options) -> list[_Job]:
    """Say where everything goes.

    Raises:
        ValueError: if two would be one file, one would replace an image, or a name is too long.
    """
    jobs = []
    for name, files in images:
        raster = len(files) == 1 and is_raster(files[0], options.windows)
        pages = None if raster else _count_stack(files[0])
        is_stack = raster or pages is not None
        outputs = {"mask": out / f"{name}{'.tif' if is_stack else '.png'}"}
        if options.overlay:
            outputs["overlay"] = out / f"{name}_overlay{'.tif' if is_stack else '.png'}"
        if options.probabilities:
            outputs["probabilities"] = out / f"{name}_probabilities.tif"
        if options.instances:
            outputs["instances"] = out / f"{name}_instances.tif"
        jobs.append(_Job(files=files, outputs=outputs, pages=pages, is_raster=raster))
    taken: dict[Path, str] = {}
    for job in jobs:
        for path in job.outputs.values():
            if path in taken:
                raise ValueError(
                    f"{taken[path]} and {job.files[0]}: got two images that would both write "
                    f"{path}, expected a file for each; predict them into different folders"
                )
            taken[path] = job.files[0]
            if (length := len(os.fsencode(path.name))) > _LONGEST_NAME:
                raise ValueError(
                    f"{job.files[0]}: got a name that makes {path.name} {length} bytes long, "
                    f"expected at most {_LONGEST_NAME}; rename the image"
                )
    inputs = {Path(path).resolve() for job in jobs for path in job.files}
    for path in taken:
        if path.resolve() in inputs:
            raise ValueError(f"{path}: is an image to predict; give another folder with -o")
    return jobs


def _predict_pages(model: Predictor, job: _Job, options: Options) -> None:
    """Segment an image, or a stack page by page."""
    pages: Sequence[int | None] = [None] if job.pages is None else range(job.pages)
    hide = True if job.pages is None else distributed.disable_progress()
    name = Path(job.files[0]).name
    with ExitStack() as files:
        writers: dict[str, Callable[[Image.Image], None]] = {}
        for page in tqdm(pages, name, unit="page", leave=False, disable=hide):
            image = torch.from_numpy(
                to_float(read_image(job.files, model.config.model.in_channels, page))
            )
            ids, scores = _segment(model, image, options, name)
            mask = draw_mask(ids, model.classes, model.palette)
            for kind, path in job.outputs.items():
                pictures = [mask] if kind == "mask" else _draw(kind, model, image, ids, scores)
                if kind not in writers:  # before, there is nothing to make a file or folder for
                    num_bytes = len(pages) * sum(np.asarray(one).nbytes for one in pictures)
                    writers[kind] = files.enter_context(_writer(path, num_bytes))
                if kind != "mask":
                    for picture in pictures:
                        writers[kind](picture)
            writers["mask"](mask)  # last, and opened first: with it all others are there


def _segment(
    model: Predictor, image: Tensor, options: Options, bar: str | None = None
) -> tuple[np.ndarray, Tensor | None]:
    """Class ids (H, W), and probabilities (K, H, W) if they were needed."""
    scores = None
    if options.tta or options.threshold is not None or options.probabilities:
        scores = probabilities(model, image, options.tta, bar).cpu()
        ids = choose(scores, options.threshold)
    else:
        ids = model.predict(image, bar).numpy()
    if options.min_size or options.keep_largest:
        ids = clean(ids, options.min_size, options.keep_largest)
    return ids, scores


def _draw(
    kind: str,
    model: Predictor,
    image: Tensor,
    ids: np.ndarray,
    scores: Tensor | None,
) -> list[Image.Image]:
    """Make the pages that one kind of output besides the mask has for an image."""
    match kind:
        case "overlay":
            colours = model.classes.colours
            picture = overlay(image_to_rgb(image), ids, colours)
            return [add_legend(picture, model.classes.names, colours)]
        case "probabilities":
            assert scores is not None
            return [Image.fromarray(score) for score in scores.numpy()]
        case _:  # instances
            return [Image.fromarray(number_objects(ids))]


@contextmanager
def _writer(path: Path, num_bytes: int) -> Iterator[Callable[[Image.Image], None]]:
    """Give a function that writes the picture of a PNG, or adds a page to a TIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        yield partial(save_picture, path)
        return
    with stack_writer(path, num_bytes) as write:
        yield write


def _count_stack(path: str) -> int | None:
    """The pages of a stack; None for a single image."""
    if Path(path).suffix.lower() not in _STACKS:
        return None
    try:
        pages = count_pages(path)
    except (UnreadableError, FileNotFoundError):
        return None  # reading it will say what is wrong
    return pages if pages > 1 else None


def _check_options(model: Predictor, options: Options) -> None:
    """Refuse what does not fit the model, or needs a package that is not there."""
    names = model.classes.names
    if options.threshold is not None and len(names) != 2:
        raise ValueError(
            f"--threshold: got a model of {len(names)} classes, expected one of two; leave it out, "
            "and each pixel is of its likeliest class"
        )
    if options.min_size or options.keep_largest or options.instances:
        import_extra("skimage.measure", "--min-size, --keep-largest and --instances")


def _find_inputs(
    inputs: Sequence[str], channels: Sequence[str] | None, out: Path
) -> list[tuple[str, tuple[str, ...]]]:
    """Files, folders and patterns -> name (with folders, without ending) and files of each image.

    With channels, which are patterns, every input is a folder as `data.root`.
    """
    if channels is not None:
        images = []
        for entry in inputs:
            if not Path(entry).is_dir():
                raise FileNotFoundError(
                    f"{entry}: is no folder, expected one that holds {', '.join(channels)}, as the "
                    "model was trained on"
                )
            found, faults = find_pairs(Path(entry), channels[:-1], channels[-1])
            if faults:
                raise ValueError("\n".join(faults))
            images += [(pair.stem, pair.files) for pair in found]
        return images
    names: dict[Path, str] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            base, paths = path, _images_below(path, out)
        elif path.is_file():
            base, paths = path.parent, [path]
        elif glob.has_magic(entry):
            # Path.glob takes no absolute patterns before Python 3.13.
            matches = glob.glob(entry, recursive=True)  # noqa: PTH207
            base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            paths = _in_order(_outside(out, base, filter(Path.is_file, map(Path, matches))))
            if not paths:
                raise FileNotFoundError(f"{entry}: matches no file to predict; check the pattern")
        else:
            raise FileNotFoundError(f"{entry}: there is no such file or folder; check the path")
        for one in paths:
            names.setdefault(one, one.relative_to(base).with_suffix("").as_posix())
    return [(name, (str(path),)) for path, name in names.items()]


def _images_below(folder: Path, out: Path) -> list[Path]:
    """All images in a folder and the folders in it, but for those in `out`, if that lies in it."""
    files = (path for path in map(Path, list_files(folder)) if path.suffix.lower() in SUFFIXES)
    paths = _outside(out, folder, files)
    if not paths:
        raise ValueError(
            f"{folder}: got no image, expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return _in_order(paths)


def _outside(out: Path, folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Leave out the files in `out`, if that lies in the folder that they were looked for in."""
    results = out.resolve()
    if folder.resolve() not in results.parents:
        return list(paths)
    return [path for path in paths if not path.parent.resolve().is_relative_to(results)]


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (natural_key(str(path)), str(path)))
