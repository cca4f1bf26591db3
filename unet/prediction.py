"""A model and images -> masks."""

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unet import distributed
from unet.checkpoint import SegmentationModel, load_model
from unet.images import open_pixels, read_image, to_channels, to_float
from unet.pairs import find_pairs, list_images, natural_key
from unet.pictures import image_to_rgb, overlay, save_picture


def predict(model: SegmentationModel, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Segment one image.

    Args:
        model: from `load_model`.
        image: a file, a Pillow image, or an array (H, W) or (H, W, C) of uint8, uint16
            or float32.

    Returns:
        (H, W) uint8: the class ids, places in `model.classes.names`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the image cannot be read or does not have the model's channels.
    """
    in_channels = model.config.model.in_channels
    match image:
        case np.ndarray():
            channels = to_channels(image, in_channels, "image")
        case Image.Image():
            channels = to_channels(open_pixels(image, "image"), in_channels, "image")
        case _:
            channels = read_image(Path(image), in_channels)
    return model.predict(torch.from_numpy(to_float(channels))).numpy()


def predict_files(
    checkpoints: Sequence[Path],
    inputs: Sequence[str],
    out: Path,
    draw_overlay: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> list[Path]:
    """Segment image files and write a PNG mask for each, of the same stem.

    The processes share the files.

    Args:
        checkpoints: a best.pt or last.pt; of several the probabilities are averaged.
        inputs: files, folders, and glob patterns.
        out: folder for the masks, made if need be.
        draw_overlay: whether to write <stem>_overlay.png too, the mask over the image.
        overwrite: whether to replace masks that are there.
        overrides: changes to the checkpoint's config, such as `tiling.overlap=64`.

    Returns:
        The masks written.

    Raises:
        FileExistsError: if a file to write is there and not `overwrite`.
        FileNotFoundError: if an input or the checkpoint is missing.
        ValueError: if the checkpoint or an image is not as it must be. The images that can be
            read are segmented all the same.
    """
    model = load_model(checkpoints if len(checkpoints) > 1 else checkpoints[0], overrides=overrides)
    masks: dict[Path, tuple[str, ...]] = {}
    for stem, files in _find_inputs(inputs, model.config.data.channels):
        twin = masks.setdefault(out / f"{stem}.png", files)
        if twin != files:
            raise ValueError(
                f"{twin[0]} and {files[0]}: got two images of one stem, expected one mask name for "
                "each; predict them into different folders"
            )
    overlays = {mask: mask.with_name(f"{mask.stem}_overlay.png") for mask in masks}
    if draw_overlay and (clashes := [path for path in overlays.values() if path in masks]):
        raise ValueError(
            f"{clashes[0]}: would be both an overlay and a mask; predict these images into "
            "different folders"
        )
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is a file; give a folder for the masks")
    wanted = [*masks, *(overlays.values() if draw_overlay else ())]
    distributed.join()
    present = distributed.from_first(lambda: [path for path in wanted if path.exists()])
    if present and not overwrite:
        more = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise FileExistsError(
            f"{present[0]}: exists{more}; pass --overwrite to replace it, or -o FOLDER for another "
            "place"
        )
    resolved = {Path(path).resolve() for files in masks.values() for path in files}
    for path in wanted:
        if path.resolve() in resolved:
            raise ValueError(f"{path}: is an image to predict; give another folder with -o")
    colours = model.classes.colours
    faults: list[str] = []
    mine = distributed.share(list(masks.items()))
    for mask, files in tqdm(mine, "predict", unit="image", disable=distributed.hide_bar()):
        try:
            image = torch.from_numpy(to_float(read_image(files, model.config.model.in_channels)))
        except ValueError as error:
            faults.append(str(error))
            continue
        mask.parent.mkdir(parents=True, exist_ok=True)
        ids = model.predict(image).numpy()
        if draw_overlay:
            save_picture(overlays[mask], overlay(image_to_rgb(image), ids, colours))
        model.classes.write(mask, ids, model.palette)
    faults = [fault for part in distributed.gather(faults) for fault in part]
    if len(faults) < len(masks):
        print(f"wrote {len(masks) - len(faults)} of {len(masks)} masks to {out}")
        values = zip(model.classes.names, model.classes.values, strict=True)
        print("mask values: " + ", ".join(f"{name} {value}" for name, value in values))
    if faults and distributed.rank() == 0:
        raise ValueError(
            "\n".join(faults) + f"\n{len(faults)} of {len(masks)} images were not predicted"
        )
    return list(masks)


def _find_inputs(
    inputs: Sequence[str], channels: Sequence[str] | None
) -> list[tuple[str, tuple[str, ...]]]:
    """Files, folders and patterns -> stem and files of each image, each once.

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
    files: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            paths = list_images(path)
        elif path.is_file():
            paths = [path]
        elif glob.has_magic(entry):
            # Path.glob takes no absolute patterns before Python 3.13.
            names = glob.glob(entry, recursive=True)  # noqa: PTH207
            paths = sorted(
                filter(Path.is_file, map(Path, names)), key=lambda name: natural_key(str(name))
            )
            if not paths:
                raise FileNotFoundError(f"{entry}: matches no file; check the pattern")
        else:
            raise FileNotFoundError(f"{entry}: there is no such file or folder; check the path")
        files.update(dict.fromkeys(paths))
    return [(path.stem, (str(path),)) for path in files]
