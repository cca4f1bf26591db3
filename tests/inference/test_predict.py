import errno
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from helpers import (
    HEIGHT,
    WIDTH,
    draw,
    files_in,
    make_model,
    values_of,
    write_png16,
    write_raster,
)
from PIL import Image, ImageSequence

from unet import load_model, predict
from unet.checkpoint import save_checkpoint
from unet.cli.main import main
from unet.data.image_io import read_image, to_float
from unet.data.image_types import ReadOptions
from unet.data.label_images import clean, number_objects
from unet.inference.predict import Options, UnpredictedError, predict_files
from unet.inference.sliding_window import sliding_window
from unet.inference.tta import View, mean_probabilities
from unet.visualize import objects_to_rgb
from unet.visualize import overlay as draw_overlay

pytestmark = pytest.mark.usefixtures("workdir")


def test_masks_have_the_size_of_the_image_and_the_values_of_the_training_masks(
    checkpoint: Path, data_root: Path
) -> None:
    masks = predict_files([checkpoint], [str(data_root / "images")], Path("out"))
    assert [path.name for path in masks] == [f"{i}.png" for i in range(6)]
    ids = predict(load_model(checkpoint), data_root / "images" / "0.png")
    assert set(np.unique(ids)) == {0, 1}
    assert values_of(masks[0]).shape == (HEIGHT, WIDTH)
    assert np.array_equal(values_of(masks[0]), ids * 200)


def test_files_pillow_images_and_arrays_give_the_same_mask(
    checkpoint: Path, data_root: Path
) -> None:
    model, path = load_model(checkpoint), data_root / "images" / "0.png"
    ids = predict(model, str(path))
    assert ids.dtype == np.uint8
    assert np.array_equal(predict(model, values_of(path)), ids)
    with Image.open(path) as image:
        assert np.array_equal(predict(model, image), ids)
    logits = model.logits(torch.from_numpy(to_float(read_image(path, 1))))
    assert np.array_equal(logits.argmax(0).numpy(), ids)


def test_the_orientation_of_a_pillow_image_is_applied(checkpoint: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.effect_noise((40, 20), 50).save(tmp_path / "a.png", exif=exif)
    model = load_model(checkpoint)
    ids = predict(model, tmp_path / "a.png")
    assert ids.shape == (40, 20)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(predict(model, image), ids)


def test_open_images_that_pillow_reads_wrong_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    model, path = load_model(checkpoint), tmp_path / "a.png"
    write_png16(path, np.full((20, 20, 3), 9000, np.uint16))
    with Image.open(path) as image, pytest.raises(ValueError, match="give its path instead"):
        predict(model, image)
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with Image.open(path) as image, pytest.raises(ValueError, match="image: cannot be decoded"):
        predict(model, image)


def test_overrides_change_the_tiles(checkpoint: Path, data_root: Path) -> None:
    image = str(data_root / "images" / "0.png")
    overrides = ["tiling={size: [16, 16], overlap: 8}"]
    masks = predict_files([checkpoint], [image], Path("out"), overrides=overrides)
    assert values_of(masks[0]).shape == (HEIGHT, WIDTH)


def test_overlays_are_written_apart_from_the_masks_with_a_legend(
    checkpoint: Path, data_root: Path
) -> None:
    image = data_root / "images" / "0.png"
    predict_files([checkpoint], [str(image)], Path("out"), Options(overlay=True))
    assert files_in("out") == ["0.png", "overlays/0.png", "overlays/legend.png"]
    overlay, mask = values_of(Path("out/overlays/0.png")), values_of(Path("out/0.png"))
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    orange = overlay[mask == 200].astype(int)  # the second class's colour
    assert (orange[:, 0] > orange[:, 2]).all()
    assert (overlay[mask == 0] == values_of(image)[mask == 0][:, None]).all()
    legend = values_of(Path("out/overlays/legend.png")).reshape(-1, 3).tolist()
    assert {tuple(colour) for colour in legend} >= set(load_model(checkpoint).classes.colours)


def test_objects_have_colours_of_their_own_in_overlays(checkpoint: Path, data_root: Path) -> None:
    image = str(data_root / "images" / "0.png")
    predict_files([checkpoint], [image], Path("out"), Options(overlay=True, instances=True))
    # A legend of the classes would name colours that the overlay does not have.
    assert files_in("out") == ["0.png", "instances/0.tif", "overlays/0.png"]
    overlay, numbers = values_of(Path("out/overlays/0.png")), values_of(Path("out/instances/0.tif"))
    picture = values_of(Path(image))[..., None].repeat(3, 2)
    assert np.array_equal(
        overlay,
        draw_overlay(picture, numbers, objects_to_rgb(numbers)),
    )


def test_an_unreadable_image_is_reported_and_the_others_predicted(
    checkpoint: Path, data_root: Path
) -> None:
    (data_root / "images" / "2.png").write_bytes(b"no image")
    expected = r"2\.png: cannot be read.*\n1 of 6 images were not"
    with pytest.raises(UnpredictedError, match=expected):
        predict_files([checkpoint], [str(data_root / "images")], Path("out"))
    assert len(list(Path("out").iterdir())) == 5


@pytest.mark.parametrize(
    "place", ["unet.inference.tta.View.undo", "unet.inference.predictor.sliding_window"]
)
def test_an_image_too_large_for_memory_is_reported_and_the_others_predicted(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    for i in range(3):
        Image.effect_noise((30, 20 + (i == 1)), 50).save(f"{i}.png")

    def fill(*arguments: Any, **settings: Any) -> torch.Tensor:
        if any(torch.is_tensor(one) and 21 in one.shape for one in arguments):
            torch.empty(2**55)
        return original(*arguments, **settings)

    original = View.undo if "tta" in place else sliding_window
    monkeypatch.setattr(place, fill)
    images, out = ["0.png", "1.png", "2.png"], Path("out")
    advice = "read TIFFs in windows" if "tta" in place else "an image of 21 x 30 pixels"
    expected = rf"^1\.png: out of memory \(.*\); {advice}.*\n1 of 3 images were not"
    with pytest.raises(UnpredictedError, match=expected):
        predict_files([checkpoint], images, out, Options(probabilities=True))
    names = ["0.png", "2.png", "probabilities/0.tif", "probabilities/2.tif"]
    assert files_in(out) == names


def test_a_file_that_cannot_be_written_ends_the_run(
    checkpoint: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, error in ((errno.ENOENT, FileNotFoundError), (errno.ENOSPC, OSError)):

        def refuse(path: Path, *_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr("unet.inference.predict_pages.save_picture", refuse)
        with pytest.raises(error, match=rf"{os.strerror(number)}: 'out/0\.png'"):
            predict_files([checkpoint], [str(data_root / "images")], Path("out"))


def test_no_folder_is_made_if_no_image_can_be_read(checkpoint: Path) -> None:
    Path("broken.png").write_bytes(b"no image")
    with pytest.raises(UnpredictedError, match=r"broken\.png: cannot be read"):
        predict_files([checkpoint], ["broken.png"], Path("new/masks"), Options(overlay=True))
    assert not Path("new").exists()


def test_colour_images_are_refused_by_a_grey_model(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(ValueError, match=r"red\.png: got an image of 3 channel"):
        predict_files([checkpoint], [str(tmp_path / "red.png")], Path("out"))


def test_an_output_folder_that_cannot_be_written_is_reported_before_work(
    checkpoint: Path, data_root: Path
) -> None:
    Path("file").touch()
    for out in (Path("file"), Path("file/masks")):
        with pytest.raises(FileExistsError, match="is a file"):
            predict_files([checkpoint], [str(data_root / "images")], out)


def test_missing_pixels_get_the_mean_of_the_training_images(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    mean = float(model.members[0].normalization.mean[0])
    pixels = np.full((20, 30), 0.5, np.float32)
    filled = pixels.copy()
    pixels[3:9, 4:9], filled[3:9, 4:9] = np.nan, mean
    Image.fromarray(pixels).save("a.tif")
    predict_files([checkpoint], ["a.tif"], Path("out"))
    expected = predict(model, filled)
    assert np.array_equal(values_of(Path("out/a.png")), expected * 200)
    for array in (pixels, Image.fromarray(pixels)):
        assert np.array_equal(predict(model, array), expected)


def test_infinite_values_are_an_error(checkpoint: Path) -> None:
    pixels = np.full((20, 30), 0.5, np.float32)
    pixels[3, 4] = -np.inf
    Image.fromarray(pixels).save("a.tif")
    with pytest.raises(UnpredictedError, match=r"a\.tif: got 1 value of infinity or beyond"):
        predict_files([checkpoint], ["a.tif"], Path("out"))
    assert not Path("out").exists()
    with pytest.raises(ValueError, match=r"image: got 1 value of infinity or beyond"):
        predict(load_model(checkpoint), pixels)


def pages_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as file:
        return [np.asarray(page) for page in ImageSequence.Iterator(file)]


@pytest.mark.parametrize("ending", ["tif", "gif"])
def test_stacks_are_predicted_page_by_page(checkpoint: Path, data_root: Path, ending: str) -> None:
    pages = [Image.open(path) for path in sorted((data_root / "images").iterdir())]
    pages[0].save(f"stack.{ending}", save_all=True, append_images=pages[1:])
    options = Options(overlay=True, probabilities=True, instances=True)
    predict_files([checkpoint], [f"stack.{ending}"], Path("out"), options)
    masks = pages_of(Path("out/stack.tif"))
    model = load_model(checkpoint)
    assert len(masks) == 6
    for i, mask in enumerate(masks):
        ids = predict(model, read_image(f"stack.{ending}", 1, i)[0])
        assert np.array_equal(mask, ids * 200)
    assert len(pages_of(Path("out/overlays/stack.tif"))) == 6
    assert len(pages_of(Path("out/probabilities/stack.tif"))) == 12
    numbers = pages_of(Path("out/instances/stack.tif"))
    assert [page.dtype for page in numbers] == [np.dtype("int32")] * 6


@pytest.mark.parametrize("name", ["big.tif", "geo.tif", "a.webp", "a.npy"])
def test_stacks_of_any_format_are_predicted_page_by_page(
    checkpoint: Path, data_root: Path, name: str
) -> None:
    paths = sorted((data_root / "images").iterdir())[:2]
    pages = np.stack([np.asarray(Image.open(path)) for path in paths])
    place = [(33550, 12, 3, (1.0, 1.0, 0.0)), (33922, 12, 6, (0.0, 0.0, 0.0, 5.0, 9.0, 0.0))]
    match name:
        case "a.npy":
            np.save(name, pages)
        case "a.webp":
            frames = [Image.fromarray(page).convert("RGB") for page in pages]
            frames[0].save(name, save_all=True, append_images=frames[1:], lossless=True)
        case _:
            is_big = name == "big.tif"
            tags = [] if is_big else place
            tifffile.imwrite(name, pages, bigtiff=is_big, metadata={"axes": "ZYX"}, extratags=tags)
    overrides = ["data.axes=ZYX"] if name == "a.npy" else ()
    model = load_model(checkpoint, overrides=overrides)
    predict_files([checkpoint], [name], Path("out"), overrides=overrides)
    for mask, page in zip(pages_of(Path("out") / f"{Path(name).stem}.tif"), pages, strict=True):
        assert np.array_equal(mask, predict(model, page) * 200)


def test_a_damaged_page_leaves_no_mask_of_the_stack(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [Image.effect_noise((30, 20), 50) for _ in range(3)]
    pages[0].save("stack.tif", save_all=True, append_images=pages[1:])

    def read(
        files: tuple[str, ...], in_channels: int, page: int, options: ReadOptions
    ) -> np.ndarray:
        if page == 2:
            raise ValueError("damaged")
        return read_image(files, in_channels, page, options)

    monkeypatch.setattr("unet.inference.predict_pages.read_image", read)
    with pytest.raises(UnpredictedError, match="damaged\n1 of 1 images"):
        predict_files([checkpoint], ["stack.tif"], Path("out"))
    assert not list(Path("out").iterdir())


def test_stacks_too_large_for_a_tiff_become_bigtiffs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Image.effect_noise((30, 20), 50)
    page.save("stack.tif", save_all=True, append_images=[page, page])
    options = Options(probabilities=True)
    predict_files([checkpoint], ["stack.tif"], Path("small"), options)
    monkeypatch.setattr("unet.data.tiff_stack._LARGEST_TIFF", 3 * 2 * 4 * 30 * 20 - 1)
    predict_files([checkpoint], ["stack.tif"], Path("large"), options)
    for name, formats in (("stack", (b"*\0", b"*\0")), ("probabilities/stack", (b"*\0", b"+\0"))):
        small, large = Path(f"small/{name}.tif"), Path(f"large/{name}.tif")
        assert (small.read_bytes()[2:4], large.read_bytes()[2:4]) == formats
        for one, other in zip(pages_of(small), pages_of(large), strict=True):
            assert np.array_equal(one, other)


def test_probabilities_are_a_page_for_each_class(checkpoint: Path, data_root: Path) -> None:
    image = data_root / "images" / "0.png"
    predict_files([checkpoint], [str(image)], Path("out"), Options(probabilities=True))
    pages = pages_of(Path("out/probabilities/0.tif"))
    assert [page.dtype for page in pages] == [np.dtype("float32")] * 2
    np.testing.assert_allclose(pages[0] + pages[1], 1, atol=1e-6)
    assert np.array_equal(values_of(Path("out/0.png")) == 200, pages[1] > pages[0])


def test_a_threshold_applies_to_the_probability_of_the_second_class(
    checkpoint: Path, data_root: Path
) -> None:
    image, model = data_root / "images" / "0.png", load_model(checkpoint)
    pixels = torch.from_numpy(to_float(read_image(image, 1)))
    foreground = model.logits(pixels).softmax(0)[1].numpy()
    for threshold in (0.0, 0.3, 0.9):
        ids = predict(model, image, threshold=threshold)
        assert np.array_equal(ids, foreground >= threshold)
    with pytest.raises(ValueError, match=r"^threshold: got 1\.5, expected 0 to 1"):
        Options(threshold=1.5)
    with pytest.raises(ValueError, match=r"^min_size: got -1, expected 0 pixels or more"):
        Options(min_size=-1)


def test_a_threshold_needs_two_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model(tmp_path)
    data = replace(model.config.data, classes={"a": 0, "b": 1, "c": 2})
    model = replace(model, config=replace(model.config, data=data))
    with pytest.raises(ValueError, match=r"^threshold: got a model of 3 classes, expected one of"):
        predict(model, np.zeros((20, 20), np.uint8), threshold=0.5)


def test_small_objects_are_removed_and_the_others_numbered(
    checkpoint: Path, data_root: Path
) -> None:
    image, model = data_root / "images" / "0.png", load_model(checkpoint)
    raw = predict(model, image)
    for settings in ({"min_size": 3}, {"keep_largest": True}):
        options = Options(instances=True, **settings)
        ids = predict(model, image, **settings)
        assert np.array_equal(ids, clean(raw, **settings))
        assert not np.array_equal(ids, raw)
        predict_files([checkpoint], [str(image)], Path("out"), options, overwrite=True)
        assert np.array_equal(values_of(Path("out/0.png")), ids * 200)
        numbers = values_of(Path("out/instances/0.tif"))
        assert numbers.dtype == np.int32
        assert np.array_equal(numbers, number_objects(ids))


def test_any_number_of_objects_is_written_to_the_same_file(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (512, 320)).save("a.png")
    ids = np.zeros((320, 512), np.uint8)
    monkeypatch.setattr("unet.inference.predictor.Predictor.predict", lambda *_: torch.tensor(ids))
    for count in (0, 320 * 512 // 2):  # more than 16 bits have
        if count:
            ids[::2, ::2] = 1
            ids[1::2, 1::2] = 1
        predict_files([checkpoint], ["a.png"], Path("out"), Options(instances=True), overwrite=True)
        assert files_in("out") == ["a.png", "instances/a.tif"]
        assert values_of(Path("out/instances/a.tif")).max() == count


def test_views_of_files_are_averaged(checkpoint: Path, data_root: Path) -> None:
    image, model = data_root / "images" / "0.png", load_model(checkpoint)
    options = Options(tta=("flips", "scales"))
    predict_files([checkpoint], [str(image)], Path("out"), options)
    pixels = torch.from_numpy(to_float(read_image(image, 1)))
    ids = mean_probabilities(model, pixels, options.tta).argmax(0).numpy()
    assert np.array_equal(values_of(Path("out/0.png")), ids * 200)
    assert not np.array_equal(ids, predict(model, image))


def test_progress_bars_count_images_pages_and_tiles(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Image.effect_noise((52, 36), 50)
    page.save("stack.tif", save_all=True, append_images=[page])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    overrides = ["tiling={size: [16, 16], overlap: 8}"]
    predict_files([checkpoint], ["stack.tif"], Path("out"), overrides=overrides)
    shown = capsys.readouterr().err
    assert re.search(r"predict 1/1 .*image", shown)
    assert re.search(r"stack\.tif \d/2 .*page", shown)
    assert re.search(r"stack\.tif \d+/24 .*tile", shown)


def write_weird_files(folder: Path) -> list[str]:
    """Write files that are no readable images, named as images."""
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dead.png").symlink_to("nowhere")
    (folder / "folder.png").mkdir()
    noise = Image.effect_noise((300, 300), 50)
    noise.save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    noise.save(folder / "huge.tif")
    tags = (folder / "huge.tif").read_bytes()  # width and height are of type LONG
    for tag in (256, 257):
        size = struct.pack("<HHI", tag, 4, 1)
        tags = tags.replace(size + struct.pack("<I", 300), size + struct.pack("<I", 2**31 - 1))
    (folder / "huge.tif").write_bytes(tags)
    write_raster(str(folder / "claim.tif"), draw(40, 30))
    tags = (folder / "claim.tif").read_bytes()
    for tag, side in ((256, 30), (257, 40)):
        size = struct.pack("<HHI", tag, 3, 1)
        tags = tags.replace(size + struct.pack("<I", side), size + struct.pack("<I", 65535))
    (folder / "claim.tif").write_bytes(tags)
    return sorted(path.name for path in folder.iterdir())


def test_whatever_is_no_readable_image_is_named_and_the_others_predicted(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    names = write_weird_files(Path("in"))
    assert len(names) == 9
    for name in ("a", "m", "z"):
        Image.effect_noise((30, 20), 50).save(f"in/{name}.png")
    assert main(["predict", str(checkpoint), "in", "-o", "out"]) == 1
    error = capsys.readouterr().err
    assert files_in("out") == ["a.png", "m.png", "z.png"]
    *lines, last = error.removeprefix("error: ").splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [f"in/{name}" for name in names]
    assert last == "9 of 12 images were not predicted"
    assert "Traceback" not in error
    for name in names:  # as arguments
        assert main(["predict", str(checkpoint), f"in/{name}", "-o", "out"]) in (1, 2)
        assert capsys.readouterr().err.startswith(f"error: in/{name}")


@pytest.mark.parametrize(
    "error",
    [KeyError("tag"), RuntimeError("decoder"), OSError(5, "Input/output error"), EOFError()],
)
def test_any_error_of_reading_a_file_is_one_of_that_file(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in "abc":
        Image.effect_noise((30, 20), 50).save(f"{name}.png")

    def read(files: tuple[str, ...], *arguments: Any) -> np.ndarray:
        if "b.png" in files:
            raise error
        return read_image(files, *arguments)

    monkeypatch.setattr("unet.inference.predict_pages.read_image", read)
    with pytest.raises(UnpredictedError, match=r"^b\.png: cannot be read \(.+\)\n1 of 3 images"):
        predict_files([checkpoint], ["a.png", "b.png", "c.png"], Path("out"))
    assert files_in("out") == ["a.png", "c.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_without_permission_are_named(checkpoint: Path) -> None:
    Path("in/secret").mkdir(parents=True)
    for name in ("a", "b", "secret/c"):
        Image.effect_noise((30, 20), 50).save(f"in/{name}.png")
    Path("in/b.png").chmod(0)
    Path("in/secret").chmod(0)
    try:
        with pytest.raises(UnpredictedError) as caught:
            predict_files([checkpoint], ["in"], Path("out"))
    finally:
        Path("in/secret").chmod(0o700)
    assert "in/secret: cannot be listed; correct its permissions" in str(caught.value)
    assert "in/b.png: cannot be read (permission denied)" in str(caught.value)
    assert files_in("out") == ["a.png"]


def test_predictions_is_the_folder_if_none_is_given(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((30, 20), 50).save("a.png")
    assert predict_files([checkpoint], ["a.png"]) == [Path("predictions/a.png")]
    assert "predicted 1 of 1 images into predictions" in capsys.readouterr().out


def test_masks_are_renamed_without_waiting_for_the_disk(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Image.effect_noise((30, 20), 50)
    page.save("a.png")
    page.save("stack.tif", save_all=True, append_images=[page])
    calls: list[int] = []
    monkeypatch.setattr("os.fsync", calls.append)
    options = Options(overlay=True, probabilities=True, instances=True)
    predict_files([checkpoint], ["a.png", "stack.tif"], Path("out"), options)
    assert calls == []
    save_checkpoint(Path("copy.pt"), load_model(checkpoint).contents())
    assert calls


def test_a_checkpoint_is_loaded_for_an_image(checkpoint: Path, data_root: Path) -> None:
    image = data_root / "images" / "0.png"
    expected = predict(load_model(checkpoint), image)
    assert np.array_equal(predict(checkpoint, image), expected)
    assert np.array_equal(predict(str(checkpoint), str(image)), expected)
    assert np.array_equal(predict(checkpoint.parent, image), expected)  # the folder of a run
    assert predict([checkpoint, checkpoint], image).shape == expected.shape
    predict_files([checkpoint.parent], [str(image)], Path("out"))
    assert np.array_equal(values_of(Path("out/0.png")), expected * 200)


def test_wrong_arguments_are_named(checkpoint: Path) -> None:
    model, image = load_model(checkpoint), np.zeros((20, 30), np.uint8)
    for call, error, message in (
        (lambda: predict(model, None), TypeError, "^image: got None, expected a path, a Pillow"),
        (lambda: predict(model, [[1, 2]]), TypeError, "^image: got an object of type list"),
        (lambda: predict(model, torch.zeros(20, 30)), TypeError, "^image: got an .* Tensor"),
        (lambda: predict(model, np.zeros((0, 5), np.uint8)), ValueError, "^image: got an array"),
        (lambda: predict(model, image.astype(object)), ValueError, "^image: .* dtype object"),
        (lambda: predict(model, image.astype(complex)), ValueError, "^image: .* dtype complex"),
        (lambda: predict(model, image[0]), ValueError, r"^image: got an array of shape \(30,\)"),
        (lambda: predict(model, "nowhere.png"), FileNotFoundError, "^nowhere.png: there is no"),
        (lambda: predict(None, image), TypeError, "^model: got None, expected a model from load"),
        (lambda: predict(model.net, image), TypeError, "^model: got an object of type UNet"),
        (lambda: predict("nowhere.pt", image), FileNotFoundError, "nowhere.pt"),
        (lambda: predict(model, image, tta="flips"), ValueError, "^tta: got 'flips', expected"),
        (
            lambda: predict(model, image, probabilities=True, min_size=3),
            ValueError,
            "^probabilities: got it with threshold, min_size or keep_largest",
        ),
        (lambda: Options(tta=("flip",)), ValueError, r"^tta: got \('flip',\), expected .*flips, t"),
        (lambda: Options(tta="flips"), ValueError, "^tta: got 'flips', expected a list of some of"),
        (lambda: Options(threshold="0.5"), ValueError, "^threshold: got '0.5', expected 0 to 1"),
        (lambda: Options(threshold=float("nan")), ValueError, "^threshold: got nan"),
        (lambda: Options(min_size=2.5), ValueError, "^min_size: got 2.5, expected 0 pixels"),
        (lambda: Options(overlay="no"), ValueError, "^overlay: got 'no', expected True or False"),
        (lambda: load_model([]), ValueError, "^path: got an empty list, expected one checkpoint"),
        (lambda: load_model(None), TypeError, "^path: got None, expected the path of a checkp"),
        (lambda: load_model([None]), TypeError, "^path: got .None., expected the path"),
        (lambda: load_model({"model": 1}), TypeError, "^path: got {'model': 1}, expected the path"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_arrays_of_any_byte_order_and_numbers_are_predicted(checkpoint: Path) -> None:
    model = load_model(checkpoint)
    image = np.random.default_rng(0).integers(0, 65535, (20, 30), np.uint16)
    expected = predict(model, image)
    assert np.array_equal(predict(model, image.astype(">u2")), expected)
    scaled = image / np.float32(65535)
    for dtype in ("float32", ">f4", ">f8"):
        assert np.array_equal(predict(model, scaled.astype(dtype)), expected)
    assert predict(model, image > 9).shape == (20, 30)


def test_an_image_far_from_the_training_images_is_said_once(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = np.random.default_rng(0).integers(0, 200, (20, 30), dtype=np.uint8)
    Image.fromarray(near).save("near.png")
    Image.fromarray(near.astype(np.uint16) * 257).save("same_with_16_bits.png")
    predict_files([checkpoint], ["near.png", "same_with_16_bits.png"], Path("out"))
    assert "note:" not in capsys.readouterr().out
    for name in ("12_bits_a.png", "12_bits_b.png"):
        Image.fromarray(near.astype(np.uint16) * 16).save(name)
    predict_files([checkpoint], ["12_bits_a.png", "12_bits_b.png"], Path("out"))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    (note,) = notes
    assert note.startswith("note: 12_bits_a.png: its values have the mean 0.02")
    assert note.endswith("the model may not know such images (1 other image too)")


def test_masks_of_negative_and_large_values_are_tiffs(tmp_path: Path) -> None:
    classes = "data.classes={ground: -1, box: 70000}"
    save_checkpoint(tmp_path / "best.pt", make_model(tmp_path, classes).contents())
    Image.effect_noise((30, 20), 50).save("a.png")
    (mask,) = predict_files([tmp_path / "best.pt"], ["a.png"], Path("out"))
    assert mask == Path("out/a.tif")
    found = values_of(mask)
    assert found.dtype == np.int32
    assert set(np.unique(found).tolist()) <= {-1, 70000}
