import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import states_equal

from unet.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint

CONTENTS = {"config": {"name": "tiny"}, "val_stems": ["0", "4"], "model": {"a": torch.ones(2, 3)}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    save_checkpoint(path, CONTENTS)
    return path


def test_contents_are_read_as_they_were_written(checkpoint: Path) -> None:
    contents = load_checkpoint(checkpoint)
    assert (contents.pop("format"), contents.pop("version")) == ("unet checkpoint", 5)
    assert states_equal(contents, CONTENTS)


def test_a_folder_gives_its_best_checkpoint(checkpoint: Path) -> None:
    assert states_equal(load_checkpoint(checkpoint.parent), load_checkpoint(checkpoint))
    assert find_checkpoint(str(checkpoint)) == checkpoint
    checkpoint.rename(checkpoint.with_name("last.pt"))
    with pytest.raises(FileNotFoundError, match=r"no best\.pt in this folder; give .*last\.pt$"):
        find_checkpoint(checkpoint.parent)
    checkpoint.with_name("last.pt").unlink()
    with pytest.raises(FileNotFoundError, match="give a checkpoint or the folder of a run"):
        load_checkpoint(checkpoint.parent)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.pt: there is no such checkpoint"):
        load_checkpoint(tmp_path / "no.pt")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, fraction: float) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(fraction * checkpoint.stat().st_size)])
    with pytest.raises(ValueError, match=r"best\.pt: cannot be loaded safely"):
        load_checkpoint(checkpoint)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [True, False])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, plain: bool) -> None:
    path, sign = tmp_path / "best.pt", tmp_path / "it ran"
    if plain:
        path.write_bytes(pickle.dumps(Bomb(sign)))
    else:
        torch.save({"format": Bomb(sign)}, path)
    with pytest.raises(ValueError, match=r"best\.pt: cannot .* code to run: take a best"):
        load_checkpoint(path)
    assert not sign.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: is not a checkpoint of unet"):
        load_checkpoint(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt: cannot be loaded safely"):
        load_checkpoint(tmp_path / "text.pt")


@pytest.mark.parametrize("version", [4, 99])
def test_another_format_version_is_refused(checkpoint: Path, version: int) -> None:
    torch.save({**load_checkpoint(checkpoint), "version": version}, checkpoint)
    message = f"got a checkpoint of format version {version}, expected 5; use the version of unet"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(checkpoint)
