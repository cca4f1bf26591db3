import contextlib
import errno
import fcntl
import json
import os
import pickle
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from unet.cli import main as main_module
from unet.cli.arguments import parse
from unet.cli.main import main
from unet.config.schema import Config
from unet.runtime.optional import install_command

pytestmark = pytest.mark.usefixtures("workdir")
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """SIGINT as in a terminal: it is ignored in a process that a script starts with `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_train_evaluate_and_predict(config: Path, data_root: Path) -> None:
    assert main(["train", str(config), "model.widths=[4, 4]"]) == 0
    assert main(["evaluate", "runs/tiny/best.pt", "train.device=cpu"]) == 0
    arguments = ["tiling.size=[32,32]", "--overlay", "tiling.overlap=8", "train.device=cpu"]
    images = str(data_root / "images")
    assert main(["predict", "runs/tiny/best.pt", images, "-o", "masks", *arguments]) == 0
    assert len(list(Path("masks").glob("*.png"))) == len(list((data_root / "images").iterdir()))
    assert len(list(Path("masks/overlays").iterdir())) == 7  # with the legend
    assert main(["train", str(config), "--resume", "model.widths=[4, 4]"]) == 0


def test_a_typo_in_a_setting_gets_a_suggestion(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "modle.widths=[4]", str(config)]) == 2
    assert (
        "modle.widths=[4]: unknown setting; did you mean model.widths=[4]?"
        in capsys.readouterr().err
    )


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


def test_a_closed_pipe_is_no_error(config: Path) -> None:
    assert main(["train", str(config)]) == 0
    command = f"{sys.executable} -m unet evaluate runs/tiny/best.pt"
    result = subprocess.run(
        ["bash", "-c", f"{command} | true"], capture_output=True, text=True, timeout=120
    )
    assert result.stderr == ""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)


def test_the_module_and_the_scripts_run_the_command() -> None:
    assert "COMMAND" in run("-m", "unet", "--help").stdout
    for script in ("train", "evaluate", "predict"):
        assert f"usage: unet {script}" in run(str(SCRIPTS / f"{script}.py"), "--help").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "missing.yaml"]])
def test_help_and_config_errors_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from unet.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = run("-c", code, *arguments)
    assert result.returncode == 0, result.stderr


def test_torchvision_is_imported_only_when_needed() -> None:
    # It takes about as long to import as torch.
    code = (
        "import sys, unet.training.series, unet.evaluation.evaluate\n"
        "import unet.inference.predict, unet.inference.export, unet.inference.info\n"
        "assert 'torchvision' not in sys.modules"
    )
    assert run("-c", code).returncode == 0


def test_wrong_input_gives_a_message_and_code_2(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.epochs=none"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: train.epochs=none: got the text 'none', expected")
    assert "Traceback" not in error
    assert main(["train", str(config), "train.epochs=none", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


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


@pytest.mark.parametrize("tta", [["--tta", "flips,turns"], ["--tta", "flips", "--tta", "turns"]])
def test_augmentations_are_given_together_or_one_by_one(tta: list[str]) -> None:
    for command in (["evaluate", "best.pt"], ["predict", "best.pt", "a.png", "-o", "masks"]):
        assert parse([*command, *tta])[0].tta == ["flips", "turns"]
        assert parse(command)[0].tta == []  # what one call extends is its own


@pytest.mark.parametrize(
    "command", ["", "train", "init", "check", "evaluate", "predict", "export", "info"]
)
def test_help_fits_the_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for columns in (80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit, match="0"):
            parse([command, "--help"] if command else ["--help"])
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: unet {command}".strip())
        assert max(map(len, shown.splitlines())) <= columns
        assert not re.search(r"(?<!['\w])\w+\.\w+=\[", shown)  # zsh needs quotes


def test_the_folder_of_runs_can_be_changed(config: Path) -> None:
    assert main(["train", str(config), "train.epochs=1", "--runs", "a/b"]) == 0
    assert Path("a/b/tiny/best.pt").exists()
    assert main(["check", str(config), "--runs", "c"]) == 0
    assert [path.name for path in Path("c").iterdir()] == [".checked"]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a", "c"]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_an_unknown_augmentation_is_refused(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, message in (
        (
            "flips,blurs",
            "--tta: got flips,blurs, expected one or more of flips, turns, scales, such",
        ),
        ("turns,turns", "--tta: got turns 2 times, expected it once"),
    ):
        assert main([command, "best.pt", "image.png", "--tta", names]) == 2
        assert message in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unet.training.train.check_data", interrupt)
    assert main(["train", str(config)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not Path("runs/tiny").exists()


@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_ends_with_its_code(
    config: Path,
    signum: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "unet.training.logger.RunLogger.step", lambda *_: signal.raise_signal(signum)
    )
    before = signal.getsignal(signal.SIGINT)
    assert main(["train", str(config)]) == code
    shown = capsys.readouterr()
    assert shown.err == f"stopped by {signum.name}\n"
    assert "stopped after step 1 of 4, which is saved; pass --resume to" in shown.out
    monkeypatch.undo()
    monkeypatch.chdir(config.parent)
    assert main(["train", str(config), "--resume"]) == 0
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("code", "at_once"), [(0, False), (2, False), (130, True), (143, True)])
def test_after_a_signal_the_process_ends_without_the_cleanup_of_python(
    code: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(main_module, "main", lambda: code)
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(SystemExit) as error:
        main_module.run()
    assert error.value.code == code
    assert ended == [code] * at_once


def test_a_setting_without_equals_gets_a_suggestion(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "train.epochs:3"]) == 2
    assert "train.epochs:3: settings have the form KEY=VALUE" in capsys.readouterr().err


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


def test_out_of_memory_in_training_comes_with_advice(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unet.training.step.TrainingStep.gradients", lambda *_: torch.empty(2**55))
    assert main(["train", str(config), "augment.crop=[24, 32]"]) == 2
    error = capsys.readouterr().err
    assert "error: out of memory (" in error
    assert "a step has batches of 2 crops of 24 x 32: set train.batch_size=1 with" in error
    assert "Traceback" not in error


def test_out_of_memory_in_evaluation_comes_with_other_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unet.evaluation.evaluate.evaluate", lambda *_, **__: torch.empty(2**55))
    assert main(["evaluate", "best.pt"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("; use smaller images or a lower tiling.size\n")
    assert error.startswith("error: out of memory (")


def test_an_error_of_the_system_in_a_worker_is_one_line(
    config: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def remove(config: Config, *_: object) -> Config:
        for image in (data_root / "images").iterdir():
            image.unlink()
        return config

    monkeypatch.setattr("unet.training.train.choose_precision", remove)
    assert main(["train", str(config), "train.num_workers=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {data_root / 'images'}")
    assert "there is no such file; check the path" in error
    assert "Traceback" not in error


def test_a_file_in_place_of_a_folder_is_named(
    config: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config)]) == 0
    Path("file").touch()
    images = str(data_root / "images")
    assert main(["predict", "runs/tiny/best.pt", images, "-o", "file/masks"]) == 2
    assert "error: file: is a file; choose another place" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [100, 45])
def test_the_bar_shows_time_left_loss_and_in_a_wide_terminal_speed(
    config: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    shown = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(terminal, 4096):
                shown.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(inside, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setattr("tqdm.tqdm.monitor_interval", 0)  # no thread that outlives the test
        patch.setattr("unet.training.logger.RunLogger.step", lambda *_: time.sleep(0.1))
        assert main(["train", str(config), "train.epochs=3", "train.validate_every=3"]) == 0
    reader.join()
    os.close(terminal)
    lines = re.split(r"[\r\n]+", b"".join(shown).decode())
    steps = [line for line in lines if "loss" in line]
    assert len(steps) > 3
    assert max(map(len, steps)) < columns
    speed = r", +[\d.]+( images/s|s/ images)" if columns == 100 else ""
    pattern = rf"epoch \d/3 \|.{{5,}}\| \d\d:\d\d left, loss \d\.\d+{speed}$"
    assert all(re.match(pattern, line) for line in steps), steps


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


def test_an_unexpected_error_in_a_worker_is_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("too far")

    monkeypatch.setattr("unet.data.augmentation.Augmentation.apply", fail)
    assert main(["train", str(config), "train.num_workers=1"]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"error: .*\.png: cannot make a sample from it \(IndexError: too far\)\n", error
    ), error


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


@pytest.mark.parametrize("command", [["export", "-o", "model.pt2"], ["info"]])
def test_a_checkpoint_that_cannot_be_read_is_one_message(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for contents, message in (
        (b"", "cannot be loaded safely"),
        (pickle.dumps(print), "cannot be loaded safely"),
        ({"format": "unet checkpoint", "version": 99}, "got a checkpoint of format version 99"),
    ):
        path = Path("damaged.pt")
        if isinstance(contents, dict):
            torch.save(contents, path)
        else:
            path.write_bytes(contents)
        assert main([command[0], str(path), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: damaged.pt: {message}")
        assert error.count("\n") == 1
        assert [path.name for path in Path.cwd().iterdir()] == ["damaged.pt"]


def test_an_unexpected_error_is_one_message(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr("unet.training.train.check_data", fail)
    assert main(["train", str(config)]) == 2
    assert capsys.readouterr().err == (
        "error: KeyError: 'odd'; this is a bug in unet: please report it with the output of the "
        "same command and --traceback\n"
    )


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


def test_a_closed_pipe_ends_a_training_with_a_run_that_can_start_again(config: Path) -> None:
    command = f"{sys.executable} -m unet train {config} train.epochs=2"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (141, "")
    assert not Path("runs/tiny").exists()


def test_a_clone_without_its_packages_ends_in_one_message() -> None:
    code = (
        "import sys, runpy\n"
        "sys.modules[sys.argv[1]] = None\n"
        "sys.argv = ['unet', 'info', 'best.pt']\n"
        "runpy.run_module('unet', run_name='__main__')"
    )
    for package in ("yaml", "numpy", "torch"):
        result = run("-c", code, package)
        assert result.returncode == 2
        assert result.stderr == (
            f"error: the package {package} is not installed; install unet with its packages: "
            f"{install_command()}\n"
        )


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
