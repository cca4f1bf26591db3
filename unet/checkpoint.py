"""The checkpoint file: its format, written and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unet.runtime.files import DamagedFileError, atomic_path, load_torch_file

_FORMAT, _VERSION = "unet checkpoint", 5


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        contents: config, normalization, val_stems, palette and model, as `Predictor.contents`
            returns them; a training run adds optimizer, scaler, progress ...
    """
    contents = {"format": _FORMAT, "version": _VERSION, **contents}
    # Python writes the file: its errors hold the system's message, torch's own do not.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # torch fails to close its archive on a full disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def find_checkpoint(path: str | Path) -> Path:
    """Return the best.pt of a run's folder, or the path of any other file as it is.

    Raises:
        FileNotFoundError: if a folder has no best.pt.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    best, last = path / "best.pt", path / "last.pt"
    if not best.exists():
        advice = f"give {last}" if last.exists() else "give a checkpoint or the folder of a run"
        raise FileNotFoundError(f"{path}: there is no best.pt in this folder; {advice}")
    return best


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or the best.pt of a folder, to the CPU, without running code in it.

    Raises:
        DamagedFileError: if the file is damaged, unsafe, or of another type.
        FileNotFoundError: if it does not exist.
        ValueError: if it is no checkpoint, or of another format version.
    """
    path = find_checkpoint(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint; check the path")
    try:
        contents = load_torch_file(path)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error}: take a best.pt or last.pt that 'unet train' wrote"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        advice = "take a best.pt or last.pt that 'unet train' wrote"
        if isinstance(contents, Mapping) and any(
            str(key).endswith("inc.double_conv.0.weight") for key in contents
        ):
            advice = (
                "it holds weights of Pytorch-UNet: convert them with "
                f"scripts/convert_pytorch_unet.py {path} -o checkpoint.pt"
            )
        raise ValueError(f"{path}: is not a checkpoint of unet; {advice}")
    if contents["version"] != _VERSION:
        raise ValueError(
            f"{path}: got a checkpoint of format version {contents['version']}, expected "
            f"{_VERSION}; use the version of unet that wrote it"
        )
    return contents
