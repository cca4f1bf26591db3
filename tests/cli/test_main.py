import argparse
import contextlib
import fcntl
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

from unet.cli import main as main_module
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


def test_an_interrupt_is_no_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unet.training.train.check_data", interrupt)
    assert main(["train", str(config)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not Path("runs/tiny").exists()


def test_an_interrupt_while_modules_are_imported_is_no_traceback() -> None:
    code = (
        "import signal, sys\n"
        "from unet.__main__ import start\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'unet.cli.main': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored after `&`
        "start()"
    )
    result = run("-c", code)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


@pytest.mark.usefixtures("default_interrupt")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_with_its_own_words_for_an_interrupt_ends_with_the_code_of_the_signal(
    signum: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def predict(*_: object) -> None:
        try:
            signal.raise_signal(signum)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; 1 of 3 images have their masks") from None

    arguments = argparse.Namespace(run=predict, traceback=False)
    monkeypatch.setattr(main_module, "parse", lambda _: (arguments, []))
    assert main(["predict"]) == code
    assert capsys.readouterr().err == "interrupted; 1 of 3 images have their masks\n"


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
