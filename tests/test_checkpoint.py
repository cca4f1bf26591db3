import contextlib
import itertools
import math
import os
import pickle
import resource
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_config, make_model, states_equal, write_pairs

from unet.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from unet.config.schema import Config
from unet.inference.info import describe_checkpoint
from unet.inference.loading import load_model
from unet.runtime.signals import Stopped
from unet.training.logger import RunLogger
from unet.training.train import train


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    save_checkpoint(path, make_model(tmp_path).contents())
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last.pt of a run with every type of training state, stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder / "data", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet.training.logger.RunLogger.step", stop_after_an_epoch)
        with contextlib.suppress(Stopped):
            train(state_config(folder))
    return folder / "runs" / "tiny" / "last.pt"


def stop_after_an_epoch(_: RunLogger, step: int, *__: float) -> None:
    if step == 3:
        signal.raise_signal(signal.SIGTERM)


def state_config(folder: Path) -> Config:
    overrides = ("train.ema_decay=0.9", "train.precision=float16", "train.epochs=2")
    return make_config(folder / "data", f"runs={folder / 'runs'}", *overrides)


def test_contents_are_read_as_they_were_written(checkpoint: Path, tmp_path: Path) -> None:
    contents, expected = load_checkpoint(checkpoint), make_model(tmp_path).contents()
    assert (contents.pop("format"), contents.pop("version")) == ("unet checkpoint", 6)
    assert contents.keys() == expected.keys()
    assert states_equal(contents | {"model": 0}, expected | {"model": 0})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key and item, of long ones only the first."""
    if isinstance(value, dict):
        items: Any = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return
    for key, item in items[:2] if path[:1] in (("model",), ("raw_model",)) else items:
        yield (*path, key)
        yield from places(item, (*path, key))


DELETED = object()


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a path."""
    if not path:
        return new
    items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    items[path[0]] = changed(items[path[0]], path[1:], new)
    if items[path[0]] is DELETED:
        del items[path[0]]
    return items if isinstance(value, dict) else type(value)(items.values())


NEW_VALUES = (DELETED, "text", None, -1, 0.5, [], {}, [[1]], math.nan, torch.zeros(3))


# More than 5 seconds: about 100 places.
def test_a_deleted_or_mistyped_value_is_one_message_or_changes_nothing(
    trained: Path, tmp_path: Path
) -> None:
    contents, path = load_checkpoint(trained), tmp_path / "last.pt"
    tried = [place for place in places(contents) if place[0] != "config" or len(place) < 3]
    assert len(tried) > 60
    # With a precision that is given, loading does not time the network.
    load = partial(load_model, overrides=["train.precision=float32"])
    uses = itertools.cycle([load, load, describe_checkpoint])
    for place, new, use in zip(tried, itertools.cycle(NEW_VALUES), uses, strict=False):
        torch.save(changed(contents, place, new), path)
        try:
            use(path)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            assert text.startswith(f"{path}: "), (place, new, text)
            assert len(text) < 1000, place


# More than 5 seconds: each place starts a training.
def test_a_run_resumes_from_a_changed_state_with_one_message_or_none(trained: Path) -> None:
    contents, kept = load_checkpoint(trained), trained.read_bytes()
    config = state_config(trained.parents[2])
    state = ("optimizer", "scaler", "progress", "identity", "raw_model", "normalization")
    values = itertools.cycle([DELETED, "text", -1, torch.zeros(3), None])
    for place, new in zip(places(contents), values, strict=False):
        if place[0] not in state:
            continue
        torch.save(changed(contents, place, new), trained)
        with contextlib.suppress(ValueError, FileExistsError):
            train(config, resume=True)
    trained.write_bytes(kept)
    train(config, resume=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(checkpoint: Path, bad: float) -> None:
    contents = load_checkpoint(checkpoint)
    contents["model"]["head.bias"][0] = bad
    torch.save(contents, checkpoint)
    with pytest.raises(ValueError, match=r"best\.pt: model: head\.bias: got NaN or infinity"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("std", [0.0, -0.2, math.nan])
def test_a_standard_deviation_is_above_zero(checkpoint: Path, std: float) -> None:
    contents = load_checkpoint(checkpoint)
    contents["normalization"]["std"] = (std,)
    torch.save(contents, checkpoint)
    with pytest.raises(ValueError, match=r"best\.pt: normalization\.std\[0\]: got .* above 0"):
        load_checkpoint(checkpoint)


def share_lists() -> list[Any]:
    """A few bytes that are 10**20 items when each is counted."""
    nested: list[Any] = ["a"]
    for _ in range(20):
        nested = [nested] * 10
    return nested


def nest_lists() -> list[Any]:
    nested: list[Any] = []
    for _ in range(300):
        nested = [nested]
    return nested


class Zeros:
    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return bytearray, (2**33,)


@pytest.mark.parametrize(
    "bomb", [share_lists, nest_lists, Zeros, lambda: torch.zeros(1).expand(2**40)]
)
@pytest.mark.parametrize("key", ["val_stems", "config", "model", "progress"])
def test_little_that_becomes_much_is_refused_at_once(
    checkpoint: Path, key: str, bomb: Callable[[], Any]
) -> None:
    contents = load_checkpoint(checkpoint)
    contents[key] = {**contents[key], "a": bomb()} if key in ("config", "model") else bomb()
    torch.save(contents, checkpoint)
    del contents
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ValueError, match=r"best\.pt: "):
        load_checkpoint(checkpoint)
    assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(checkpoint: Path) -> None:
    zeros = bytes(2**24)
    with (
        zipfile.ZipFile(checkpoint) as old,
        zipfile.ZipFile(checkpoint.with_name("new.pt"), "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        with new.open("best/data/0", "w", force_zip64=True) as file:
            for _ in range(32):  # half a GiB
                file.write(zeros)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"new\.pt: cannot be loaded safely"):
        load_checkpoint(checkpoint.with_name("new.pt"))
    assert time.monotonic() - start < 0.5


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
    message = f"got a checkpoint of format version {version}, expected 6; use the version of unet"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(checkpoint)
