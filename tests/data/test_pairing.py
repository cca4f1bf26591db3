import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet.data.image_io import read_header
from unet.data.pairing import MaskPlaces, PackedPairs, Places, find_pairs, natural_key

BOX = np.zeros((4, 5), np.uint8)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(BOX).save(root / name)


def found(root: Path, images: str | list[Places], masks: MaskPlaces) -> list[tuple]:
    """(stem, image files, mask files) of pairs that are found without errors."""
    pairs, errors = find_pairs(root, [images] if isinstance(images, str) else images, masks)
    assert not errors
    return [
        (pair.stem, *(Path(path).relative_to(root).as_posix() for path in pair.files))
        for pair in pairs
    ]


def test_names_sort_in_natural_order() -> None:
    names = ["10.tif", "2.TIF", "1.png", "a10b2.png", "a9b10.png", "a9b9.png", "01.png"]
    expected = ["01.png", "1.png", "2.TIF", "10.tif", "a9b9.png", "a9b10.png", "a10b2.png"]
    assert sorted(sorted(names), key=natural_key) == expected


def test_hidden_files_and_other_suffixes_are_no_images(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", "images/.hidden.png")
    (tmp_path / "images" / "notes.txt").touch()
    assert [pair[0] for pair in found(tmp_path, "images", "masks")] == ["1"]


def test_the_order_of_pairs_is_independent_of_the_file_system(tmp_path: Path) -> None:
    stems = ["0001", "001", "01", "1", "02", "2", "10"]
    write(tmp_path, *(f"{folder}/{stem}.png" for stem in stems for folder in ("images", "masks")))
    assert [stem for stem, *_ in found(tmp_path, "images", "masks")] == stems


def test_folders_pair_by_stem_whatever_the_suffix(tmp_path: Path) -> None:
    write(tmp_path, "images/2.png", "images/10.jpg", "masks/2.TIF", "masks/10.png")
    assert found(tmp_path, "images", "masks") == [
        ("2", "images/2.png", "masks/2.TIF"),
        ("10", "images/10.jpg", "masks/10.png"),
    ]


def test_equal_names_in_different_folders_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path, "images/a/1.png", "images/b/1.png", "masks/a/1.png", "masks/b/1.png")
    assert [pair[0] for pair in found(tmp_path, "images", "masks/")] == ["a/1", "b/1"]


def test_a_name_separates_masks_from_images_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "1_mask.png", "2.png", "2_mask.png")
    expected = [("1", "1.png", "1_mask.png"), ("2", "2.png", "2_mask.png")]
    assert found(tmp_path, "{stem}.png", "{stem}_mask.png") == expected
    assert found(tmp_path, ".", "{stem}_mask") == expected


def test_a_file_type_separates_masks_from_images_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "all/1.jpg", "all/1.png")
    assert found(tmp_path, "all/{stem}.jpg", "all/{stem}.png") == [("1", "all/1.jpg", "all/1.png")]


def test_patterns_match_files_in_nested_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sub-1/micr/sub-1_SEM.png",
        "sub-2/micr/sub-2_SEM.png",
        "labels/sub-1/micr/sub-1_SEM_seg.png",
        "labels/sub-2/micr/sub-2_SEM_seg.png",
    )
    pairs = found(tmp_path, "sub-*/micr/{stem}_SEM.png", "labels/sub-*/micr/{stem}_SEM_seg.png")
    assert [pair[0] for pair in pairs] == ["sub-1", "sub-2"]
    write(tmp_path, "deep/7/images/7.png", "deep/7/masks/7.png")
    assert found(tmp_path, "deep/{stem}/images/{stem}.png", "deep/{stem}/masks/{stem}.png") == [
        ("7", "deep/7/images/7.png", "deep/7/masks/7.png")
    ]


def test_several_files_are_the_channels_of_an_image(tmp_path: Path) -> None:
    write(tmp_path, "dapi/1.tif", "gfp/1.tif", "masks/1.png")
    assert found(tmp_path, ["dapi/{stem}.tif", "gfp"], "masks") == [
        ("1", "dapi/1.tif", "gfp/1.tif", "masks/1.png")
    ]


def test_a_mask_may_be_a_file_for_each_class(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "axon/1.png", "myelin/1.png")
    assert found(tmp_path, "images", {"axon": "axon", "myelin": "myelin"}) == [
        ("1", "images/1.png", "axon/1.png", "myelin/1.png")
    ]


def test_an_image_without_mask_and_a_mask_without_image_are_errors(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "images/3.png", "masks/1.png", "masks/5.png")
    pairs, errors = find_pairs(tmp_path, ["images"], "masks")
    assert [pair.stem for pair in pairs] == ["1"]
    assert len(errors) == 2
    assert (
        f"{tmp_path}/images: there is no file of the same stem for {tmp_path}/masks/5.png"
        in errors[0]
    )
    assert (
        f"{tmp_path}/masks: there is no file of the same stem for {tmp_path}/images/3.png"
        in errors[1]
    )


def test_a_stem_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "images/3.png", "masks/3.png")
    shutil.copy(tmp_path / "images/3.png", tmp_path / "images/3.bmp")
    _, errors = find_pairs(tmp_path, ["images"], "masks")
    assert len(errors) == 1
    both = f"{tmp_path}/images/3.bmp and {tmp_path}/images/3.png"
    assert errors[0].startswith(f"{both}: have the same stem, expected one file of each stem")


def test_missing_folders_and_patterns_without_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        find_pairs(tmp_path, ["nowhere"], "masks")
    write(tmp_path, "images/1.png")
    with pytest.raises(ValueError, match=r"\{stem\}\.tif: matches no file in .*images \(1 \.png\)"):
        find_pairs(tmp_path, ["images/{stem}.tif"], "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"matches no file in .*empty \(it is empty\), expected"):
        find_pairs(tmp_path, ["empty"], "images")


def test_special_characters_of_regular_expressions_match_themselves(tmp_path: Path) -> None:
    write(tmp_path, "a+b (1)/x.png", "masks/x.png")
    assert found(tmp_path, "a+b (1)", "masks") == [("x", "a+b (1)/x.png", "masks/x.png")]


def test_the_same_place_for_images_and_masks_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "all/1.png")
    for masks in ("all", "all/", "all/{stem}"):
        with pytest.raises(ValueError, match="got the same place for images and masks"):
            find_pairs(tmp_path, ["all"], masks)


def test_upper_case_suffixes_match(tmp_path: Path) -> None:
    write(tmp_path, "images/1.tif", "images/2.TIF", "masks/1.Tif", "masks/2.tif")
    assert len(found(tmp_path, "images/{stem}.tif", "masks/{stem}.TIF")) == 2


def test_patterns_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "img_1.png", "msk_1.png", "a/img_2.png", "a/msk_2.png")
    monkeypatch.chdir(tmp_path)
    pairs, errors = find_pairs(Path(), ["img_{stem}.png"], "msk_{stem}.png")
    assert [pair.stem for pair in pairs] == ["1"]
    assert not errors
    assert len(find_pairs(Path(), ["a/img_{stem}"], "a/msk_{stem}")[0]) == 1


def test_files_that_match_no_pattern_are_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", "masks/1_old.bmp")
    (tmp_path / "images" / "1.txt").touch()
    warnings: list[str] = []
    find_pairs(tmp_path, ["images"], "masks/{stem}.png", warnings=warnings)
    path = f"{tmp_path}/images/1.txt"
    assert warnings == [f"2 other files next to the images and masks, such as {path}"]


def test_links_are_followed_without_cycles(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/1.png", "masks/a/1.png", "images/2.png", "masks/2.png")
    (tmp_path / "images" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert [pair[0] for pair in found(tmp_path, "images", "masks")] == ["2", "a/1"]


def test_links_that_lead_nowhere_and_special_files_are_listed_as_files(tmp_path: Path) -> None:
    """Reading one of them is an error that names it; the others are still read."""
    write(tmp_path, *(f"{folder}/{i}.png" for folder in ("images", "masks") for i in range(5)))
    for i in range(3):
        (tmp_path / f"images/{i}.png").unlink()
    (tmp_path / "images/0.png").symlink_to("0.png")
    (tmp_path / "images/1.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "images/2.png")
    assert len(found(tmp_path, "images", "masks")) == 5


def test_a_folder_that_cannot_be_listed_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", "images/a/2.png")
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("/a"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refuse)
    pairs, errors = find_pairs(tmp_path, ["images"], "masks")
    assert len(pairs) == 1
    assert errors == [f"{tmp_path}/images/a: cannot be listed; correct its permissions"]


def test_excluded_files_are_neither_images_nor_masks(tmp_path: Path) -> None:
    write(tmp_path, *(f"{folder}/{i}.png" for folder in ("images", "masks") for i in range(3)))
    write(tmp_path, "images/legend.png", "images/old/1.png")
    warnings: list[str] = []
    exclude = ["*legend*", "images/old/*", "2.png"]
    pairs, errors = find_pairs(tmp_path, ["images"], "masks", warnings=warnings, exclude=exclude)
    assert [pair.stem for pair in pairs] == ["0", "1"]
    assert not errors
    assert not warnings


def test_names_may_contain_any_character(tmp_path: Path) -> None:
    names = ["a b", "ä", "new\nline", "[1]", "50%", "x'y"]
    write(tmp_path, *(f"{folder}/{name}.png" for folder in ("images", "masks") for name in names))
    assert {pair[0] for pair in found(tmp_path, "images", "masks")} == set(names)


def write_stack(path: Path, pages: int) -> None:
    page = Image.fromarray(BOX)
    page.save(path, save_all=True, append_images=[page] * (pages - 1))


def test_pages_of_a_stack_pair_with_the_pages_of_its_mask(tmp_path: Path) -> None:
    for name in ("volume", "labels"):
        write_stack(tmp_path / f"train-{name}.tif", 3)
    pairs, errors = find_pairs(tmp_path, ["{stem}-volume.tif"], "{stem}-labels.tif", stacks=True)
    assert not errors
    assert [(pair.stem, pair.page) for pair in pairs] == [
        ("train#0", 0),
        ("train#1", 1),
        ("train#2", 2),
    ]
    write_stack(tmp_path / "train-labels.tif", 2)
    pairs, errors = find_pairs(tmp_path, ["{stem}-volume.tif"], "{stem}-labels.tif", stacks=True)
    assert not pairs
    assert "train-labels.tif: got 2 pages, expected 3 as in" in errors[0]


def test_label_images_join_the_pairs_of_their_stem(tmp_path: Path) -> None:
    write(tmp_path, "1.png", "1_mask.png", "1_cells.png", "2.png", "2_mask.png")
    patterns = ["{stem}.png"], "{stem}_mask.png"
    pairs, errors = find_pairs(tmp_path, *patterns, instances="{stem}_cells.png")
    assert [(pair.masks, pair.instances) for pair in pairs] == [
        ((f"{tmp_path}/1_mask.png",), f"{tmp_path}/1_cells.png")
    ]
    assert pairs[0].files[2] == f"{tmp_path}/1_cells.png"
    assert list(PackedPairs(pairs)) == pairs
    assert len(errors) == 1
    assert (
        f"{tmp_path}/{{stem}}_cells.png: there is no file of the same stem for {tmp_path}/2_m"
        in errors[0]
    )
    # A missing mask is named by its image.
    (tmp_path / "1_mask.png").unlink()
    _, errors = find_pairs(tmp_path, *patterns, instances="{stem}_cells.png")
    assert (
        f"{tmp_path}/{{stem}}_mask.png: there is no file of the same stem for {tmp_path}/1.png"
        in errors[0]
    )
    write(tmp_path, "1_mask.png")
    # Masks may themselves be label images.
    pairs, errors = find_pairs(tmp_path, *patterns, instances="{stem}_mask.png")
    assert len(pairs) == 2
    assert all(pair.masks == (pair.instances,) for pair in pairs)


def test_label_images_may_be_stacks(tmp_path: Path) -> None:
    for name in ("images", "masks", "cells"):
        (tmp_path / name).mkdir()
        write_stack(tmp_path / name / "a.tif", 3)
    pairs, errors = find_pairs(tmp_path, ["images"], "masks", stacks=True, instances="cells")
    assert not errors
    assert [(pair.page, pair.instances) for pair in pairs] == [
        (page, f"{tmp_path}/cells/a.tif") for page in range(3)
    ]
    write_stack(tmp_path / "cells" / "a.tif", 2)
    _, errors = find_pairs(tmp_path, ["images"], "masks", stacks=True, instances="cells")
    assert "cells/a.tif: got 2 pages, expected 3 as in" in errors[0]


def test_packed_pairs_are_indexed_as_a_list_is(tmp_path: Path) -> None:
    write(tmp_path, *(f"{folder}/{i}.png" for folder in ("images", "masks") for i in range(3)))
    pairs = find_pairs(tmp_path, ["images"], "masks")[0]
    packed = PackedPairs(pairs)
    assert [packed[i] for i in range(-3, 3)] == pairs + pairs
    assert pairs[1] in packed
    for i in (-4, 3):
        with pytest.raises(IndexError, match=f"got the index {i}, expected one of 3 pairs"):
            packed[i]


def test_packed_pairs_have_no_items_whose_references_a_worker_counts(data_root: Path) -> None:
    pairs = find_pairs(data_root, ["images"], "masks")[0]
    packed = PackedPairs(pairs)
    assert list(packed) == pairs
    assert not any(isinstance(value, list) for value in vars(packed).values())


def test_the_images_of_each_place_belong_to_the_masks_of_the_same_place(tmp_path: Path) -> None:
    places = [f"{site}/{kind}" for site in "ab" for kind in ("images", "masks")]
    write(tmp_path, *(f"{place}/{i}.png" for place in places for i in (2, 10)))
    assert found(tmp_path, [("a/images", "b/images")], ("a/masks", "b/masks")) == [
        (f"{site}/images/{i}", f"{site}/images/{i}.png", f"{site}/masks/{i}.png")
        for site in "ab"
        for i in (2, 10)
    ]


def test_one_folder_of_masks_may_be_for_images_of_several_places(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/2.png", "masks/1.png", "masks/2.png")
    assert found(tmp_path, [("a", "b")], "masks") == [
        ("1", "a/1.png", "masks/1.png"),
        ("2", "b/2.png", "masks/2.png"),
    ]


def test_files_of_several_places_without_counterpart_are_reported(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "b/2.png", "x/1.png", "y/2.png", "y/3.png")
    _, errors = find_pairs(tmp_path, [("a", "b")], ("x", "y"))
    assert len(errors) == 1
    assert errors[0].startswith(
        f"{tmp_path / 'b'}: there is no file of the same stem for {tmp_path / 'y' / '3.png'}"
    )
    write(tmp_path, "b/1.png")
    _, errors = find_pairs(tmp_path, [("a", "b")], "x")
    assert "have the same stem" in errors[0]
    with pytest.raises(ValueError, match="got 2, 3 places"):
        find_pairs(tmp_path, [("a", "b")], ("x", "y", "z"))
    with pytest.raises(ValueError, match="share files"):
        find_pairs(tmp_path, [("a", "./a")], ("x", "y"))


def test_cases_may_hold_equal_names(tmp_path: Path) -> None:
    names = [("case1", "1"), ("case1", "2"), ("case2/day1", "1")]
    write(tmp_path, *(f"{case}/{kind}/s{i}.png" for case, i in names for kind in ("scan", "seg")))
    assert found(tmp_path, "{case}/scan/s{stem}", "{case}/seg/s{stem}") == [
        (f"{case}/{i}", f"{case}/scan/s{i}.png", f"{case}/seg/s{i}.png") for case, i in names
    ]
    write(tmp_path, *(f"masks/{case}/s{i}.png" for case, i in names))
    assert len(found(tmp_path, "{case}/scan", "masks")) == 3


def test_an_empty_folder_named_as_an_image_is_reported_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, "images/1.png", "masks/1.png", "masks/2.png")
    (tmp_path / "images" / "2.png").mkdir()
    pairs, errors = find_pairs(tmp_path, ["images"], "masks")
    assert [pair.stem for pair in pairs] == ["1", "2"]
    assert not errors
    with pytest.raises(FileNotFoundError, match=r"2\.png: is a folder, expected an image"):
        read_header(pairs[1].images[0])
