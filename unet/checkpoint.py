"""The checkpoint file: its format, written and read."""

from pathlib import Path
from typing import Any

import torch

from unet.inference.pytorch_unet import is_pytorch_unet, to_checkpoint
from unet.runtime.files import DamagedFileError, atomic_path, load_torch_file

_FORMAT, _VERSION = "unet checkpoint", 4


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file.
        contents: config, normalization, val_stems, palette, model, and for training also optimizer,
            scaler, progress ...
    """
    contents = {"format": _FORMAT, "version": _VERSION, **contents}
    # Through a file of Python's own, whose errors say what the disk said.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # torch closes its archive, after the disk refused to go on
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or a state dict of Pytorch-UNet as one, to the CPU.

    No code is run that it may hold.

    Raises:
        DamagedFileError: if it is damaged, unsafe, or another kind of file.
        FileNotFoundError: if there is no such file.
        ValueError: if it is neither, or of another version of this project.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a checkpoint, such as {path / 'best.pt'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint; check the path")
    try:
        contents = load_torch_file(path)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error}: take a best.pt or last.pt that 'unet train' wrote"
        ) from error
    if is_pytorch_unet(contents):
        try:
            return to_checkpoint(contents)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not isinstance(contents, dict) or contents.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: is not a checkpoint of unet; take a best.pt or last.pt that 'unet train' "
            "wrote, or a state dict of Pytorch-UNet with its own names"
        )
    if contents["version"] != _VERSION:
        raise ValueError(
            f"{path}: got a checkpoint of format version {contents['version']}, expected "
            f"{_VERSION}; use the version of unet that wrote it"
        )
    return contents
