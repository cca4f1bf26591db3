from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from helpers import values_of
from samples_of_annotations import FORMATS, SIZE, write_image

from unet.data.annotations.formats import read_annotations
from unet.data.annotations.importing import import_annotations

roifile = pytest.importorskip("roifile")

TYPES = roifile.ROI_TYPE


def write_rois(folder: Path, *rois: object) -> Path:
    write_image(folder / "images")
    with ZipFile(folder / "a.zip", "w") as file:
        for i, roi in enumerate(rois):
            file.writestr(f"__MACOSX/._{i}.roi", b"of the Finder")
            file.writestr(f"{i}.roi", roi.tobytes())  # type: ignore[attr-defined]
    return folder / "a.zip"


def box(left: int, top: int, right: int, bottom: int, **more: object) -> object:
    return roifile.ImagejRoi(left=left, top=top, right=right, bottom=bottom, **more)


def test_ovals_composites_and_subpixels_are_read_and_lines_are_named(tmp_path: Path) -> None:
    outer, inner = ([[2, 2], [12, 2], [12, 12], [2, 12]], [[5, 5], [9, 5], [9, 9], [5, 9]])
    path = [n for ring in (inner, outer) for i, point in enumerate(ring) for n in (i > 0, *point)]
    path = [*path[:12], 4, *path[12:], 4]  # rings in any order, which end with CLOSE
    composite = box(2, 2, 12, 12, roitype=TYPES.RECT, shape_roi_size=len(path))
    composite.multi_coordinates = np.array(path, np.float32)  # type: ignore[attr-defined]
    oval = box(16, 2, 26, 12, roitype=TYPES.OVAL, group=3, position=2)
    fine = roifile.ImagejRoi.frompoints(np.array([[2.4, 15.4], [6.4, 15.4], [6.4, 19.6]]))
    line = box(1, 1, 9, 9, roitype=TYPES.LINE)
    source = write_rois(tmp_path, composite, oval, fine, line)
    imported = import_annotations(source, tmp_path / "images", tmp_path / "out", instances=True)
    assert imported.classes == {"background": 0, "object": 1, "group 3": 2}
    assert imported.objects == {"object": 2, "group 3": 1}
    assert imported.warnings == ['left out a line "object", such as in a']
    assert "ROIs of 2 slices of a stack are drawn together" in imported.notes[0]
    ids = values_of(tmp_path / "out/masks/a.png")
    expected = np.zeros(SIZE, np.uint8)
    expected[2:12, 2:12] = 1
    expected[5:9, 5:9] = 0
    assert np.array_equal(ids[:13, :13], expected[:13, :13])
    assert (ids == 2).sum() == 80  # pixels whose centre is in a circle of 10 pixels
    assert ids[15:20, 5].tolist() == [1, 1, 1, 1, 0]


def test_a_single_roi_is_read_and_a_zip_of_other_files_is_an_error(tmp_path: Path) -> None:
    FORMATS["imagej"](tmp_path)
    with ZipFile(tmp_path / "a.zip") as file:
        file.extract("1.roi", tmp_path / "one")
    assert read_annotations(tmp_path / "one")[1].classes == {"nucleus": None}
    with ZipFile(tmp_path / "a.zip", "a") as file:
        file.writestr("annotations.xml", "<annotations/>")
    with pytest.raises(ValueError, match=r"a\.zip: is a ZIP file of other files; unpack it first"):
        read_annotations(tmp_path / "a.zip")


def test_damaged_rois_are_errors_of_our_own(tmp_path: Path) -> None:
    data = roifile.ImagejRoi.frompoints([[1, 1], [9, 1], [9, 9]]).tobytes()
    errors, random = list[str](), np.random.default_rng(0)
    for i in range(200):
        changed = bytearray(data[: random.integers(1, len(data))] if i % 2 else data)
        changed[random.integers(len(changed))] = random.integers(256)
        (tmp_path / "a.roi").write_bytes(changed)
        try:
            for shape in read_annotations(tmp_path / "a.roi")[1].entries[0].shapes:
                shape.region.fill(SIZE)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert {error.partition(" (")[0] for error in errors} == {
        f"{tmp_path / 'a.roi'}: a.roi: cannot be read as an ImageJ ROI"
    }
