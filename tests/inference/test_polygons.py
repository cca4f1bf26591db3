"""The way of masks through polygons back to the same masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from helpers import PLACE, draw, make_model, values_of, write_raster
from PIL import Image

from unet import load_model
from unet.cli.main import main
from unet.data.annotations.importing import import_annotations
from unet.data.annotations.outlines import trace
from unet.data.annotations.regions import Polygon
from unet.data.classes import ClassMap
from unet.data.masks import draw_mask
from unet.inference.jobs import Job
from unet.inference.options import OptionError
from unet.inference.polygons import write_polygons
from unet.inference.predict import Options, predict_files

pytestmark = pytest.mark.usefixtures("workdir")

WRITTEN = ("geojson", "coco", "labelme", "imagej")


def random_ids(rng: np.random.Generator, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Class ids with holes and pixels that touch at corners: noise, coarse or fine, and blocks."""
    step = int(rng.integers(1, 4))
    coarse = rng.integers(0, num_classes, [-(-side // step) for side in size])
    ids = np.kron(coarse, np.ones((step, step), int))[: size[0], : size[1]]
    keep = rng.random(size) < rng.random()
    return np.where(keep, ids, rng.integers(0, num_classes, size)).astype(np.uint8)


def test_outlines_hold_exactly_the_pixels_of_random_masks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
        ids, drawn = random_ids(rng, size, 4), np.zeros(size, np.uint8)
        for one in trace(ids, 4):
            filled = Polygon((tuple(one.rings),)).fill(size)
            part = filled.of(drawn)
            assert not part[filled.mask].any()
            part[filled.mask] = one.class_id
        assert np.array_equal(drawn, ids)


def make_jobs(
    folder: Path, masks: list[np.ndarray], place: dict[str, Any] | None = None
) -> list[Job]:
    """Images in images/, and masks in out/ as if they had been predicted."""
    classes = ClassMap({"ground": 0, "box": 200, "disc": 100})
    jobs = []
    for i, ids in enumerate(masks):
        image, mask = folder / f"images/{i}.tif", folder / f"out/{i}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_raster(str(image), draw(*ids.shape), **(place or {"crs": None, "transform": None}))
        draw_mask(ids, classes).save(mask)
        outputs = {"mask": mask}
        jobs.append(
            Job(files=(str(image),), outputs=outputs, others=(), pages=None, is_raster=False)
        )
    return jobs


@pytest.mark.parametrize("kind", WRITTEN)
def test_random_masks_come_back_pixel_for_pixel(kind: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    masks = [random_ids(rng, (23, 31), 3) for _ in range(8)]
    masks.append(np.zeros((5, 6), np.uint8))
    model = make_model(tmp_path, "data.classes={ground: 0, box: 200, disc: 100}")
    write_polygons(model, make_jobs(tmp_path, masks), tmp_path / "out", kind)
    import_annotations(tmp_path / "out/polygons", tmp_path / "images", tmp_path / "back")
    for i, ids in enumerate(masks):
        assert np.array_equal(values_of(tmp_path / f"back/masks/{i}.png"), ids)


@pytest.mark.parametrize(
    "place",
    [
        PLACE,
        {"crs": "EPSG:4326", "transform": Affine(1e-5, 0, 9.1, 0, -1e-5, 48.7)},
        {"crs": "EPSG:32632", "transform": Affine(0.9, -0.4, 5e5, 0.4, 0.9, 5e6)},
        # without a code, written in longitudes and latitudes
        {
            "crs": "+proj=tmerc +lat_0=48 +lon_0=9 +ellps=bessel",
            "transform": Affine(0.5, 0, 9, 0, -0.5, 8),
        },
    ],
)
def test_map_coordinates_come_back_pixel_for_pixel(place: dict[str, Any], tmp_path: Path) -> None:
    masks = [random_ids(np.random.default_rng(2), (40, 50), 3)]
    model = make_model(tmp_path, "data.classes={ground: 0, box: 200, disc: 100}")
    write_polygons(model, make_jobs(tmp_path, masks, place), tmp_path / "out", "geojson")
    data = json.loads((tmp_path / "out/polygons/0.geojson").read_text())
    assert data["crs"]["properties"]["name"].startswith("urn:ogc:def:crs:")
    x, y = data["features"][0]["geometry"]["coordinates"][0][0]
    assert (x, y) != (int(x), int(y)) or x > 1000
    import_annotations(tmp_path / "out/polygons", tmp_path / "images", tmp_path / "back")
    assert np.array_equal(values_of(tmp_path / "back/masks/0.png"), masks[0])


def test_map_coordinates_without_a_georeferenced_image_are_an_error(tmp_path: Path) -> None:
    masks = [random_ids(np.random.default_rng(3), (10, 10), 3)]
    model = make_model(tmp_path, "data.classes={ground: 0, box: 200, disc: 100}")
    write_polygons(model, make_jobs(tmp_path, masks, PLACE), tmp_path / "out", "geojson")
    Image.fromarray(draw(10, 10)).save(tmp_path / "images/0.tif")
    with pytest.raises(ValueError, match=r"0.tif: has no georeference, .*EPSG::32632"):
        import_annotations(tmp_path / "out/polygons", tmp_path / "images", tmp_path / "back")


@pytest.mark.parametrize("kind", WRITTEN)
def test_predicted_polygons_import_as_the_predicted_masks(
    kind: str, checkpoint: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data_root / "images"
    command = ["predict", str(checkpoint), str(images), "--polygons", kind]
    assert main(command) == 0
    assert "wrote polygons of 6 images into predictions/polygons" in capsys.readouterr().out
    assert main(["import", "predictions/polygons", str(images), "-o", "data/back"]) == 0
    model = load_model(checkpoint)
    for path in images.iterdir():
        ids = (values_of(Path("predictions") / path.name) == model.classes.values[1]).astype(
            np.uint8
        )
        assert np.array_equal(values_of(Path("data/back/masks") / path.name), ids)
    assert main(["check", "configs/back.yaml"]) == 0


def test_polygons_of_a_raster_are_on_the_map(checkpoint: Path) -> None:
    Path("images").mkdir()
    write_raster("images/a.tif", draw(70, 60))
    predict_files([checkpoint], ["images"], Path("out"), Options(polygons="geojson"))
    import_annotations(Path("out/polygons"), Path("images"), Path("back"))
    assert np.array_equal(values_of(Path("back/masks/a.png")), values_of(Path("out/a.tif")) // 200)


def test_polygons_can_be_added_later_and_belong_to_their_masks(
    checkpoint: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(data_root / "images")]
    predict_files([checkpoint], images, Path("out"))
    changed = Path("out/0.png").stat().st_mtime_ns
    predict_files([checkpoint], images, Path("out"), Options(polygons="geojson"))
    assert "kept 6 existing masks" in capsys.readouterr().out
    assert Path("out/0.png").stat().st_mtime_ns == changed
    assert len([*Path("out/polygons").iterdir()]) == 6
    with pytest.raises(FileExistsError, match=r"0.geojson: exists and belongs to"):
        predict_files([checkpoint], images, Path("out"), Options(polygons="coco"), overwrite=True)
    predict_files([checkpoint], images, Path("out"), Options(polygons="geojson"), overwrite=True)


def test_polygons_of_stacks_and_unknown_formats_are_errors(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Image.fromarray(draw(20, 30))
    page.save("stack.tif", save_all=True, append_images=[page])
    assert main(["predict", str(checkpoint), "stack.tif", "--polygons", "coco"]) == 2
    message = "--polygons: got stack.tif, a stack of 2 pages, expected single images"
    assert message in capsys.readouterr().err
    assert not Path("predictions").exists()
    with pytest.raises(
        OptionError, match="got 'shape', expected one of geojson, coco, labelme, imagej"
    ):
        Options(polygons="shape")  # type: ignore[arg-type]


def test_images_that_are_too_large_for_imagej_are_an_error(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, [np.ones((1, 32768), np.uint8)])
    model = make_model(tmp_path, "data.classes={ground: 0, box: 200, disc: 100}")
    with pytest.raises(OptionError, match="of 1 x 32768 pixels, expected at most 32767 for Image"):
        write_polygons(model, jobs, tmp_path / "out", "imagej")
    assert not (tmp_path / "out/polygons").exists()
