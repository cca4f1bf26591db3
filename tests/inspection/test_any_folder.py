"""`unet init` on drawn folders: layouts x encodings of the masks x what else is in the folder."""

import itertools
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter

from unet.build import build_training_reader
from unet.config.loader import config_from_dict
from unet.inspection.check import check_data
from unet.inspection.propose import propose

pytestmark = pytest.mark.usefixtures("workdir")

SIZE = (48, 56)
COUNT = 7

# Image and mask of the i-th pair, without the ending of the mask.
LAYOUTS = {
    "two folders": ("images/{}.png", "masks/{}"),
    "suffix": ("all/{}.png", "all/{}_mask"),
    "prefix": ("scans/img_{}.png", "truth/lab_{}"),
    "nested": ("images/{}/a.png", "masks/{}/a"),
    "folder for each image": ("{}/image.png", "{}/label"),
    "mixed endings": ("images/{}{}", "masks/{}"),
    "two places": ("{site}/images/{i}.png", "{site}/masks/{i}"),
    "cases": ("case{case}/imaging/{i}.png", "case{case}/masks/{i}"),
    "cases in one folder": ("{case}/img_{i}.png", "{case}/seg_{i}"),
    "a mask for each class": ("images/{}.png", "masks/{}"),
}


class Encoding(NamedTuple):
    """How class ids (H, W) are saved."""

    ending: str
    encode: Callable[[np.ndarray], Image.Image]
    num_classes: int = 2
    options: dict[str, object] = {}  # noqa: RUF012 (never changed)


def grey(*values: int, dtype: type = np.uint8) -> Callable[[np.ndarray], Image.Image]:
    return lambda ids: Image.fromarray(np.array(values).astype(dtype)[ids])


def soft(radius: float) -> Callable[[np.ndarray], Image.Image]:
    return lambda ids: grey(0, 255)(ids).filter(ImageFilter.GaussianBlur(radius))


def palette(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
    return image


def colours(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array([(0, 0, 0), (200, 30, 30), (30, 60, 220)], np.uint8)[ids])


def with_alpha(ids: np.ndarray) -> Image.Image:
    image = colours(ids)
    image.putalpha(255)
    return image


def transparent(ids: np.ndarray) -> Image.Image:
    """Drawn on a transparent ground: alpha is 0 where there is no object."""
    image = colours(ids)
    image.putalpha(Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8)))
    return image


def numbered(dtype: type) -> Callable[[np.ndarray], Image.Image]:
    def draw(ids: np.ndarray) -> Image.Image:
        objects = np.zeros(ids.shape, dtype)
        for i, (top, left) in enumerate(itertools.product(range(2, 40, 9), range(2, 48, 9)), 1):
            box = (slice(top, top + 6), slice(left, left + 6))
            objects[box] = np.where(ids[box] > 0, i, 0)
        return Image.fromarray(objects)

    return draw


ENCODINGS = {
    "0 and 255": Encoding(".png", grey(0, 255)),
    "0 and 1": Encoding(".png", grey(0, 1)),
    "index": Encoding(".png", grey(0, 1, 2), 3),
    "24 and 25": Encoding(".png", grey(0, 24, 25), 3),
    "200 and 201": Encoding(".bmp", grey(0, 200, 201), 3),
    "255 is background": Encoding(".png", grey(255, 0)),
    "JPEG 75": Encoding(".jpg", grey(0, 255), 2, {"quality": 75}),
    "JPEG 90": Encoding(".jpg", grey(0, 255), 2, {"quality": 90}),
    "JPEG 98": Encoding(".jpg", grey(0, 255), 2, {"quality": 98}),
    "JPEG of three greys": Encoding(".jpg", grey(0, 128, 255), 3, {"quality": 92}),
    "soft edges": Encoding(".png", soft(0.7)),
    "softer edges": Encoding(".png", soft(1.5)),
    "palette": Encoding(".png", palette, 3),
    "GIF": Encoding(".gif", palette, 3),
    "RGB": Encoding(".png", colours, 3),
    "RGBA": Encoding(".png", with_alpha, 3),
    "transparent": Encoding(".png", transparent, 3),
    "16 bits": Encoding(".png", grey(0, 65535, dtype=np.uint16)),
    "16-bit index": Encoding(".tif", grey(0, 3, 4, dtype=np.uint16), 3),
    "1 bit": Encoding(".png", lambda ids: Image.fromarray(ids > 0)),
    "labels of 8 bits": Encoding(".png", numbered(np.uint8)),
    "labels of 16 bits": Encoding(".tif", numbered(np.uint16)),
    "labels of 32 bits": Encoding(".tif", numbered(np.int32)),
    "floats": Encoding(".tif", grey(0, 1, 2, dtype=np.float32), 3),
}
NOISE = ("nothing", "outlier", "missing", "doubled", "another size", "test folder", "readme")


def draw_pair(seed: int, num_classes: int, coloured: bool) -> tuple[Image.Image, np.ndarray]:
    """A noisy image of discs, and its class ids."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ids = np.zeros(SIZE, int)
    for i in range(8):
        centre, radius = rng.integers(0, SIZE), rng.integers(4, 8)
        ids[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = 1 + i % (num_classes - 1)
    shape = (*SIZE, 3) if coloured else SIZE
    level = 60.0 + 70 * ids.reshape(*SIZE, *[1] * coloured)
    pixels = (level + rng.normal(0, 12, shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels), ids


class Drawn(NamedTuple):
    """What is true of a drawn folder."""

    pairs: dict[str, str]  # image -> mask
    ids: dict[str, np.ndarray]  # by mask
    channels: int
    blocked: bool  # a file stands in the way of a check without errors


def draw_folder(root: Path, seed: int, layout: str, encoding: str, noise: str) -> Drawn:
    image_name, mask_name = LAYOUTS[layout]
    way = ENCODINGS["index" if layout == "a mask for each class" else encoding]
    coloured = bool(seed % 2)
    pairs, true_ids = {}, {}

    def save(image: str, mask: str, number: int, folder: str = "") -> tuple[Path, Path]:
        pixels, ids = draw_pair(1000 * seed + number, way.num_classes, coloured)
        paths = root / folder / image, root / folder / mask
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(paths[0])
        saved = way.encode(ids)
        if layout == "a mask for each class":  # in place of any other encoding
            for value, suffix in ((1, "disc"), (2, "ring")):
                binary = Image.fromarray(np.where(ids == value, 255, 0).astype(np.uint8))
                binary.save(paths[1].with_name(f"{paths[1].stem}_{suffix}.png"))
            paths = paths[0], paths[1].with_name(f"{paths[1].stem}_disc.png")
        else:
            saved.save(paths[1], **way.options)
        if "label" in encoding and layout != "a mask for each class":
            ids = (np.asarray(saved) > 0).astype(int)
        if not folder:
            pairs[str(paths[0])], true_ids[str(paths[1])] = str(paths[1]), ids
        return paths

    for i in range(COUNT):
        name = f"plate{i}" if seed % 3 else "abcdefghi"[i] * 3
        ending = (".png", ".bmp", ".tif")[i % 3]
        in_site = "site" in mask_name
        number = i // 2 if in_site else i % 2
        places = {"site": ("north", "south")[i % 2], "case": i // 2, "i": number}
        image = image_name.format(name, ending, **places)
        paths = save(image, mask_name.format(name, **places) + way.ending, i)
    image, mask = paths
    match noise:
        case "outlier":
            picture = Image.effect_noise((90, 70), 60).convert("CMYK").convert("RGB")
            for path in (image, mask):
                other = path.with_name(path.name.replace(name, "overview"))
                if "{i}" in mask_name:
                    other = path.with_name(path.name.replace(str(number), "77"))
                elif other == path:
                    other = path.parent.with_name("overview") / path.name
                    other.parent.mkdir(exist_ok=True)
                if path is mask:
                    picture = picture.quantize(60).convert("RGB").resize((90, 70))
                picture.save(other.with_suffix(".png" if path is mask else path.suffix))
        case "missing":
            mask.unlink()
            del pairs[str(image)]
        case "doubled":
            if image.suffix != ".bmp":
                with Image.open(image) as file:
                    file.save(image.with_suffix(".bmp"))
        case "another size":
            with Image.open(mask) as file:
                smaller = file.resize((40, 30), Image.Resampling.NEAREST)
            smaller.save(mask, **way.options)
            del pairs[str(image)]
        case "test folder":
            for i in range(4):
                save(f"images/{i}.png", f"masks/{i}{way.ending}", 100 + i, "test")
        case "readme":
            (root / "docs").mkdir()
            for name in ("logo", "screenshot"):
                Image.effect_noise((90, 70), 60).save(root / "docs" / f"{name}.png")
    blocked = noise in {"missing", "another size"} or (
        noise == "doubled" and image.suffix != ".bmp"
    )
    if layout == "a mask for each class":
        blocked |= noise == "outlier"  # it has one mask
    return Drawn(pairs, true_ids, 3 if coloured else 1, blocked)


def same_classes(found: np.ndarray, true: np.ndarray) -> bool:
    """Whether each true class is one found class, except for the pixels of soft edges."""
    counts = np.zeros((256, 4), int)
    np.add.at(counts, (found.ravel(), true.ravel()), 1)
    best = counts.argmax(0)
    present = np.unique(true)
    agree = sum(counts[best[i], i] for i in present)
    return len({*best[present]}) == len(present) and agree > 0.9 * true.size


UNSURE = {
    "an error": "# Error:",
    "channels": "# Mode and dtype of the images",
    "pairs": r"# (Error|Left out|Warning|Other masks|\d+ other images)",
    "classes": "# .*(If they|If it|no class|is ignored|one class|nearest class)",
}
"""What a comment says where a proposal is wrong."""


def judge(root: Path, drawn: Drawn) -> str:
    """What is wrong with the proposal for a folder, and if no comment says so; empty if nothing."""
    try:
        text = propose(root, "mine")
    except ValueError as error:
        return f"no proposal: {error}"
    reason = judge_text(text, drawn)
    is_unsure = re.search(UNSURE.get(reason.partition(":")[0], "$^"), text)
    return reason if is_unsure or not reason else f"{reason}, and no comment says so"


def judge_text(text: str, drawn: Drawn) -> str:
    config = config_from_dict({"name": "mine", **yaml.safe_load(text)})
    data = check_data(config)
    errors = [line for line in text.splitlines() if "# Error:" in line]
    if data.errors and not errors:
        return f"an error that is not named: {data.errors[0]}"
    if data.errors and not drawn.blocked:
        return f"an error: {data.errors[0]}"
    if config.model.in_channels != drawn.channels:
        return f"channels: {config.model.in_channels}"
    kept = [*data.train_pairs, *data.val_pairs]
    # Of two images with the same name, either may be kept.
    stems = [
        {Path(image).with_suffix(""): mask for image, mask in pairs}
        for pairs in ([(p.images[0], p.masks[0]) for p in kept], drawn.pairs.items())
    ]
    if stems[0] != stems[1]:
        return f"pairs: {len(kept)} of {len(drawn.pairs)}"
    reader = build_training_reader(config)
    wrong = [p for p in kept if not same_classes(reader.read(p)[1], drawn.ids[p.masks[0]])]
    return f"classes: {config.data.classes}" if wrong else ""


# More than 5 seconds: 60 of 480 folders; EVERY_FOLDER=1 tests all, in a few minutes.
def test_proposals_for_any_folder_are_right_or_name_what_stands_in_the_way() -> None:
    both = [*itertools.product(ENCODINGS, LAYOUTS)] * 2
    combinations = [*enumerate((*pair, NOISE[i % len(NOISE)]) for i, pair in enumerate(both))]
    if not os.environ.get("EVERY_FOLDER"):
        combinations = random.Random(0).sample(combinations, 60)
    wrong = []
    for i, (encoding, layout, noise) in combinations:
        root = Path(f"folder{i}")
        if reason := judge(root, draw_folder(root, i, layout, encoding, noise)):
            wrong.append(f"{encoding}, {layout}, {noise}: {reason}")
    assert len(wrong) <= 0.03 * len(combinations), "\n".join(wrong)
    assert not [one for one in wrong if one.endswith("and no comment says so")], "\n".join(wrong)
