import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from unet.runtime.files import DamagedFileError, load_torch_file

STATE = {"weight": torch.arange(1000.0), "names": ["a", "b"]}


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_torch_saved_is_read_also_as_it_was_before_torch_1_6(
    tmp_path: Path, as_zip: bool
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=as_zip)
    assert zipfile.is_zipfile(path) == as_zip
    found = load_torch_file(path)
    assert torch.equal(found["weight"], STATE["weight"])
    assert found["names"] == STATE["names"]


def test_a_tensor_that_has_changed_on_the_disk_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    contents = path.read_bytes()
    number = torch.tensor(500.0).numpy().tobytes()
    assert contents.count(number) == 1
    path.write_bytes(contents.replace(number, torch.tensor(501.0).numpy().tobytes()))
    assert torch.load(path)["weight"][500] == 501  # torch does not notice
    with pytest.raises(
        DamagedFileError, match=r"weights\.pth: cannot be loaded safely; .* is damaged"
    ):
        load_torch_file(path)


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_half_a_file_is_damaged(tmp_path: Path, as_zip: bool, share: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=as_zip)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedFileError):
        load_torch_file(path)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, as_zip: bool) -> None:
    torch.save(Bomb(tmp_path / "ran"), tmp_path / "a", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(DamagedFileError, match="holds code to run"):
        load_torch_file(tmp_path / "a")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_torch_file(tmp_path / "no.pth")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_lack_of_memory_does_not_make_a_file_damaged(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise error

    torch.save(STATE, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)) as caught:
        load_torch_file(tmp_path / "weights.pth")
    assert caught.value is error
