import multiprocessing
import shutil
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import HEIGHT, WIDTH, assert_same_run, make_config, write_pairs
from PIL import Image

from unet.checkpoint import load_checkpoint
from unet.config.loader import config_from_dict, load_config
from unet.config.values import config_to_dict
from unet.training.run_folder import locked, save_last
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")


def test_a_run_that_exists_is_not_overwritten_unasked(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    before = (train(config) / "last.pt").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"runs.tiny: exists; pass resume=True"):
        train(config)
    assert Path("runs/tiny/last.pt").stat().st_mtime_ns == before
    train(config, overwrite=True)
    assert Path("runs/tiny/last.pt").stat().st_mtime_ns != before


def test_only_a_runs_folder_is_deleted(data_root: Path) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/thesis.txt").touch()
    with pytest.raises(
        FileExistsError, match=r"holds no config\.yaml and is not the folder of a run"
    ):
        train(make_config(data_root), overwrite=True)
    assert Path("runs/tiny/thesis.txt").exists()


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_run_that_is_killed_while_it_is_overwritten_can_be_overwritten_again(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    calls = []

    def kill(path: Path, *arguments: Path, real: Callable[..., None]) -> None:
        calls.append(path)
        if len(calls) == call:
            if not arguments:  # half of the folder is deleted
                (path / "config.yaml").unlink(missing_ok=True)
            raise KeyboardInterrupt
        real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", partial(kill, real=shutil.rmtree))
        patch.setattr(Path, "rename", partialmethod(kill, real=Path.rename))
        with pytest.raises(KeyboardInterrupt):
            train(config, overwrite=True)
    train(config, overwrite=True)
    assert sorted(path.name for path in Path("runs").glob("*tiny*")) == [".tiny.lock", "tiny"]


def test_resuming_with_another_config_shows_the_difference(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1"))
    with pytest.raises(ValueError, match=r"optimizer\.lr was 0\.01 and is now 0\.02"):
        train(make_config(data_root, "train.epochs=1", "optimizer.lr=0.02"), resume=True)
    # These do not change the weights.
    train(make_config(data_root, "train.epochs=1", "train.num_workers=1"), resume=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    data_root: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    whole = train(make_config(data_root, "name=whole"))
    run = train(make_config(data_root))
    last, contents = run / "last.pt", (run / "last.pt").read_bytes()
    if damage == "cut":
        last.write_bytes(contents[: len(contents) // 2])
    elif damage == "flipped":  # in the middle of the weights
        weights = load_checkpoint(last)["model"]["encoder.stem.3.weight"]
        place = contents.index(weights.contiguous(memory_format=torch.channels_last)
                               .permute(0, 2, 3, 1).numpy().tobytes()[:40])  # fmt: skip
        flipped = bytes([contents[place + 9] ^ 4])
        last.write_bytes(contents[: place + 9] + flipped + contents[place + 10 :])
    else:
        last.unlink()
    train(make_config(data_root), resume=True)
    shown = capsys.readouterr().out
    if damage != "missing":
        assert (
            "runs/tiny/last.pt: is damaged, and deleted; resuming from runs/tiny/previous.pt"
            in shown
        )
    assert_same_run(whole, run)


def test_without_a_whole_checkpoint_a_run_is_not_resumed(data_root: Path) -> None:
    run = train(make_config(data_root))
    for name in ("last.pt", "previous.pt"):
        (run / name).write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"last\.pt: cannot .*\n.*previous\.pt: cannot .*\n.*again"
    ):
        train(make_config(data_root), resume=True)


def test_a_kill_between_the_new_checkpoint_and_its_name_loses_nothing(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_config(data_root, "name=whole", "train.save_every_steps=1"))
    config = make_config(data_root, "train.save_every_steps=1")
    rename = Path.replace
    for step in (1, 3):  # before the first there is no checkpoint

        def killed(path: Path, target: Path, step: int = step) -> Path:
            if path.name == "next.pt" and load_checkpoint(path)["progress"]["step"] == step:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                train(config, resume=step > 1)
        assert not Path("runs/tiny/last.pt").exists()
        assert load_checkpoint(Path("runs/tiny/next.pt"))["progress"]["step"] == step
    assert_same_run(whole, train(config, resume=True))


def test_a_kill_between_the_first_best_and_the_next_last_loses_nothing(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_config(data_root, "name=whole"))

    def killed_with_a_best(run: Path, contents: dict[str, Any]) -> None:
        if (run / "best.pt").exists():
            raise KeyboardInterrupt
        save_last(run, contents)

    with monkeypatch.context() as patch:
        patch.setattr("unet.training.trainer.save_last", killed_with_a_best)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(data_root))
    assert Path("runs/tiny/best.pt").exists()
    assert load_checkpoint(Path("runs/tiny/last.pt"))["progress"]["history"] == []
    assert_same_run(whole, train(make_config(data_root), resume=True))


def test_a_best_checkpoint_is_only_deleted_when_asked(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    run = train(config)
    for name in ("last.pt", "previous.pt"):
        (run / name).unlink()
    (run / "evaluation_best").mkdir()
    with pytest.raises(
        FileExistsError, match=r"tiny: holds a best\.pt, but no last\.pt or previous"
    ):
        train(config, resume=True)
    assert (run / "best.pt").exists()
    assert (run / "evaluation_best").exists()
    train(config, overwrite=True)
    assert not (run / "evaluation_best").exists()


def test_after_falling_back_the_good_checkpoint_stays_until_a_new_one_is_whole(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(make_config(data_root))
    (run / "last.pt").write_bytes(b"damaged")
    before = (run / "previous.pt").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unet.training.trainer.save_last", killed)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(data_root), resume=True)
    assert not (run / "last.pt").exists()
    assert (run / "previous.pt").read_bytes() == before


def test_a_checkpoint_that_the_system_refuses_to_read_is_not_deleted(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(make_config(data_root))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(run / "last.pt"))

    monkeypatch.setattr("torch.load", refuse)
    with pytest.raises(PermissionError):
        train(make_config(data_root), resume=True)
    assert (run / "last.pt").exists()


def test_a_run_has_one_process_at_a_time(data_root: Path) -> None:
    context = multiprocessing.get_context("fork")
    has_locked, may_end = context.Event(), context.Event()

    def lock() -> None:
        with locked(Path("runs/tiny")):
            has_locked.set()
            may_end.wait(60)

    process = context.Process(target=lock)
    process.start()
    assert has_locked.wait(60)
    with pytest.raises(FileExistsError, match=r"runs.tiny: is being trained by another process"):
        train(make_config(data_root), resume=True)
    may_end.set()
    process.join()
    train(make_config(data_root, "train.epochs=1"), resume=True)


def test_a_run_resumes_with_data_in_another_folder(data_root: Path, tmp_path: Path) -> None:
    train(make_config(data_root, "train.epochs=1"))
    moved = data_root.rename(tmp_path / "moved")
    train(make_config(moved, "train.epochs=1"), resume=True)


def test_a_run_that_starts_again_has_its_new_config(data_root: Path) -> None:
    run = train(make_config(data_root, "train.epochs=1"))
    for path in run.glob("*.pt"):
        path.unlink()
    config = make_config(data_root, "train.epochs=1", "optimizer.lr=0.5")
    train(config, resume=True)
    assert load_config(run / "config.yaml") == config


def test_resuming_a_run_that_does_not_exist_starts_it(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data_root, "train.epochs=1")
    run = train(config, resume=True)
    assert "runs/tiny: does not exist yet; starting a new run" in capsys.readouterr().out
    for path in run.glob("*.pt"):
        path.unlink()
    train(config, resume=True)
    assert "runs/tiny: was stopped before its first checkpoint" in capsys.readouterr().out
    assert (run / "last.pt").exists()


def test_resuming_needs_the_same_images(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    image = data_root / "images" / "0.png"
    before = image.read_bytes()
    for path in (data_root / "images").iterdir():
        Image.new("L", (WIDTH, HEIGHT), int(path.stem)).save(path)
    with pytest.raises(ValueError, match="images, masks or label images have changed since"):
        train(config, resume=True)
    image.write_bytes(before)
    write_pairs(data_root / "more", 1, seed=8)
    for folder in ("images", "masks"):
        (data_root / "more" / folder / "0.png").rename(data_root / folder / "9.png")
    with pytest.raises(ValueError, match=r"had other training images \(4, now 5\)"):
        train(config, resume=True)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_resuming_notices_files_that_have_changed(data_root: Path, folder: str) -> None:
    config = make_config(data_root, "train.epochs=1", "data.normalization=image")
    train(config)
    with Image.open(data_root / folder / "3.png") as image:
        pixels = np.array(image)
    pixels[0, 0] = 200
    Image.fromarray(pixels).save(data_root / folder / "3.png")
    with pytest.raises(ValueError, match="images, masks or label images have changed since"):
        train(config, resume=True)


def test_resuming_in_another_precision_is_refused(data_root: Path) -> None:
    train(make_config(data_root, "train.epochs=1"))
    with pytest.raises(ValueError, match=r"computed in float32, this one would in bfloat16"):
        train(make_config(data_root, "train.epochs=1", "train.precision=bfloat16"), resume=True)


def test_resuming_with_the_classes_turned_around_is_refused(data_root: Path) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    settings = config_to_dict(config)
    settings["data"]["classes"] = {"box": 200, "ground": 0}
    with pytest.raises(ValueError, match=r"the order of data\.classes was ground, box"):
        train(config_from_dict(settings), resume=True)


def test_resuming_a_complete_run_says_so(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data_root, "train.epochs=1")
    train(config)
    train(config, resume=True)
    assert "the run is complete: there is nothing left to train" in capsys.readouterr().out
