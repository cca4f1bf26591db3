from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HEIGHT, WIDTH, make_model
from PIL import Image
from test_images import write_png16

from unet import load_model, predict
from unet.checkpoint import save_checkpoint
from unet.images import read_image, to_float
from unet.prediction import predict_files

pytestmark = pytest.mark.usefixtures("workdir")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained network that draws both classes."""
    torch.manual_seed(3)
    model = make_model(tmp_path)
    torch.nn.init.normal_(model.net.head.weight)
    path = tmp_path / "best.pt"
    save_checkpoint(path, model, {})
    return path


def values_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_masks_have_the_images_size_and_the_training_masks_values(
    checkpoint: Path, data_root: Path
) -> None:
    masks = predict_files([checkpoint], [str(data_root / "images")], Path("out"))
    assert [path.name for path in masks] == [f"{i}.png" for i in range(6)]
    ids = predict(load_model(checkpoint), data_root / "images" / "0.png")
    assert set(np.unique(ids)) == {0, 1}
    assert values_of(masks[0]).shape == (HEIGHT, WIDTH)
    assert np.array_equal(values_of(masks[0]), ids * 200)


def test_files_folders_and_patterns_are_each_taken_once(checkpoint: Path, data_root: Path) -> None:
    images = data_root / "images"
    inputs = [str(images / "[0-2].png"), str(images / "1.png"), str(images / "5.png")]
    masks = predict_files([checkpoint], inputs, Path("out"))
    assert [path.name for path in masks] == ["0.png", "1.png", "2.png", "5.png"]
    assert sorted(Path("out").iterdir()) == masks


def test_files_pillow_images_and_arrays_give_the_same(checkpoint: Path, data_root: Path) -> None:
    model, path = load_model(checkpoint), data_root / "images" / "0.png"
    ids = predict(model, str(path))
    assert ids.dtype == np.uint8
    assert np.array_equal(predict(model, values_of(path)), ids)
    with Image.open(path) as image:
        assert np.array_equal(predict(model, image), ids)
    logits = model.logits(torch.from_numpy(to_float(read_image(path, 1))))
    assert np.array_equal(logits.argmax(0).numpy(), ids)


def test_a_pillow_image_is_turned_as_its_file_is(checkpoint: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.effect_noise((40, 20), 50).save(tmp_path / "a.png", exif=exif)
    model = load_model(checkpoint)
    ids = predict(model, tmp_path / "a.png")
    assert ids.shape == (40, 20)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(predict(model, image), ids)


def test_open_images_that_are_cut_or_damaged_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    model, path = load_model(checkpoint), tmp_path / "a.png"
    write_png16(path, np.full((20, 20, 3), 9000, np.uint16))
    with Image.open(path) as image, pytest.raises(ValueError, match="give its path instead"):
        predict(model, image)
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with Image.open(path) as image, pytest.raises(ValueError, match="image: cannot be decoded"):
        predict(model, image)


def test_tiles_can_be_asked_for(checkpoint: Path, data_root: Path) -> None:
    image = str(data_root / "images" / "0.png")
    overrides = ["tiling={size: [16, 16], overlap: 8}"]
    masks = predict_files([checkpoint], [image], Path("out"), overrides=overrides)
    assert values_of(masks[0]).shape == (HEIGHT, WIDTH)


def test_overlays_lie_beside_the_masks(checkpoint: Path, data_root: Path) -> None:
    image = data_root / "images" / "0.png"
    predict_files([checkpoint], [str(image)], Path("out"), draw_overlay=True)
    assert sorted(path.name for path in Path("out").iterdir()) == ["0.png", "0_overlay.png"]
    overlay, mask = values_of(Path("out/0_overlay.png")), values_of(Path("out/0.png"))
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    orange = overlay[mask == 200].astype(int)  # the second class's colour
    assert (orange[:, 0] > orange[:, 2]).all()


def test_masks_that_exist_are_kept_unless_asked(checkpoint: Path, data_root: Path) -> None:
    Path("out").mkdir()
    Path("out/3.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"3\.png: exists; pass --overwrite"):
        predict_files([checkpoint], [str(data_root / "images")], Path("out"))
    assert [path.name for path in Path("out").iterdir()] == ["3.png"]
    assert Path("out/3.png").read_text() == "mine"
    predict_files([checkpoint], [str(data_root / "images")], Path("out"), overwrite=True)
    assert len(list(Path("out").iterdir())) == 6


def test_images_are_never_replaced_by_their_masks(checkpoint: Path, data_root: Path) -> None:
    images = data_root / "images"
    before = values_of(images / "0.png")
    with pytest.raises(ValueError, match=r"0\.png: is an image to predict; give another folder"):
        predict_files([checkpoint], [str(images)], images, overwrite=True)
    assert np.array_equal(values_of(images / "0.png"), before)


def test_an_unreadable_image_is_named_and_loses_no_other(checkpoint: Path, data_root: Path) -> None:
    (data_root / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png: cannot be read.*\n1 of 6 images were not"):
        predict_files([checkpoint], [str(data_root / "images")], Path("out"))
    assert len(list(Path("out").iterdir())) == 5


def test_colour_images_are_refused_by_a_grey_model(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(ValueError, match=r"red\.png: got an image of 3 channel"):
        predict_files([checkpoint], [str(tmp_path / "red.png")], Path("out"))


def test_two_images_of_one_stem_are_refused(checkpoint: Path, data_root: Path) -> None:
    folders = [str(data_root / "images"), str(data_root / "masks")]
    with pytest.raises(ValueError, match=r"0\.png and .*0\.png: got two images of one stem"):
        predict_files([checkpoint], folders, Path("out"))


def test_an_overlay_name_that_is_a_mask_name_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a_overlay.png"):
        Image.new("L", (20, 20)).save(tmp_path / "in" / name)
    with pytest.raises(ValueError, match=r"a_overlay\.png: .*both an overlay and a mask"):
        predict_files([checkpoint], [str(tmp_path / "in")], Path("out"), draw_overlay=True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nowhere.png", r"nowhere\.png: there is no such file or folder"),
        ("nowhere/*.png", r"nowhere/\*\.png: matches no file"),
    ],
)
def test_inputs_that_are_not_there_are_named(checkpoint: Path, entry: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        predict_files([checkpoint], [entry], Path("out"))
    assert not Path("out").exists()


def test_an_output_that_is_a_file_is_refused(checkpoint: Path, data_root: Path) -> None:
    Path("out").touch()
    with pytest.raises(FileExistsError, match="out: is a file"):
        predict_files([checkpoint], [str(data_root / "images")], Path("out"))
