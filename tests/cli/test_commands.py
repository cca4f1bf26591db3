import errno
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from unet.cli.main import main

pytestmark = pytest.mark.usefixtures("workdir")


def test_train_evaluate_and_predict(config: Path, data_root: Path) -> None:
    assert main(["train", str(config), "model.widths=[4, 4]"]) == 0
    assert main(["evaluate", "runs/tiny/best.pt", "train.device=cpu"]) == 0
    arguments = ["tiling.size=[32,32]", "--overlay", "tiling.overlap=8", "train.device=cpu"]
    images = str(data_root / "images")
    assert main(["predict", "runs/tiny/best.pt", images, "-o", "masks", *arguments]) == 0
    assert len(list(Path("masks").glob("*.png"))) == len(list((data_root / "images").iterdir()))
    assert len(list(Path("masks/overlays").iterdir())) == 7  # with the legend
    assert main(["train", str(config), "--resume", "model.widths=[4, 4]"]) == 0


def test_resume_and_overwrite_exclude_each_other(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "--resume", "--overwrite"]) == 2
    assert "got --resume and --overwrite, expected one of them" in capsys.readouterr().err


def test_evaluate_names_a_damaged_mask(
    config: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.epochs=1", "data.validation={stems: ['3']}"]) == 0
    (data_root / "masks" / "3.png").write_bytes(b"damaged")
    capsys.readouterr()
    # More workers than this machine has cores: torch's warning would be an error here.
    assert main(["evaluate", "runs/tiny/best.pt", "train.num_workers=99"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {data_root / 'masks' / '3.png'}: cannot be read")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "missing.yaml"],
        ["evaluate", "missing.pt"],
        ["predict", "missing.pt", ".", "-o", "masks"],
        ["predict", "missing.pt", "missing.png", "-o", "masks"],
        ["export", "missing.pt", "-o", "model.pt2"],
        ["info", "missing.pt"],
    ],
)
def test_every_command_reports_a_missing_file(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(Path.cwd().iterdir())


def test_the_folder_of_runs_can_be_changed(config: Path) -> None:
    assert main(["train", str(config), "train.epochs=1", "--runs", "a/b"]) == 0
    assert Path("a/b/tiny/best.pt").exists()
    assert main(["check", str(config), "--runs", "c"]) == 0
    assert [path.name for path in Path("c").iterdir()] == [".checked"]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a", "c"]


def test_folders_in_place_of_files_are_told_apart(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config.parent)]) == 2
    assert f"is a folder, expected a config file; give one of those in it, such as {config}" in (
        capsys.readouterr().err
    )
    data = config.parent / "data"
    assert main(["check", str(data)]) == 2
    assert f"{data}: is a folder, expected a config file; write one with: unet init {data}" in (
        capsys.readouterr().err
    )
    Path("runs/mine").mkdir(parents=True)
    for command in ("evaluate", "export", "info"):
        out = ["-o", "a.pt2"] if command == "export" else []
        assert main([command, "runs/mine", *out]) == 2
        assert (
            "runs/mine: there is no best.pt in this folder; give a checkpoint"
            in capsys.readouterr().err
        )
    Path("runs/mine/last.pt").touch()
    for command in (["evaluate"], ["predict", "images"]):
        assert main([command[0], "runs/mine", *command[1:]]) == 2
        assert "no best.pt in this folder; give runs/mine/last.pt" in capsys.readouterr().err
    Path("runs/mine/best.pt").write_bytes(b"damaged")
    assert main(["info", "runs/mine"]) == 2
    assert "runs/mine/best.pt: cannot be loaded" in capsys.readouterr().err
    Path("runs/mine/config.yaml").touch()
    assert main(["train", "runs/mine"]) == 2
    assert "continue this run with: unet train runs/mine/config.yaml --resume" in (
        capsys.readouterr().err
    )


def test_a_file_in_place_of_a_folder_is_named(
    config: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config)]) == 0
    Path("file").touch()
    images = str(data_root / "images")
    assert main(["predict", "runs/tiny/best.pt", images, "-o", "file/masks"]) == 2
    assert "error: file: is a file; choose another place" in capsys.readouterr().err


def test_every_fold_is_checked(
    config: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config), "--folds", "all"]) == 2
    assert "--folds all: expected data.validation.folds" in capsys.readouterr().err
    command = ["check", str(config), "--folds", "all", "data.validation={folds: 3}"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert [f"fold {i}:\n4 training and 2 validation images" in shown for i in range(4)] == [
        True, True, True, False,
    ]  # fmt: skip
    with Image.open(data_root / "masks" / "0.png") as mask:
        empty = Image.new("L", mask.size)
    for i in range(1, 6):
        empty.save(data_root / "masks" / f"{i}.png")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"warning: fold \d: .*box: no training mask contains it", shown)) == 1
    assert len(re.findall(r"warning: fold \d, \d: .*box: no validation mask", shown)) == 1
    (data_root / "masks" / "5.png").write_bytes(b"damaged")
    assert main(command) == 1
    error = capsys.readouterr().err  # of all folds
    assert re.search(r"^error: \S+5.png: cannot be read.*\n1 error found$", error.strip()), error


def test_every_fold_is_trained_and_their_models_are_averaged(
    config: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "--folds", "all"]) == 2
    assert (
        "--folds all: expected data.validation.folds, the number of folds"
        in capsys.readouterr().err
    )
    folds = "data.validation={folds: 2}"
    assert main(["train", str(config), folds]) == 2
    assert (
        "data.validation.fold: got null, expected one of 0 to 1; set it, or"
        in capsys.readouterr().err
    )
    assert main(["train", str(config), folds, "train.epochs=1", "--folds", "all"]) == 0
    assert "wrote runs/tiny_folds.csv" in capsys.readouterr().out

    both = ["runs/tiny_fold0/best.pt", "runs/tiny_fold1/best.pt"]
    images = ["--images", str(data_root / "images"), "--masks", str(data_root / "masks")]
    assert main(["predict", *both, str(data_root / "images"), "-o", "masks"]) == 0
    assert len(list(Path("masks").iterdir())) == 6
    assert main(["evaluate", *both, *images, "-o", "scores"]) == 0
    assert "ensemble of 2 checkpoints on 6 images" in capsys.readouterr().out
    assert main(["evaluate", *both, *images]) == 2
    assert "several checkpoints, expected a folder for the scores: -o" in capsys.readouterr().err
    assert main(["evaluate", *both, "-o", "scores2"]) == 2
    assert "1 of 2 checkpoints have other validation images" in capsys.readouterr().err
    assert main(["predict", both[0], "-o", "masks2"]) == 2
    assert (
        f"got no images; add them, for example: unet predict {both[0]} im"
        in capsys.readouterr().err
    )
    assert main(["predict", str(data_root / "images"), "-o", "masks2"]) == 2
    assert "images: is neither a checkpoint (.pt, .pth or .onnx) nor the" in capsys.readouterr().err


def test_evaluate_prints_the_scores_and_names_its_options_in_errors(
    config: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.epochs=1"]) == 0
    capsys.readouterr()
    evaluate = ["evaluate", "runs/tiny/best.pt"]
    options = ["--boundary", "3.5", "--threshold", "--instances", "box"]
    assert main([*evaluate, *options]) == 0
    out = capsys.readouterr().out
    folder = Path("runs/tiny/evaluation_best")
    report = json.loads((folder / "metrics.json").read_text())
    assert out.startswith("runs/tiny/best.pt on 2 images of the validation split\n\nclass")
    for score in (report["iou"][1], report["mean_iou"], report["threshold"]["best_f1"],
                  report["per_image"]["mean"]["thinned_rand_score"]):  # fmt: skip
        assert f" {score:.4f}" in out
    assert "boundary F1 within 3.5 pixels" in out
    assert "thresholds of box" in out
    assert "Objects: connected components of box" in out
    assert "Objects at the best threshold of box" in out
    best = report["object_thresholds"]["best"]["pixel_error"]
    assert f"{best['score']:.4f}       {best['threshold']:.2f}" in out
    assert out.endswith(
        f"\n\nwrote {folder / 'report.html'}, and next to it metrics.json and tables\n"
    )
    assert main([*evaluate, "--instances", "cat"]) == 2  # before results that exist are
    assert (
        "got the class cat for --instances CLASS, expected one of ground, box"
        in capsys.readouterr().err
    )
    assert main([*evaluate, "--overwrite", "--boundary", "-2"]) == 2
    assert "--boundary: got '-2', expected a number from 0 to 10000" in capsys.readouterr().err

    images = ["--images", str(data_root / "images")]
    assert main([*evaluate, *images]) == 2
    assert "got --images DIR without --masks DIR; give both" in capsys.readouterr().err
    for wrong in (["--instances"], [*images, "--masks", str(data_root / "masks")]):
        assert main([*evaluate, "--labels", "cells", *wrong]) == 2
        assert "--labels DIR needs --images DIR and --instances" in capsys.readouterr().err


def test_scores_that_cannot_be_written_are_printed(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.epochs=1"]) == 0
    capsys.readouterr()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("unet.evaluation.results.save_picture", fail)
    assert main(["evaluate", "runs/tiny", "-o", "scores"]) == 2
    captured = capsys.readouterr()
    assert "runs/tiny/best.pt on 2 images of the validation split\n\nclass " in captured.out
    assert "\npixel accuracy 0." in captured.out
    assert captured.err.splitlines()[-1] == (
        "error: scores: No space left on device; check the path, its permissions and the free space"
    )


def test_a_model_is_exported_and_described(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config)]) == 0
    best = "runs/tiny/best.pt"
    capsys.readouterr()
    assert main(["export", best, "-o", "out/model.pt2"]) == 0
    assert re.fullmatch(
        r"wrote out/model\.pt2; at three sizes its probabilities differ from the model's by at "
        r"most \d\.\de[-+]\d\d \(allowed: 1e-04\)\n",
        capsys.readouterr().out,
    )
    assert main(["info", "runs/tiny/last.pt", "--size", "40", "50", "tiling.batch_size=3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("checkpoint          runs/tiny/last.pt\n")
    assert shown.index("\nparameters ") < shown.index("\n  batch_size: 3")
    assert "best: epoch " in shown
    assert " for 40 x 50 pixels\n" in shown

    for arguments, message in (
        (["export", best, "-o", "out/model.pt2"], "out/model.pt2: exists; pass --overwrite to"),
        (["export", best, best, "-o", "two.pt2"], "export: got 2 checkpoints, expected one"),
        (["export", best, "-o", "model.pt"], "model.pt: expected a file that ends in .onnx or .pt"),
        (
            ["export", best, "-o", "a.pt2", "name=b"],
            "a trained model keeps its settings, but name was",
        ),
        (["export", best, "-o", f"{config}/model.pt2"], f"{config}: is a file; choose another"),
        (["info", best, "--size", "0", "5"], "--size: got '0', expected a whole number from 1"),
        (["info", best, "train.seed=5"], "a trained model keeps its settings, but train.seed was"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err, arguments
    assert [path.name for path in Path("out").iterdir()] == ["model.pt2"]


def test_outputs_have_default_places(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data_root.rename(data_root.with_name("my data"))
    assert main(["init", str(folder)]) == 0
    assert "wrote configs/my_data.yaml" in capsys.readouterr().out
    assert main(["train", "configs/my_data.yaml", "train.epochs=1", "name=tiny"]) == 0
    assert "note: the warm-up is shortened to 0.1 epochs" in capsys.readouterr().out
    assert main(["predict", "runs/tiny", str(folder / "images")]) == 0
    shown = capsys.readouterr().out
    assert "note: using runs/tiny/best.pt" in shown
    assert "into predictions" in shown
    assert len(list(Path("predictions").iterdir())) == 6


def test_a_folder_is_trained_on_and_its_config_kept(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model.widths=[4,8]", "augment.crop=[24,32]", "train.num_workers=0"]
    words = ["train", str(data_root), "--minutes", "0.1", *small]
    assert main(words) == 0
    out = capsys.readouterr().out
    proposed = Path("runs/data/proposed.yaml")
    assert f"{data_root}: no config given; this one is used and kept as {proposed}:" in out
    assert "the training takes about" in out
    assert "# data: proposed by unet init." in proposed.read_text()
    assert main(["train", "runs/data/config.yaml", "--resume"]) == 0
    assert main([*words, "--resume"]) == 0
    assert "the run is complete" in capsys.readouterr().out
    assert main(words) == 2
    assert "runs/data: exists" in capsys.readouterr().err
    assert main([*words, "--quick"]) == 2
    assert "not allowed with argument --minutes" in capsys.readouterr().err


def test_check_says_how_long_a_training_takes(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(config)]) == 0
    assert "a training on cpu takes about" in capsys.readouterr().out
    assert main(["check", str(config), "train.device=cuda:7"]) == 0
    assert "note: no training is possible on this machine: train.device" in capsys.readouterr().out
