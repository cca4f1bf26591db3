from pathlib import Path
from typing import Any

import pytest
from helpers import files_in, make_model
from PIL import Image

from unet.checkpoint import save_checkpoint
from unet.cli.main import main
from unet.inference import predict_pages
from unet.inference.predict import Options, predict_files

pytestmark = pytest.mark.usefixtures("workdir")


def test_existing_masks_are_kept_without_overwrite(
    checkpoint: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(data_root / "images")]
    predict_files([checkpoint], [str(data_root / "images" / "3.png")], Path("out"))
    capsys.readouterr()
    time = Path("out/3.png").stat().st_mtime_ns
    assert len(predict_files([checkpoint], images, Path("out"))) == 6
    printed = capsys.readouterr().out
    assert "kept 1 existing mask in out; overwrite=True predicts them again" in printed
    assert "predicted 5 of 5 images into out" in printed
    assert len(list(Path("out").iterdir())) == 6
    assert Path("out/3.png").stat().st_mtime_ns == time
    predict_files([checkpoint], images, Path("out"), overwrite=True)
    assert Path("out/3.png").stat().st_mtime_ns > time
    times = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    predict_files([checkpoint], images, Path("out"))
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == times


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_that_were_predicted_in_another_way_are_refused(
    checkpoint: Path, tmp_path: Path, suffix: str
) -> None:
    page = Image.effect_noise((30, 20), 50)
    page.save(f"a{suffix}", save_all=True, append_images=[page] if suffix == ".tif" else [])
    other = tmp_path / "other.pt"
    save_checkpoint(other, make_model(tmp_path).contents())
    before = predict_files([checkpoint], [f"a{suffix}"], Path("out"))[0].read_bytes()
    exists = rf"out/a{suffix}: exists and was predicted "
    for checkpoints, options, overrides, reason in (
        (
            [other],
            Options(),
            [],
            "by another checkpoint; pass overwrite=True to predict it again, or",
        ),
        ([checkpoint, other], Options(), [], "by another checkpoint;"),
        ([checkpoint], Options(threshold=0.3), [], r"with threshold none instead of 0\.3;"),
        (
            [checkpoint],
            Options(tta=("flips", "turns")),
            [],
            "with tta none instead of flips, turns",
        ),
        ([checkpoint], Options(min_size=3), [], "with min_size 0 instead of 3"),
        ([checkpoint], Options(keep_largest=True), [], "with keep_largest False instead of"),
        ([checkpoint], Options(), ["tiling.overlap=8"], "with tiling.overlap none instead of"),
        ([checkpoint], Options(), ["train.precision=bfloat16"], "with train.precision float32"),
    ):
        with pytest.raises(FileExistsError, match=exists + reason):
            predict_files(checkpoints, [f"a{suffix}"], Path("out"), options, overrides=overrides)
    assert Path(f"out/a{suffix}").read_bytes() == before
    copy = tmp_path / "copy.pt"
    copy.write_bytes(checkpoint.read_bytes())
    predict_files([copy], [f"a{suffix}"], Path("out"), overrides=["tiling.batch_size=2"])
    predict_files([other], [f"a{suffix}"], Path("out"), overwrite=True)
    with pytest.raises(FileExistsError, match=exists + "by another checkpoint"):
        predict_files([checkpoint], [f"a{suffix}"], Path("out"))


def test_the_command_line_refuses_other_masks_and_names_its_own_options(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.effect_noise((30, 20), 50).save("a.png")
    command = ["predict", str(checkpoint), "a.png", "-o", "out"]
    assert main(command) == main(command) == 0
    capsys.readouterr()
    for arguments, message in (
        (["--threshold", "0.3"], "out/a.png: exists and was predicted with threshold none instead"),
        (["--threshold", "3"], "--threshold: got '3', expected a number from 0 to 1"),
        (["--min-size", "-1"], "--min-size: got '-1', expected a whole number from 0"),
    ):
        assert main([*command, *arguments]) == 2
        assert f"error: {message}" in capsys.readouterr().err


def test_masks_of_unknown_origin_are_refused(checkpoint: Path) -> None:
    Image.effect_noise((30, 20), 50).save("a.png")
    Path("out").mkdir()
    for write in (Image.new("L", (30, 20)).save, lambda path: Path(path).write_text("mine")):
        write("out/a.png")
        before = Path("out/a.png").read_bytes()
        with pytest.raises(FileExistsError, match=r"out/a\.png: exists, and nothing in it says"):
            predict_files([checkpoint], ["a.png"], Path("out"))
        assert Path("out/a.png").read_bytes() == before


def test_masks_of_other_images_may_have_another_origin(checkpoint: Path) -> None:
    for name in "ab":
        Image.effect_noise((30, 20), 50).save(f"{name}.png")
    predict_files([checkpoint], ["a.png"], Path("out"))
    predict_files([checkpoint], ["b.png"], Path("out"), Options(threshold=0.3))
    predict_files([checkpoint], ["a.png"], Path("out"))


def test_existing_masks_get_overlays_later(checkpoint: Path, data_root: Path) -> None:
    images = [str(data_root / "images")]
    masks = predict_files([checkpoint], images, Path("out"))
    before = [path.read_bytes() for path in masks]
    predict_files([checkpoint], images, Path("out"), Options(probabilities=True))
    predict_files([checkpoint], images, Path("out"), Options(overlay=True))
    names = [f"{folder}{i}.png" for folder in ("", "overlays/") for i in range(6)]
    names += [f"probabilities/{i}.tif" for i in range(6)]
    assert files_in("out") == sorted([*names, "overlays/legend.png"])
    assert [path.read_bytes() for path in masks] == before


def test_the_same_call_continues_an_interrupted_one(
    checkpoint: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, options = [str(data_root / "images")], Options(overlay=True, probabilities=True)
    predict_files([checkpoint], images, Path("whole"), options)
    drawn = []

    def stop(*arguments: Any) -> dict[str, list[Image.Image]]:
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    draw = predict_pages._draw
    with monkeypatch.context() as patch:
        patch.setattr("unet.inference.predict_pages._draw", stop)
        with pytest.raises(KeyboardInterrupt) as stopped:
            predict_files([checkpoint], images, Path("out"), options)
    assert str(stopped.value) == (
        "interrupted; 3 of 6 images have their masks, and the same command continues"
    )
    written, whole = (
        {name: Path(folder, name).read_bytes() for name in files_in(folder)}
        for folder in ("out", "whole")
    )
    assert sorted(name for name in written if len(name) == 5) == ["0.png", "1.png", "2.png"]
    assert 0 < len(written) < len(whole) == 19
    assert written.items() <= whole.items()
    predict_files([checkpoint], images, Path("out"), options)
    assert {name: Path("out", name).read_bytes() for name in files_in("out")} == whole


def test_overwrite_leaves_no_file_that_belongs_to_another_mask(
    checkpoint: Path, data_root: Path
) -> None:
    image, out = [str(data_root / "images" / "0.png")], Path("out")
    predict_files([checkpoint], image, out, Options(overlay=True))
    before = Path("out/0.png").read_bytes()
    with pytest.raises(FileExistsError, match=r"overlays/0\.png: exists and belongs to out/0\.png"):
        predict_files([checkpoint], image, out, Options(threshold=0.9), overwrite=True)
    assert Path("out/0.png").read_bytes() == before
    predict_files([checkpoint], image, out, Options(threshold=0.9, overlay=True), overwrite=True)
    Path("out/overlays/0.png").unlink()
    predict_files([checkpoint], image, out, Options(threshold=0.1), overwrite=True)
