import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from helpers import files_in, make_config, make_model, values_of
from PIL import Image

from unet import load_model, predict
from unet.build import build_network
from unet.checkpoint import save_checkpoint
from unet.data.normalization import Normalization
from unet.inference.jobs import find_images
from unet.inference.predict import Options, UnpredictedError, predict_files

pytestmark = pytest.mark.usefixtures("workdir")


def test_an_image_that_several_inputs_name_is_predicted_once(
    checkpoint: Path, data_root: Path
) -> None:
    images = data_root / "images"
    inputs = [str(images / "[0-2].png"), str(images / "1.png"), str(images / "5.png")]
    masks = predict_files([checkpoint], inputs, Path("out"))
    assert [path.name for path in masks] == ["0.png", "1.png", "2.png", "5.png"]
    assert sorted(Path("out").iterdir()) == masks


def test_the_name_of_an_image_is_refused_as_folder(checkpoint: Path, data_root: Path) -> None:
    with pytest.raises(ValueError, match=r"out\.png: got the name of an image, expected a folder"):
        predict_files([checkpoint], [str(data_root / "images")], Path("out.png"))
    assert not Path("out.png").exists()


def test_folders_keep_their_structure(checkpoint: Path, data_root: Path) -> None:
    images = data_root / "images"
    (images / "a" / "b").mkdir(parents=True)
    (images / "0.png").rename(images / "a" / "b" / "0.png")
    (images / "1.png").rename(images / "a" / "v1.2.png")
    (images / "a" / ".hidden.png").write_bytes(b"")
    (images / "notes.txt").touch()
    expected = ["2.png", "3.png", "4.png", "5.png", "a/b/0.png", "a/v1.2.png"]
    for i, entry in enumerate((str(images), f"{images}/**/*.png")):
        masks = predict_files([checkpoint], [entry], Path(f"out{i}"))
        assert [path.relative_to(f"out{i}").as_posix() for path in masks] == expected
        assert all(path.is_file() for path in masks)


def test_masks_in_a_folder_of_images_are_not_predicted(checkpoint: Path, data_root: Path) -> None:
    images = data_root / "images"
    (data_root / "link").symlink_to(images)
    for entry in (images, images / "**" / "*.png", data_root / "link"):
        for _ in range(2):
            assert len(predict_files([checkpoint], [str(entry)], images / "out")) == 6
    with pytest.raises(FileNotFoundError, match=r"o\*/\*\.png: matches no file to predict"):
        predict_files([checkpoint], [str(images / "o*" / "*.png")], images / "out")
    # An explicit pattern for them is respected.
    again = predict_files([checkpoint], [str(images / "out" / "*.png")], images / "out" / "two")
    assert len(again) == 6


def test_images_are_never_replaced_by_their_masks(checkpoint: Path, data_root: Path) -> None:
    images = data_root / "images"
    before = values_of(images / "0.png")
    with pytest.raises(ValueError, match=r"0\.png: is an image to predict; choose another output"):
        predict_files([checkpoint], [str(images)], images, overwrite=True)
    assert np.array_equal(values_of(images / "0.png"), before)


def test_two_images_of_one_stem_are_refused(checkpoint: Path, data_root: Path) -> None:
    folders = [str(data_root / "images"), str(data_root / "masks")]
    with pytest.raises(ValueError, match=r"0\.png and .*0\.png: got two images that would both"):
        predict_files([checkpoint], folders, Path("out"))


def test_outputs_that_would_be_one_file_are_refused(checkpoint: Path) -> None:
    Path("in/overlays").mkdir(parents=True)
    for name in ("a", "overlays/a"):
        Image.new("L", (20, 20)).save(f"in/{name}.png")
    with pytest.raises(ValueError, match=r"would both write out/overlays/a\.png"):
        predict_files([checkpoint], ["in"], Path("out"), Options(overlay=True))
    Image.new("L", (20, 20)).save("legend.png")
    with pytest.raises(
        ValueError, match=r"^the legend and legend\.png: .* out/overlays/legend\.png"
    ):
        predict_files([checkpoint], ["legend.png"], Path("out"), Options(overlay=True))
    assert not Path("out").exists()
    predict_files([checkpoint], ["in", "legend.png"], Path("out"))


def test_output_names_that_are_too_long_are_reported_before_work(checkpoint: Path) -> None:
    Path("in").mkdir()
    name = "細" * 84  # 252 bytes, and four of the ending of a mask
    Image.effect_noise((30, 20), 50).save(f"in/{name}", format="png")
    with pytest.raises(ValueError, match=r"細\.png 256 bytes long, expected at most 255; rename"):
        predict_files([checkpoint], [f"in/{name}"], Path("out"), Options(overlay=True))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nowhere.png", r"nowhere\.png: there is no such file or folder"),
        ("nowhere/*.png", r"nowhere/\*\.png: matches no file"),
    ],
)
def test_missing_inputs_are_named(checkpoint: Path, entry: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        predict_files([checkpoint], [entry], Path("out"))
    assert not Path("out").exists()


def test_a_folder_without_images_is_named(checkpoint: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="empty: contains no images"):
        predict_files([checkpoint], ["empty"], Path("out"))
    assert not Path("out").exists()


def test_files_of_a_folder_that_are_not_read_are_named_with_a_converter(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in/sub").mkdir(parents=True)
    for name in ("notes.txt", "Thumbs.db", "a.csv", "sub/b.csv", "scan.nii.gz", ".hidden"):
        Path("in", name).write_text("something")
    Path("in/slice").write_bytes(bytes(128) + b"DICM" + bytes(300))
    Path("in/photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(300))
    Path("in/scan.jxl").write_bytes(b"\xff\x0a" + bytes(300))
    with pytest.raises(ValueError, match=r"(?s)^in: contains no images .*scan\.nii\.gz\): a NIfTI"):
        predict_files([checkpoint], ["in"], Path("out"))
    Image.effect_noise((30, 20), 50).save("in/a.png")
    predict_files([checkpoint], ["in"], Path("out"))
    printed = capsys.readouterr().out.splitlines()
    names = "Thumbs.db, a.csv, notes.txt and 1 more"
    assert f"note: in: did not read 4 files ({names}), not named as an image" in printed
    (nifti,) = [line for line in printed if "scan.nii.gz" in line]
    assert nifti.startswith("warning: in: did not read 1 file (scan.nii.gz): a NIfTI volume; save")
    (dicom,) = [line for line in printed if "slice" in line and line != nifti]
    assert "1 file (slice): a DICOM file; save it as a PNG or TIFF" in dicom
    assert any("(photo.heic): a HEIC file; save it as a PNG" in line for line in printed)
    assert any("(scan.jxl): a JPEG XL file; save it as a PNG" in line for line in printed)


def save_model(tmp_path: Path, **data: Any) -> Path:
    """A model of a data set with other patterns."""
    model = make_model(tmp_path)
    config = replace(model.config, data=replace(model.config.data, **data))
    path = tmp_path / "patterns.pt"
    save_checkpoint(path, replace(model, config=config).contents())
    return path


@pytest.mark.parametrize("place", ["the data set", "a copy", "a folder above"])
def test_label_files_of_a_data_set_are_left_out_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    folders = {"the data set": "set", "a copy": "copy", "a folder above": "."}
    for root in ("set", "copy") if place == "a copy" else ("set",):
        Path(root, "scans").mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((30, 20), 50).save(f"{root}/scans/{i}.jpg")
            Image.new("L", (30, 20)).save(f"{root}/scans/{i}.png")
        Image.effect_noise((30, 20), 50).save(f"{root}/scans/new.png")  # is where no images are
    patterns = {"images": "scans/{stem}.jpg", "masks": "scans/{stem}.png"}
    checkpoint = save_model(tmp_path, root="set", **patterns)
    masks = predict_files([checkpoint], [folders[place]], Path("out"))
    assert [path.name for path in masks] == ["0.png", "1.png", "2.png"]
    notes = capsys.readouterr().out
    assert re.search(
        r"note: .*: left out 3 label files of the data set \(.*0\.png, .*1\.png, .*2\.png\); name ",
        notes,
    )
    assert re.search(r"left out 1 file next to label files .* \(.*scans/new\.png\)", notes)
    subfolder = f"{folders[place]}/scans" if place != "a folder above" else "set/scans"
    assert len(predict_files([checkpoint], [subfolder], Path("other"))) == 3
    given = sorted(map(str, Path("set/scans").glob("*.png")))
    assert len(predict_files([checkpoint], given, Path("given"))) == 4


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{stem}.jpg", "masks/{stem}.png"),
        ("{stem}.jpg", "{stem}.png"),
        ("all/{stem}", "all/{stem}_mask"),
        ("images", "masks/{stem}_mask.png"),
        ("{case}/img_{stem}", "{case}/seg_{stem}"),
    ],
)
def test_images_beside_their_masks_are_predicted_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: str, masks: str
) -> None:
    checkpoint = save_model(tmp_path, root="elsewhere", images=images, masks=masks)
    names = [(Path(one).name if "{stem}" in one else "{stem}") for one in (images, masks)]
    image, mask = (name if Path(name).suffix else f"{name}.png" for name in names)
    for stem in ("x", "y.2", "unlabelled"):
        for folder in ("new", "new/more"):
            Path(folder).mkdir(exist_ok=True)
            Image.effect_noise((30, 20), 50).save(f"{folder}/{image.format(stem=stem)}")
            if stem != "unlabelled":
                Image.new("L", (30, 20)).save(f"{folder}/{mask.format(stem=stem)}")
    Image.new("L", (30, 20)).save(f"new/{mask.format(stem='alone')}")  # a mask without an image
    written = predict_files([checkpoint], ["new"], Path("out"))
    expected = [image.format(stem=stem) for stem in ("unlabelled", "x", "y.2")] * 2
    assert sorted(path.stem for path in written) == sorted(Path(name).stem for name in expected)
    notes = capsys.readouterr().out
    assert "left out 4 label files" in notes
    assert "left out 1 file next to label files" in notes


def test_label_files_of_other_classes_are_left_out_and_named(tmp_path: Path) -> None:
    names = ("1_sem", "2_sem", "3_sem", "labels/1_seg-all", "labels/2_seg-all", "labels/1_seg-axon")
    for name in names:
        (tmp_path / f"data/{name}").parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20)).save(tmp_path / f"data/{name}.png")
    patterns = "data.images='{stem}_sem'", "data.masks=labels/{stem}_seg-all"
    config = make_config(tmp_path / "data", *patterns)
    found = find_images([str(tmp_path / "data")], config, Path("out"))
    assert [Path(name).name for name, _ in found.images] == ["1_sem", "2_sem", "3_sem"]
    assert "left out 2 label files" in found.notes[0]
    assert "describe (labels/1_seg-axon.png)" in found.notes[1]
    # A file that the user names is predicted.
    alone = find_images([str(tmp_path / "data/labels/1_seg-axon.png")], config, Path("out"))
    assert len(alone.images) == 1


def test_label_files_of_one_of_several_places_are_left_out(tmp_path: Path) -> None:
    patterns = {
        "images": ["a/{stem}.jpg", "{case}/scans/{stem}.jpg"],
        "masks": ["a/{stem}.png", "{case}/scans/{stem}.png"],
    }
    checkpoint = save_model(tmp_path, root="elsewhere", **patterns)
    for folder in ("one/a", "two/case1/scans", "two/case2/scans"):
        Path(folder).mkdir(parents=True)
        for ending in ("jpg", "png"):
            Image.effect_noise((30, 20), 50).save(f"{folder}/1.{ending}")
    assert len(predict_files([checkpoint], ["one"], Path("out"))) == 1
    assert len(predict_files([checkpoint], ["two"], Path("other"))) == 2


def test_a_folder_of_masks_alone_is_refused(checkpoint: Path, data_root: Path) -> None:
    model = load_model(checkpoint)
    assert Path(model.config.data.root) != data_root
    data = replace(model.config.data, root=str(data_root))
    contents = replace(model, config=replace(model.config, data=data)).contents()
    save_checkpoint(checkpoint, contents)
    with pytest.raises(ValueError, match=r"masks: contains no images .*\n.*left out 6 label files"):
        predict_files([checkpoint], [str(data_root / "masks")], Path("out"))
    assert len(predict_files([checkpoint], [str(data_root)], Path("out"))) == 6


def test_a_missing_channel_is_an_error_of_its_image(tmp_path: Path) -> None:
    for folder in ("red", "green"):
        Path("in", folder).mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((30, 20), 50).save(f"in/{folder}/{i}.png")
    Path("in/green/1.png").unlink()
    config = make_config(tmp_path, "model.in_channels=2", "data.channels=[red, green]")
    net = build_network(config, torch.device("cpu"))
    normalization = Normalization(mean=(0.4, 0.4), std=(0.2, 0.2))
    model = replace(make_model(tmp_path), config=config, net=net, normalization=normalization)
    save_checkpoint(Path("model.pt"), model.contents())
    with pytest.raises(
        UnpredictedError, match=r"green: there is no file of the same stem for in/red/1\.png"
    ) as caught:
        predict_files([Path("model.pt")], ["in"], Path("out"))
    assert "1 of 3 images were not predicted" in str(caught.value)
    assert files_in("out") == ["0.png", "2.png"]


def test_channels_that_a_setting_names_are_no_stack(tmp_path: Path) -> None:
    model = make_model(tmp_path, "model.in_channels=4", "data.axes=CYX")
    normalization = Normalization(mean=(0.4,) * 4, std=(0.2,) * 4)
    save_checkpoint(tmp_path / "best.pt", replace(model, normalization=normalization).contents())
    pages = np.random.default_rng(0).integers(0, 255, (4, 24, 20), dtype=np.uint8)
    tifffile.imwrite("a.tif", pages, photometric="minisblack")
    (mask,) = predict_files([tmp_path / "best.pt"], ["a.tif"], Path("out"))
    assert mask == Path("out/a.png")
    assert np.array_equal(
        values_of(mask), predict(tmp_path / "best.pt", pages.transpose(1, 2, 0)) * 200
    )
