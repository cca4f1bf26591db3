import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from affine import Affine
from helpers import PLACE, draw, files_in, values_of, write_raster
from PIL import Image
from samples_of_annotations import (
    FORMATS,
    SIZE,
    coco,
    cvat_text,
    expected_ids,
    geojson_feature,
    label_studio_task,
    labelme,
    labelme_shape,
    write_image,
    write_json,
)

from unet.cli.main import main
from unet.data.annotations.importing import import_annotations
from unet.data.annotations.target import Target
from unet.inspection.propose import propose
from unet.runtime.signals import Stopped, stop_errors

BOX = [[2, 3], [10, 3], [10, 9], [2, 9]]


def write_labelme(folder: Path, *names: str, **changes: Any) -> Path:
    for name in names:
        data = labelme([labelme_shape("cell", BOX)], Path(name).name) | changes
        write_json((folder / name).with_suffix(".json"), data)
    return folder


def test_masks_of_images_in_folders_keep_their_place(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/1.png"):
        write_image(tmp_path / "images", name)
    data = coco([{"category_id": 3, "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]]}], "x/1.png")
    data["images"].append(data["images"][0] | {"id": 8, "file_name": "C:\\data\\y\\1.png"})
    source = write_json(tmp_path / "coco.json", data)
    imported = import_annotations(source, tmp_path / "images", tmp_path / "out", instances=True)
    assert files_in(tmp_path / "out") == [
        *("images/x/1.png", "images/y/1.png", "imported.json"),
        *("instances/x/1.png", "instances/y/1.png", "masks/x/1.png", "masks/y/1.png"),
    ]
    assert values_of(tmp_path / "out/masks/x/1.png").any()
    assert not values_of(tmp_path / "out/masks/y/1.png").any()
    assert "1 image without objects, such as y/1.png: all background" in "\n".join(imported.notes)


def test_a_name_that_several_files_have_is_an_error(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/1.png"):
        write_image(tmp_path / "images", name)
    write_labelme(tmp_path / "json", "1.png")
    with pytest.raises(
        ValueError, match=r"image 1.png may be any of x/1.png, y/1.png in .*rename all"
    ):
        import_annotations(tmp_path / "json", tmp_path / "images", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_images_that_differ_in_their_ending_are_an_error(tmp_path: Path) -> None:
    for name in ("1.png", "1.tif"):
        write_image(tmp_path / "images", name)
        write_labelme(tmp_path / f"json{name[-3:]}", name)
    data = [json.loads(path.read_text()) for path in tmp_path.glob("json*/1.json")]
    for i, one in enumerate(data):
        write_json(tmp_path / f"json/{i}.json", one)
    with pytest.raises(ValueError, match=r"differs from 1\.\w+ only in its ending; rename one"):
        import_annotations(tmp_path / "json", tmp_path / "images", tmp_path / "out")


def test_images_are_linked_with_gdals_files_and_stay_as_they_are(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    (tmp_path / "a.png.aux.xml").write_text("<PAMDataset/>")
    write_labelme(tmp_path, "a.png")
    import_annotations(tmp_path, tmp_path, tmp_path / "out/mine")
    assert files_in(tmp_path / "out/mine/images") == ["a.png", "a.png.aux.xml"]
    assert (tmp_path / "out/mine/images/a.png").samefile(tmp_path / "a.png")


def test_images_on_another_disk_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", fail)
    write_image(tmp_path, "a.png")
    write_labelme(tmp_path, "a.png")
    import_annotations(tmp_path, tmp_path, tmp_path / "out")
    copy = tmp_path / "out/images/a.png"
    assert copy.read_bytes() == (tmp_path / "a.png").read_bytes()
    assert not copy.samefile(tmp_path / "a.png")


def test_names_are_found_whatever_the_code_of_their_accents(tmp_path: Path) -> None:
    write_image(tmp_path, "zelle_a\u0308\u4e2d.png")
    write_labelme(tmp_path / "json", "zelle_\u00e4\u4e2d.png")
    import_annotations(tmp_path / "json", tmp_path, tmp_path / "out")
    assert files_in(tmp_path / "out/masks") == ["zelle_a\u0308\u4e2d.png"]


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        (None, ["a.png", "listed.png"]),
        ("background", ["a.png", "listed.png", "other.png"]),
        ("skip", ["a.png"]),
    ],
)
def test_images_without_objects(empty: Any, expected: list[str], tmp_path: Path) -> None:
    for name in ("a.png", "listed.png", "other.png"):
        write_image(tmp_path / "images", name)
    write_labelme(tmp_path / "json", "a.png")
    write_labelme(tmp_path / "json", "listed.png", shapes=[])
    imported = import_annotations(
        tmp_path / "json", tmp_path / "images", tmp_path / "out", empty=empty
    )
    assert files_in(tmp_path / "out/masks") == files_in(tmp_path / "out/images") == expected
    assert imported.num_images == len(expected)
    notes = "\n".join(imported.notes)
    assert ("left out" in notes) == (empty != "background")
    assert ("all background" in notes) == (empty != "skip")


def test_annotations_of_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "images", "a.png")
    source = write_labelme(tmp_path / "json", "a.png", "b.png", "c.png")
    imported = import_annotations(source, tmp_path / "images", tmp_path / "out")
    assert imported.warnings == [
        f"2 of 3 annotated images are not in {tmp_path / 'images'}, such as b.png: their "
        "annotations are left out"
    ]
    (tmp_path / "images/a.png").rename(tmp_path / "images/z.png")
    with pytest.raises(ValueError, match=r"annotations of 3 images, such as a.png, expected some"):
        import_annotations(source, tmp_path / "images", tmp_path / "other")


def test_images_of_another_size_are_errors_before_anything_is_written(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png", (30, 20))
    with pytest.raises(
        ValueError, match=r"a.png: got 30 x 20 pixels \(height x width\), .*24 x 32"
    ):
        import_annotations(write_labelme(tmp_path, "a.png"), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [*tmp_path.glob(".*")]


def test_an_image_that_exif_turns_has_the_size_that_the_tool_has_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE).save(
        tmp_path / "a.jpg", exif=exif
    )  # stored as 32 x 24, shown as 24 x 32
    write_labelme(tmp_path, "a.jpg")
    import_annotations(tmp_path, tmp_path, tmp_path / "out")
    assert values_of(tmp_path / "out/masks/a.png").shape == SIZE
    write_labelme(tmp_path, "a.jpg", imageHeight=32, imageWidth=24)
    with pytest.raises(ValueError, match="annotated without its EXIF orientation"):
        import_annotations(tmp_path, tmp_path, tmp_path / "other")


def test_smaller_shapes_are_on_top_by_area_and_later_ones_by_file(tmp_path: Path) -> None:
    small, large = [[4, 4], [6, 4], [6, 6], [4, 6]], [[2, 2], [9, 2], [9, 9], [2, 9]]
    write_image(tmp_path, "a.png")
    shapes = [labelme_shape("nucleus", small), labelme_shape("cell", large)]
    write_json(tmp_path / "a.json", labelme(shapes))
    by_file = import_annotations(tmp_path, tmp_path, tmp_path / "file")
    assert not (values_of(tmp_path / "file/masks/a.png") == 1).any()
    assert "1 object wholly below others, such as in a.png" in by_file.notes
    by_area = import_annotations(tmp_path, tmp_path, tmp_path / "area", order="area")
    assert (values_of(tmp_path / "area/masks/a.png") == 1).sum() == 4
    assert "1 shape and others overlap, in 4 pixels: smaller ones are on top" in by_area.notes


def test_the_levels_of_cvat_come_before_the_order(tmp_path: Path) -> None:
    write_image(tmp_path / "images")
    source = FORMATS["cvat"](tmp_path)  # whose first shape is on top
    import_annotations(source, tmp_path / "images", tmp_path / "out", order="file")
    assert np.array_equal(values_of(tmp_path / "out/masks/a.png"), expected_ids())


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    other = [[20, 3], [25, 3], [25, 9]]
    shapes = [labelme_shape("cell", points) | {"group_id": 4} for points in (BOX, other)]
    write_json(
        tmp_path / "a.json", labelme([*shapes, labelme_shape("cell", [[1, 20], [9, 20], [1, 23]])])
    )
    imported = import_annotations(tmp_path, tmp_path, tmp_path / "out", instances=True)
    assert imported.objects == {"cell": 2}
    numbers = values_of(tmp_path / "out/instances/a.png")
    assert numbers[5, 5] == numbers[4, 23] == 1


def test_backgrounds_and_ignored_regions_of_labelme(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    names = ("cell", "_background_", "__ignore__")
    boxes = [[[x, 0], [x + 8, 0], [x + 8, 9], [x, 9]] for x in (0, 4, 16)]
    shapes = [labelme_shape(*one) for one in zip(names, boxes, strict=True)]
    write_json(tmp_path / "a.json", labelme(shapes))
    imported = import_annotations(tmp_path, tmp_path, tmp_path / "out", instances=True)
    assert imported.classes == {"_background_": 0, "cell": 1}
    assert imported.ignored
    assert values_of(tmp_path / "out/masks/a.png")[0, [0, 5, 16]].tolist() == [1, 0, 255]
    assert values_of(tmp_path / "out/instances/a.png")[0, [0, 5, 16]].tolist() == [1, 0, 0]


def test_regions_outside_of_the_image_are_named(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    shapes = [
        labelme_shape("cell", [[x, y] for x, y in np.add(BOX, move).tolist()])
        for move in ((0, 0), (-5, 0), (100, 0), (0, -99))
    ]
    write_json(tmp_path / "a.json", labelme(shapes))
    imported = import_annotations(tmp_path, tmp_path, tmp_path / "out")
    assert imported.warnings == [
        'left out a region "cell" without a pixel in the image (2 times), such as in a.png'
    ]
    assert "1 shape cut off at the border of the image, such as in a.png" in imported.notes


def test_annotations_without_a_region_write_nothing(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    write_json(tmp_path / "a.json", labelme([labelme_shape("cell", [[1, 1], [2, 2]])]))
    expected = r'has no classes; .*\nleft out a polygon "cell" with fewer than 3 points'
    with pytest.raises(ValueError, match=expected):
        import_annotations(tmp_path, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_classes_than_masks_can_hold_are_an_error(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    shapes = [labelme_shape(f"class {i}", BOX) for i in range(300)]
    write_json(tmp_path / "a.json", labelme(shapes))
    with pytest.raises(ValueError, match="got 300 classes, expected at most 252"):
        import_annotations(tmp_path, tmp_path, tmp_path / "out")


def test_an_existing_folder_is_replaced_only_if_an_import_wrote_it(tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    source, out = write_labelme(tmp_path, "a.png"), tmp_path / "out"
    import_annotations(source, tmp_path, out, instances=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"images: exists; pass overwrite=True to replace it"):
        import_annotations(source, tmp_path, out)
    import_annotations(source, tmp_path, out, overwrite=True)
    assert not (out / "instances").exists()
    assert (out / "notes.txt").read_text() == "mine"
    (out / "imported.json").unlink()
    with pytest.raises(FileExistsError, match="no import has written it; choose another folder"):
        import_annotations(source, tmp_path, out, overwrite=True)


def test_images_that_are_in_the_output_folder_stay_there(tmp_path: Path) -> None:
    images, out = tmp_path / "mine/images", tmp_path / "mine"
    write_image(images, "a.png")
    write_image(images, "b.png")
    source = write_labelme(tmp_path / "json", "a.png")
    with pytest.raises(ValueError, match=r"1 image without objects, such as b.png, which would"):
        import_annotations(source, images, out)
    import_annotations(source, images, out, empty="background")
    import_annotations(source, images, out, empty="background", overwrite=True)
    assert files_in(out) == [
        "images/a.png",
        "images/b.png",
        "imported.json",
        "masks/a.png",
        "masks/b.png",
    ]
    with pytest.raises(
        FileExistsError, match="no import has written it"
    ):  # nor may it replace them
        import_annotations(source, tmp_path / "mine", out, overwrite=True)


def test_more_objects_than_16_bits_number_are_a_tiff(tmp_path: Path) -> None:
    numbers = np.arange(90_000, dtype=np.int32).reshape(300, 300)
    with Target(tmp_path / "out", tmp_path, overwrite=False) as target:
        target.write_label_image("a.png", numbers)
        target.finish({})
    assert np.array_equal(values_of(tmp_path / "out/instances/a.tif"), numbers)


def test_nothing_is_left_after_an_error_while_masks_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_image(tmp_path, "a.png")
    monkeypatch.setattr(Image.Image, "save", fail)
    source = write_labelme(tmp_path, "a.png")
    before = files_in(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        import_annotations(source, tmp_path, tmp_path / "deep/out")
    assert files_in(tmp_path) == before


def test_stacks_and_damaged_images_are_errors(tmp_path: Path) -> None:
    write_labelme(tmp_path, "a.tif")
    pages = [Image.new("L", SIZE[::-1], i) for i in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a.tif: got 2 pages, expected one image"):
        import_annotations(tmp_path, tmp_path, tmp_path / "out")
    (tmp_path / "a.tif").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a.tif: cannot be read as an image"):
        import_annotations(tmp_path, tmp_path, tmp_path / "out")


def test_the_splits_of_yolo(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_image(tmp_path, f"{split}/images/{split}.png")
        (tmp_path / split / "labels").mkdir()
        label = tmp_path / split / "labels" / f"{split}.txt"
        label.write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n0 0.5 0.5 0.2 0.2\n")
    write_image(tmp_path, "train/images/empty.png")
    path = tmp_path / "data.yaml"
    path.write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [a, b]\n"
    )
    imported = import_annotations(path, tmp_path, tmp_path / "out")
    assert imported.validation == "val.txt"
    assert (tmp_path / "out/val.txt").read_text() == "valid/images/valid\n"
    assert imported.classes == {"background": 0, "a": 1, "b": 2}
    assert imported.warnings == [
        'left out a box "a", no polygon (3 times), such as in test/images/test'
    ]
    notes = "\n".join(imported.notes)
    assert "1 image without objects, such as train/images/empty.png: all background" in notes
    assert "left out 1 image of the split test" in notes


def test_the_command_writes_data_and_a_config_that_passes_the_check_and_trains(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1.png", "2.png", "3.png"):
        write_image(workdir / "images", name, (40, 48))
        shapes = [labelme_shape("cell", points) for points in (BOX, np.add(BOX, 10).tolist())]
        size = {"imageHeight": 40, "imageWidth": 48}
        write_labelme(workdir / "json", name, shapes=shapes, **size)
    command = ["import", "json", "images", "-o", "data/my cells", "--instances"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "read LabelMe: 3 images" in output
    assert "cell            1        6   5.00%" in output
    assert main(["check", "configs/my_cells.yaml", "--pictures", "samples.png"]) == 0
    assert "no errors found" in capsys.readouterr().out
    settings = [
        "train.epochs=1",
        "model.widths=[4,8]",
        "augment.crop=[16,16]",
        "train.num_workers=0",
    ]
    assert main(["train", "configs/my_cells.yaml", "loss.border={}", *settings]) == 0
    capsys.readouterr()
    assert main(command) == 2
    assert "my_cells.yaml: exists; pass --overwrite to replace it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_the_command_names_its_options_and_leaves_no_config_after_an_error(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(workdir, "a.png")
    write_labelme(workdir, "a.png")
    write_image(workdir, "b.png")
    write_json(workdir / "b.json", labelme([], "b.png"))
    assert main(["import", ".", "-o", "data/mine"]) == 0
    assert "--empty skip leaves them out" in capsys.readouterr().out
    assert main(["import", "nothing.json", ".", "-o", "data/other"]) == 2
    assert "nothing.json: there is no such file or folder" in capsys.readouterr().err
    (workdir / "b.json").write_text("{")
    assert main(["import", ".", "-o", "data/other"]) == 2
    assert "b.json: cannot be read as JSON" in capsys.readouterr().err
    assert not (workdir / "data/other").exists()
    assert files_in(workdir / "configs") == ["mine.yaml"]
    assert main(["import", ".", "-o", "data/x", "train.epochs=3"]) == 2
    assert "change settings in the config" in capsys.readouterr().err


def test_a_map_is_of_all_georeferenced_images(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    for i in (0, 1):  # two tiles of 20 x 30 pixels of 0.5 m, next to each other
        place = {**PLACE, "transform": Affine(0.5, 0, 500_000 + 15 * i, 0, -0.5, 5_400_000)}
        write_raster(str(tmp_path / f"tiles/{i}.tif"), draw(20, 30), **place)
    squares = [
        geojson_feature([[[x, y], [x + 4, y], [x + 4, y - 4], [x, y - 4], [x, y]]], type="building")
        for x, y in ((500_013, 5_399_998), (600_000, 5_399_998))
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    data = {"type": "FeatureCollection", "crs": crs, "features": squares}
    source = write_json(tmp_path / "buildings.geojson", data)
    imported = import_annotations(source, tmp_path / "tiles", tmp_path / "out")
    left, right = (values_of(tmp_path / f"out/masks/{i}.png") for i in (0, 1))
    assert (left[4:12, 26:] == 1).all()
    assert (right[4:12, :4] == 1).all()
    assert left.sum() + right.sum() == 64
    assert "is a map of all images; 1 region of 2 outside of them" in "\n".join(imported.notes)


def test_geojson_of_qupath_may_be_a_geometry_or_a_list_and_has_parts_and_holes(
    tmp_path: Path,
) -> None:
    write_image(tmp_path / "images", "a.png")
    ring, hole = [*BOX, BOX[0]], [[4, 5], [6, 5], [6, 7], [4, 7], [4, 5]]
    other = [[20, 10], [24, 10], [24, 14], [20, 10]]
    parts = [[ring, hole], [other]]
    for i, data in enumerate(
        (
            {"type": "MultiPolygon", "coordinates": parts},
            [geojson_feature(parts, "MultiPolygon", objectType="annotation")],
            geojson_feature([0, 1], "Point")
            | {
                "geometry": {
                    "type": "GeometryCollection",
                    "geometries": [{"type": "Polygon", "coordinates": one} for one in parts],
                }
            },
        )
    ):
        source = write_json(tmp_path / "a.json", data)
        imported = import_annotations(source, tmp_path / "images", tmp_path / f"out{i}")
        assert imported.classes == {"background": 0, "object": 1}
        ids = values_of(tmp_path / f"out{i}/masks/a.png")
        assert ids.sum() == 48 - 4 + 10  # of the triangle, with the centres on its border
        assert not ids[5:7, 4:6].any()


def test_projects_of_cvat_have_subsets(tmp_path: Path) -> None:
    images = []
    for subset in ("Train", "Validation", "Test"):
        write_image(tmp_path, f"images/{subset}/a.png")
        text = cvat_text('<box label="" xtl="1" ytl="1" xbr="9" ybr="9"/>')
        images.append(
            re.sub(".*(<image.*</image>).*", r"\1", text).replace(" id=", f' subset="{subset}" id=')
        )
    source = tmp_path / "annotations.xml"
    source.write_text(f"<annotations>{''.join(images)}</annotations>")
    imported = import_annotations(source, tmp_path, tmp_path / "out")
    assert imported.classes == {"background": 0, "object": 1}
    assert files_in(tmp_path / "out/masks") == ["images/Train/a.png", "images/Validation/a.png"]
    assert (tmp_path / "out/val.txt").read_text() == "images/Validation/a\n"


def test_yolo_with_a_list_of_classes(tmp_path: Path) -> None:
    source = FORMATS["yolo"](tmp_path)
    source.unlink()
    write_image(tmp_path, "images/a.png")
    (tmp_path / "classes.txt").write_text("cell\nnucleus\n")
    import_annotations(tmp_path, tmp_path, tmp_path / "out")
    assert np.array_equal(values_of(tmp_path / "out/masks/images/a.png"), expected_ids())


@pytest.mark.parametrize("name", ["a\nb", "x" * 101])
def test_class_names_that_no_config_can_have_are_errors(name: str, tmp_path: Path) -> None:
    write_image(tmp_path, "a.png")
    write_json(tmp_path / "a.json", labelme([labelme_shape(name, BOX)]))
    with pytest.raises(ValueError, match="expected a name of 1 to 100 printable characters"):
        import_annotations(tmp_path, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("box", ['top="0" left="0" width="1000000" height="1000000"'])
def test_sizes_that_no_memory_holds_are_errors(box: str, tmp_path: Path) -> None:
    write_image(tmp_path / "images", "a.png")
    (tmp_path / "a.xml").write_text(cvat_text(f'<mask label="cell" rle="5,{10**12 - 5}" {box}/>'))
    with pytest.raises(ValueError, match=r"a.png: got a mask of 1000000 x 1000000 pixels"):
        import_annotations(tmp_path / "a.xml", tmp_path / "images", tmp_path / "out")
    task = label_studio_task([{"type": "brushlabels", "value": {"rle": [1], "brushlabels": ["x"]}}])
    task["annotations"][0]["result"][0] |= {"original_width": 10**6, "original_height": 10**6}
    write_json(tmp_path / "a.json", [task])
    with pytest.raises(ValueError, match=r"a.png: got 24 x 32 pixels"):
        import_annotations(tmp_path / "a.json", tmp_path / "images", tmp_path / "out")


def test_a_config_for_an_imported_folder_has_its_classes_and_validation_images(
    tmp_path: Path,
) -> None:
    for name in ("1.png", "2.png"):
        write_image(tmp_path / "images", name)
    write_labelme(tmp_path / "json", "1.png", "2.png")
    out = tmp_path / "out"
    imported = import_annotations(tmp_path / "json", tmp_path / "images", out, instances=True)
    (out / "val.txt").write_text("2\n", encoding="utf-8")
    data = yaml.safe_load(propose(out, "out"))["data"]
    assert data["classes"] == imported.classes == {"background": 0, "cell": 1}
    assert data["instances"] == "instances"
    assert data["validation"] == {"stems": "val.txt"}
    (out / "imported.json").write_text("[]", encoding="utf-8")  # not of an import
    assert "cell" not in yaml.safe_load(propose(out, "out"))["data"]["classes"]


def test_paths_of_windows_and_renamed_images_are_found(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/1.png", "renamed.png"):
        write_image(tmp_path / "images", name)
    write_labelme(tmp_path / "json", "1.png", imagePath="..\\images\\y\\1.png")
    write_labelme(tmp_path / "json", "renamed.png", imagePath="E:\\before.png")
    imported = import_annotations(tmp_path / "json", tmp_path / "images", tmp_path / "out")
    assert imported.warnings == []
    assert files_in(tmp_path / "out/masks") == ["renamed.png", "y/1.png"]


def test_files_of_coco_have_splits(tmp_path: Path) -> None:
    parts = {"train": "train/a.json", "valid": "valid/a.json", "val2017": "instances_val2017.json"}
    for form, names in {"folders": ["train", "valid"], "names": ["train", "val2017"]}.items():
        folder = tmp_path / form
        for name in names:
            write_image(folder / "images", f"{name}/{name}.png")
            data = coco([{"category_id": 3, "segmentation": [[2, 3, 10, 3, 10, 9, 2, 9]]}])
            data["images"][0]["file_name"] = f"{name}.png"
            place = parts[name] if form == "folders" else f"instances_{name}.json"
            write_json(folder / place, data)
        imported = import_annotations(folder, folder / "images", tmp_path / f"out_{form}")
        assert imported.validation == "val.txt"
        text = (tmp_path / f"out_{form}/val.txt").read_text()
        assert text == f"{names[1]}/{names[1]}\n"
    one = import_annotations(folder / f"instances_{name}.json", folder, tmp_path / "one")
    assert one.validation is None  # the only images are for training, too
    imported = import_annotations(folder, folder / "images/val2017", tmp_path / "only_val")
    assert imported.validation is None
    assert "all images are of the validation split: the config splits them" in imported.notes


def test_the_classes_of_run_lengths_may_have_underscores(tmp_path: Path) -> None:
    write_image(tmp_path / "images", "img_1.png")
    rows = ("ImageId_ClassId,EncodedPixels", "img_1.png_hex_nut,1 5", "img_1.png_bolt,30 4")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    imported = import_annotations(tmp_path / "train.csv", tmp_path / "images", tmp_path / "out")
    assert imported.classes == {"background": 0, "hex_nut": 1, "bolt": 2}


def test_an_open_polyline_of_via_is_named_and_an_image_may_have_no_region(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path, name)
    text = FORMATS["via_csv"](tmp_path).read_text()
    crack = '"{""name"":""polyline"",""all_points_x"":[1,9],""all_points_y"":[1,9]}"'
    (tmp_path / "via.csv").write_text(
        f'{text}\na.png,1,"{{}}",1,0,{crack},"{{}}"\nb.png,5,{{}},0,0,{{}},{{}}'
    )
    imported = import_annotations(tmp_path / "via.csv", tmp_path, tmp_path / "out")
    assert imported.warnings == ['left out an open polyline "object", such as in a.png']
    assert not values_of(tmp_path / "out/masks/b.png").any()


def test_the_colours_of_the_tool_are_those_of_the_config(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "images", name)
    imported = import_annotations(FORMATS["cvat"](tmp_path), tmp_path / "images", tmp_path / "out",
                                  empty="background")  # fmt: skip
    assert imported.num_images == 2
    data = yaml.safe_load(propose(tmp_path / "out", "out"))["data"]
    assert data["colours"] == {"cell": [255, 0, 0], "nucleus": [0, 255, 0]}


def test_a_signal_during_the_clean_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "images", "1.png")
    write_labelme(tmp_path / "json", "1.png")
    remove = shutil.rmtree

    def interrupted(*words: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        remove(*words, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(Stopped), stop_errors():
        import_annotations(tmp_path / "json", tmp_path / "images", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "json", "out"]
