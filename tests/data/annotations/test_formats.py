"""Every format gives the same masks of the same scene, and says what it does not read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import values_of
from samples_of_annotations import FORMATS, expected_ids, write_image

from unet.data.annotations.formats import read_annotations
from unet.data.annotations.importing import import_annotations


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_masks_objects_and_classes(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images")
    source = FORMATS[name](tmp_path)
    imported = import_annotations(source, tmp_path / "images", tmp_path / "out", instances=True)
    assert not imported.warnings
    assert imported.classes == {"background": 0, "cell": 1, "nucleus": 2}
    assert imported.objects == {"cell": 2, "nucleus": 1}
    ids = values_of(tmp_path / "out/masks/a.png")
    assert np.array_equal(ids, expected_ids())
    numbers = values_of(tmp_path / "out/instances/a.png")
    assert np.array_equal(numbers > 0, ids > 0)
    assert len(np.unique(numbers)) == 4
    assert "1 shape and others overlap, in 9 pixels" in "\n".join(imported.notes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_of_annotations_is_read_as_its_files_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    write_image(tmp_path / "images")
    FORMATS[name](folder)
    import_annotations(folder, tmp_path / "images", tmp_path / "out")
    assert np.array_equal(values_of(tmp_path / "out/masks/a.png"), expected_ids())


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"imagej"}))
def test_a_file_that_is_cut_off_or_of_other_types_is_an_error_with_its_name(
    name: str, tmp_path: Path
) -> None:
    source = FORMATS[name](tmp_path)
    file = tmp_path / "labels/a.txt" if name == "yolo" else source
    text, rng = file.read_text(), np.random.default_rng(0)
    errors = []
    for i in range(60):
        changed = text[: int(rng.integers(1, len(text)))]
        if i % 2:  # a number, text or bracket becomes something else
            place = rng.choice([match.start() for match in re.finditer(r"[\d\"\[{,:]", text)])
            new = rng.choice(["null", '"x"', "[]", "{}", "-1", "1e999", "NaN", "true", ""])
            changed = f"{text[:place]}{new}{text[place + 1 :]}"
        file.write_text(changed)
        try:
            _, found = read_annotations(source)
            for entry in found.entries:
                for shape in entry.shapes:
                    shape.region.fill((24, 32))
        except ValueError as error:  # of our own, with a place; all others fail this test
            errors.append(str(error))
    assert len(errors) > 10
    assert all(error.startswith(str(tmp_path)) for error in errors if "runs of pixels" not in error)


def places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value in a JSON value."""
    yield place
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(value, (*place, key))


@pytest.mark.parametrize(
    "name", sorted(set(FORMATS) - {"cvat", "imagej", "run_lengths", "via_csv", "yolo"})
)
def test_any_value_of_another_type_is_read_or_an_error_of_our_own(
    name: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "images")
    source = FORMATS[name](tmp_path)
    text = source.read_text()
    found = list(places(json.loads(text)))
    errors = 0
    for i, place in enumerate(found[:: max(1, len(found) // 60)]):
        data = inner = [json.loads(text)]
        for key in (0, *place)[:-1]:
            inner = inner[key]
        inner[(0, *place)[-1]] = [None, "x", [], {}, -1, float("nan"), True, [[1, 2]]][i % 8]
        source.write_text(json.dumps(data[0]))
        try:
            import_annotations(source, tmp_path / "images", tmp_path / f"out{i}")
        except ValueError:  # all others fail this test
            errors += 1
            assert not (tmp_path / f"out{i}").exists()
    assert errors > 10


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("{", "a.json", "cannot be read as JSON .* cut off; export the annotations again"),
        ("[" * 100_000, "a.json", "cannot be read as JSON"),
        ("{}", "a.json", "annotations of an unknown format, expected COCO, LabelMe"),
        ("3", "a.geojson", "unknown format"),
        ("<a>", "a.xml", "cannot be read as XML"),
        ("<a/>", "a.xml", "XML of a, expected annotations; export it from CVAT as"),
        ("<annotations><track/></annotations>", "a.xml", "tracks of a video, expected images"),
        ("a,b\n1,2", "a.csv", "the columns a, b, expected one of image names and one of run"),
        ("names: [", "data.yaml", "cannot be read as YAML"),
        ("path: x", "data.yaml", "got names None, expected the names of the classes"),
        ("names: [a]", "data.yaml", "no text files in a folder labels"),
        ("PK", "a.zip", "cannot be read as ZIP"),
        ("PK", "a.roi", "a.roi: cannot be read as an ImageJ ROI .*; save it again"),
        ("", "a.txt", "unknown format"),
    ],
)
def test_other_files_are_errors(text: str, name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_annotations(path)


def test_a_folder_without_annotations_and_one_of_two_formats_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_annotations(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="contains no annotations, which may be COCO"):
        read_annotations(tmp_path)
    FORMATS["via"](tmp_path)
    FORMATS["labelme_polygons"](tmp_path)
    with pytest.raises(ValueError, match=r"files of LabelMe and of VIA, such as .*via\.json"):
        read_annotations(tmp_path)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = FORMATS["labelme_polygons"](tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_annotations(path)[1].entries) == 1
