from pathlib import Path
from typing import Any

import pytest
from helpers import values_of
from samples_of_annotations import label_studio_task, write_image, write_json

from unet.data.annotations.importing import Imported, import_annotations

POLYGON = {
    "type": "polygonlabels",
    "value": {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["cell"]},
}


def import_tasks(folder: Path, *tasks: dict[str, Any]) -> Imported:
    write_image(folder / "images")
    source = write_json(folder / "project.json", [*tasks])
    return import_annotations(source, folder / "images", folder / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"image": "/data/local-files/?d=set/a.png"}},
        {"data": {"picture": "s3://bucket/folder/a.png"}},
        {"data": {"image": "https://example.org/x%2Fa.png?token=5"}},
        {"data": {"image": "/image2"}, "file_upload": "12345678-a.png"},
    ],
)
def test_images_are_found_by_path_address_and_upload(change: Any, tmp_path: Path) -> None:
    assert import_tasks(tmp_path, label_studio_task([POLYGON]) | change).objects == {"cell": 1}


def test_boxes_and_ellipses_turn_clockwise(tmp_path: Path) -> None:
    # 32 x 24 pixels: the box of 12.8 x 4.8 pixels turns down about its upper left corner.
    box = {"x": 50, "y": 10, "width": 40, "height": 20, "rotation": 90, "rectanglelabels": ["box"]}
    ellipse = {"x": 20, "y": 50, "radiusX": 4, "radiusY": 25, "rotation": 0}
    results: list[dict[str, Any]] = [
        {"type": "rectanglelabels", "value": box},
        {"type": "ellipselabels", "value": {**ellipse, "ellipselabels": ["disc"]}},
    ]
    import_tasks(tmp_path, label_studio_task(results))
    ids = values_of(tmp_path / "out/masks/a.png")
    assert (ids[3:15, 12:16] == 1).all()
    assert not ids[:, 16:].any()
    assert ids[7, 6] == ids[17, 6] == 2


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    results = [POLYGON, {"type": "choices", "value": {}}, {"type": "brush", "value": {}}]
    task = label_studio_task(results)
    cancelled = {"was_cancelled": True, "result": []}
    task["annotations"] += [cancelled, {"result": results}]
    task["annotations"][-1]["result"] = task["annotations"][0]["result"]
    other = label_studio_task([], "other.png") | {"annotations": [], "predictions": [{}]}
    imported = import_tasks(tmp_path, task, other)
    assert "of tasks with several annotations, the last is used" in imported.notes
    assert "left out a result of type choices, such as in" in "\n".join(imported.warnings)
    assert "left out a brush without label" in "\n".join(imported.warnings)
    assert "left out predictions without annotation" in "\n".join(imported.warnings)


@pytest.mark.parametrize("packed", [[], [1, 2, 3], [300], [0, 0, 12, 0, 7], "text"])
def test_damaged_brushes_are_errors(packed: Any, tmp_path: Path) -> None:
    value = {"format": "rle", "rle": packed, "brushlabels": ["cell"]}
    with pytest.raises(ValueError, match=r"project.json: task 9: got rle"):
        import_tasks(tmp_path, label_studio_task([{"type": "brushlabels", "value": value}]))
