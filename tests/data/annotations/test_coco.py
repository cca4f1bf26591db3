from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import values_of
from pycocotools import mask as tools
from samples_of_annotations import SIZE, coco, counts_of, write_image, write_json

from unet.data.annotations.formats import read_annotations
from unet.data.annotations.importing import Imported, import_annotations


def import_coco(folder: Path, annotations: list[dict[str, Any]], **options: Any) -> Imported:
    write_image(folder / "images")
    source = write_json(folder / "coco.json", coco(annotations))
    return import_annotations(source, folder / "images", folder / "out", **options)


def whole(folder: Path, segmentation: Any) -> np.ndarray:
    annotation = {"category_id": 3, "segmentation": segmentation, "iscrowd": 0}
    source = write_json(folder / "coco.json", coco([annotation]))
    [shape] = read_annotations(source)[1].entries[0].shapes
    image, filled = np.zeros(SIZE, bool), shape.region.fill(SIZE)
    filled.of(image)[:] = filled.mask
    return image


def test_polygons_are_exactly_those_of_pycocotools(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        parts = [
            rng.uniform(-3, 35, 2 * int(rng.integers(3, 9))).round(2).tolist()
            for _ in range(int(rng.integers(1, 3)))
        ]
        expected = tools.decode(tools.merge(tools.frPyObjects(parts, *SIZE)))
        assert np.array_equal(whole(tmp_path, parts), expected.astype(bool))


def test_run_lengths_as_lists_and_compressed_are_exactly_those_of_pycocotools(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(1)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = rng.random(SIZE) < density
        packed = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        compressed = {"size": [*SIZE], "counts": packed["counts"].decode()}
        assert np.array_equal(whole(tmp_path, compressed), mask)
        if 0 < density < 1:
            plain = {"size": [*SIZE], "counts": counts_of(mask.T)}
            assert np.array_equal(whole(tmp_path, plain), mask)


def test_damaged_compressed_run_lengths_are_errors(tmp_path: Path) -> None:
    mask = np.random.default_rng(2).random(SIZE) < 0.1
    text = tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    for damaged in (text[:-3], text[5:], "", "\x01", "é", text + "~", "o" * 50, text + text):
        with pytest.raises(ValueError, match=r"coco.json: annotations\[0\]: cannot be decoded"):
            whole(tmp_path, {"size": [*SIZE], "counts": damaged})


def test_crowds_are_below_single_objects(tmp_path: Path) -> None:
    crowd = np.ones(SIZE, bool)
    annotations = [
        {"category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]], "iscrowd": 0},
        {
            "category_id": 5,
            "segmentation": {"size": [*SIZE], "counts": counts_of(crowd.T)},
            "iscrowd": 1,
        },
    ]
    imported = import_coco(tmp_path, annotations, instances=True)
    ids = values_of(tmp_path / "out/masks/a.png")
    assert (ids[2:8, 2:8] == 1).all()
    assert (ids[9:] == 2).all()
    assert len(np.unique(values_of(tmp_path / "out/instances/a.png"))) == 2
    assert any("crowds" in note for note in imported.notes)


def test_boxes_and_short_polygons_are_left_out_and_named(tmp_path: Path) -> None:
    annotations = [
        {"category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 8], [1, 1, 2, 2]]},
        {"category_id": 3, "segmentation": [[1, 1, 2, 2]]},
        {"category_id": 5, "segmentation": [], "bbox": [1, 2, 3, 4]},
        {"category_id": 5, "bbox": [1, 2, 3, 4]},
        {"category_id": 5, "image_id": 99, "segmentation": [[2, 2, 8, 2, 8, 8]]},
    ]
    warnings = import_coco(tmp_path, annotations).warnings
    assert warnings == [
        'left out a polygon "cell" with fewer than 3 points (2 times), such as in a.png',
        'left out a box "nucleus" without segmentation (2 times), such as in a.png',
        "left out an annotation of an image without entry, such as in image 99",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 4}, "got category_id 4, expected one of categories"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "expected lists of x, y, x, y"),
        ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, "expected a list of numbers"),
        ({"segmentation": [[float("nan"), 2, 3, 4, 5, 6]]}, "expected numbers up to 1,000,000"),
        ({"segmentation": [[1e9, 2, 3, 4, 5, 6]]}, "expected numbers up to 1,000,000"),
        ({"segmentation": "polygon"}, "expected an object with size"),
        ({"segmentation": {"size": [24, 32], "counts": [1, 2]}}, "expected a sum of 768"),
        ({"segmentation": {"size": [24, 32], "counts": [-1, 769]}}, "whole numbers, 0 or more"),
        ({"segmentation": {"size": [2, 2], "counts": [1, 3]}}, "run lengths of 2 x 2 pixels"),
        ({"segmentation": {"size": [2], "counts": [2]}}, r"expected \[height, width\]"),
    ],
)
def test_wrong_values_are_errors_that_name_the_annotation(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = {"category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 8]]}
    with pytest.raises(ValueError, match=rf"annotations\[1\]: .*{message}"):
        import_coco(tmp_path, [good, good | change])
    assert not (tmp_path / "out").exists()


def test_colours_of_categories_are_those_of_the_masks(tmp_path: Path) -> None:
    write_image(tmp_path / "images")
    data = coco([{"category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 8]]}])
    data["categories"][0]["color"] = [1, 2, 3]
    source = write_json(tmp_path / "coco.json", data)
    import_annotations(source, tmp_path / "images", tmp_path / "out")
    from unet.data.masks import read_palette

    palette = read_palette(tmp_path / "out/masks/a.png")
    assert palette is not None
    assert palette[1] == (1, 2, 3)
    assert len({*palette[:3]}) == 3


def test_of_the_annotations_of_coco_itself_the_instances_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "images")
    folder = tmp_path / "annotations"
    good = coco([{"category_id": 3, "segmentation": [[2, 2, 8, 2, 8, 8]]}])
    write_json(folder / "instances_val.json", good)
    write_json(folder / "person_keypoints_val.json", good)
    imported = import_annotations(folder, tmp_path / "images", tmp_path / "out")
    assert imported.objects == {"cell": 1}
    keypoints = folder / "person_keypoints_val.json"
    assert imported.warnings == [f"left out a file next to instances_*, such as in {keypoints}"]
    for key in ("caption", "segments_info"):
        path = write_json(tmp_path / "other.json", coco([{key: []}]))
        with pytest.raises(ValueError, match=r"other.json: got annotations of an unknown format"):
            read_annotations(path)
