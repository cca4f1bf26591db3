from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.data.classes import ClassMap
from unet.data.pairing import Pair
from unet.data.reader import PairReader
from unet.inspection.evidence import Evidence, find_evidence
from unet.inspection.propose_training import propose_training

RNG = np.random.default_rng(0)


def evidence_of(tmp_path: Path, pixels: list[np.ndarray], masks: list[np.ndarray]) -> Evidence:
    pairs = []
    for i, arrays in enumerate(zip(pixels, masks, strict=True)):
        paths = [tmp_path / f"{name}{i}.png" for name in ("image", "mask")]
        for path, array in zip(paths, arrays, strict=True):
            Image.fromarray(array.astype(np.uint8)).save(path)
        pairs.append(Pair(stem=str(i), images=(str(paths[0]),), masks=(str(paths[1]),)))
    return find_evidence(
        pairs, PairReader(classes=ClassMap({"ground": 0, "cell": 1}, ()), in_channels=1)
    )


def noise(count: int) -> list[np.ndarray]:
    return [RNG.normal(120, 20, (40, 40)) for _ in range(count)]


def spots(count: int, rows: int = 40, columns: int = 40) -> list[np.ndarray]:
    """A few pixels of a cell in the first rows and columns."""
    masks = [np.zeros((40, 40)) for _ in range(count)]
    for mask in masks:
        mask[RNG.integers(rows, size=30), RNG.integers(columns, size=30)] = 1
    return masks


@pytest.mark.parametrize("count", [5, 12, 60])
def test_halves_that_differ_by_chance_are_no_evidence(tmp_path: Path, count: int) -> None:
    evidence = evidence_of(tmp_path, noise(count), spots(count))
    assert (evidence.count, evidence.upright, evidence.sided) == (count, None, None)
    assert evidence.spread < 0.2


def test_a_sky_is_evidence_of_up_and_down(tmp_path: Path) -> None:
    images = noise(12)
    for image in images:
        image[:20] += 30
    upright = evidence_of(tmp_path, images, spots(12)).upright
    assert upright is not None
    assert upright.startswith("upper halves are brighter than lower halves (by ")


def test_a_class_on_one_side_is_evidence_of_left_and_right(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, noise(12), spots(12, columns=15))
    assert evidence.upright is None
    assert evidence.sided is not None
    assert evidence.sided.startswith("left halves have more of cell than right halves")


def cells_moved(moves: list[tuple[int, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images, whose cells are moved by (y, x) against those of their masks, and the masks."""
    masks = [np.kron(RNG.random((10, 10)) < 0.4, np.ones((8, 8))) for _ in moves]
    images = [
        RNG.normal(120, 20, mask.shape) + 100 * np.roll(mask, move, (0, 1))
        for mask, move in zip(masks, moves, strict=True)
    ]
    return images, masks


@pytest.mark.parametrize(("move", "offset_y", "offset_x"), [
    ((1, 0), "1.0 pixels above the edges in the images", None),
    ((-1, 0), "1.0 pixels below the edges in the images", None),
    ((0, 1), None, "1.0 pixels left of the edges in the images"),
    ((0, -1), None, "1.0 pixels right of the edges in the images"),
    ((0, 0), None, None),
])  # fmt: skip
def test_masks_beside_the_edges_of_images_are_an_offset(
    tmp_path: Path, move: tuple[int, int], offset_y: str | None, offset_x: str | None
) -> None:
    evidence = evidence_of(tmp_path, *cells_moved([move] * 8))
    assert (evidence.offset_y, evidence.offset_x) == (offset_y, offset_x)


def test_offsets_that_differ_from_image_to_image_are_none(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, *cells_moved([(1, 1), (-1, -1)] * 4))
    assert (evidence.offset_y, evidence.offset_x) == (None, None)


def test_masks_without_edges_have_no_offset(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, noise(8), [np.ones((40, 40))] * 8)
    assert (evidence.offset_y, evidence.offset_x) == (None, None)


def test_four_images_are_no_evidence(tmp_path: Path) -> None:
    images = noise(4)
    for image in images:
        image[:20] += 100
    assert evidence_of(tmp_path, images, spots(4)).upright is None


def test_dark_and_bright_images_are_a_mixture(tmp_path: Path) -> None:
    images = [image + 100 * (i % 2) for i, image in enumerate(noise(10))]
    assert evidence_of(tmp_path, images, spots(10)).spread > 1


def lines_for(evidence: Evidence, channels: int = 3, minutes: float = 20) -> str:
    sizes = np.array([[256, 300]] * 40)
    return "\n".join(propose_training(sizes, 40, channels, [], evidence, minutes))


def test_the_evidence_decides_flips_and_norm() -> None:
    free = lines_for(Evidence(40, 0.3, None, None))
    assert "flip_horizontal: true, flip_vertical: true, quarter_turns: true" in free
    assert "norm" not in free
    assert "norm: group" in lines_for(Evidence(40, 2.0, None, None))
    upright = lines_for(Evidence(40, 0.3, "upper halves are brighter", None))
    assert "flip_vertical" not in upright
    assert "# Up and down differ: upper halves are brighter." in upright
    sided = lines_for(Evidence(40, 0.3, None, "left halves are brighter"))
    assert "flip_horizontal: true" not in sided
    above = lines_for(Evidence(40, 0.3, None, None, offset_y="0.6 pixels above the edges"))
    assert "flip_horizontal: true, elastic_std: 3" in above
    assert "flip_vertical" not in above
    assert "quarter_turns" not in above
    assert "# The masks lie 0.6 pixels above the edges; a network" in above
    beside = lines_for(Evidence(40, 0.3, None, None, offset_x="0.6 pixels left of the edges"))
    assert "flip_horizontal: true" not in beside
    assert "flip_vertical: true" in beside
    assert "quarter_turns" not in beside
    few = lines_for(Evidence(4, 0.3, None, None))
    assert "flip_vertical: true" not in few
    assert "flip_vertical: true" in lines_for(Evidence(4, 0.3, None, None), channels=1)


def test_crops_of_scenes_are_large_if_there_is_time() -> None:
    scene = Evidence(40, 0.3, "upper halves are brighter", None)
    for minutes, crop in ((5, 128), (20, 256)):
        assert f"crop: [{crop}, {crop}]" in lines_for(scene, minutes=minutes)
    assert "crop: [128, 128]" in lines_for(Evidence(40, 0.3, None, None), minutes=20)


def test_the_length_is_as_asked() -> None:
    assert "train: {minutes: 5," in lines_for(Evidence(40, 0.3, None, None), minutes=5)
