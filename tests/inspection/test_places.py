from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.inspection.find_files import find_files

RNG = np.random.default_rng(0)
SIZE = (48, 56)


def write(root: Path, image: str, mask: str, value: int = 255, scale: int = 1) -> None:
    """A noisy image and a mask of a rectangle, which is at the same place for the same name."""
    rng = np.random.default_rng(sum(map(ord, Path(image).stem)) if scale > 1 else RNG.integers(99))
    ids = np.zeros(SIZE, np.uint8)
    top, left = rng.integers(2, 20, 2)
    ids[top : top + 20, left : left + 25] = value
    ids = ids.repeat(scale, 0).repeat(scale, 1)
    noisy = ((ids > 0) * 90 + RNG.normal(60, 9, ids.shape)).clip(0, 255).astype(np.uint8)
    for name, array in ((image, noisy), (mask, ids)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / name)


@pytest.mark.parametrize(
    ("image", "mask"),
    [("{}/images/{}.png", "{}/masks/{}.png"), ("{}/{}.png", "{} masks/{}.png")],
)
def test_two_places_of_the_same_kind_are_proposed_together(
    tmp_path: Path, image: str, mask: str
) -> None:
    for place, count in (("north", 7), ("south", 5)):
        for i in range(count):
            write(tmp_path, image.format(place, i), mask.format(place, i))
    found = find_files(tmp_path)
    assert len(found.pairs) == 12
    assert sum("images: [" in line for line in found.lines) == 1
    assert not any("Other masks" in line or "Warning" in line for line in found.lines)
    assert all(
        Path(pair.images[0]).name == Path(pair.masks[0]).name
        and pair.masks[0].replace(" masks", "").replace("masks", "images") == pair.images[0]
        for pair in found.pairs
    )


def test_other_images_with_other_values_are_a_comment(tmp_path: Path) -> None:
    for i in range(7):
        write(tmp_path, f"cells/images/{i}.png", f"cells/masks/{i}.png")
    for i in range(5):
        write(tmp_path, f"roads/images/r{i}.png", f"roads/masks/r{i}.png", value=7)
    found = find_files(tmp_path)
    assert len(found.pairs) == 7
    line = next(line for line in found.lines if "5 other images with masks are unlike" in line)
    assert line.endswith("images: roads/images, masks: roads/masks")


def test_copies_in_another_size_are_a_comment(tmp_path: Path) -> None:
    for name in ("ab", "ba", "cad", "dax", "eel"):
        for scale in (2, 4):
            write(tmp_path, f"x{scale}/images/{name}.png", f"x{scale}/masks/{name}.png", 255, scale)
    # The folders differ in a number, as those of cases do.
    (tmp_path / "x2").rename(tmp_path / "small")
    (tmp_path / "x4").rename(tmp_path / "large")
    found = find_files(tmp_path)
    assert len(found.pairs) == 5
    assert any(
        "5 other images with masks are unlike these, or copies" in line for line in found.lines
    )
