"""Weights of torchvision for an encoder: found, downloaded once, fitted to the image.

Only the start of a training needs them; its checkpoints hold the encoder with all else.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unet.models.encoder_specs import Encoder
from unet.models.unet import backbone
from unet.runtime.files import DamagedFileError, load_torch_file


def encoder_weights(encoder: Encoder, weights: str, in_channels: int) -> dict[str, Tensor]:
    """Return the weights that an encoder begins with, by their names in it.

    The first convolution is fitted to images of other than 3 channels: for one its weights are
    summed, as for a grey image shown three times; for others they are repeated, or for two left
    out, and scaled by 3 / C, so that features stay as large as they were.

    Args:
        encoder: of torchvision.
        weights: DEFAULT for torchvision's, downloaded if they are not in torch.hub's folder; or a
            file with a state dict of its network.
        in_channels: C of the images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if they cannot be downloaded, read, or do not fit.
    """
    from torchvision.models import get_model  # where it is needed, as in `backbone`

    path = _fetched(encoder) if weights == "DEFAULT" else Path(weights)
    found = _read(path)
    with torch.device("meta"):  # names and shapes, and no numbers
        own = backbone(encoder, in_channels).state_dict()
        whole = get_model(encoder, weights=None).state_dict()
    first = next(iter(own))
    if first in found and found[first].shape == whole[first].shape != own[first].shape:
        found[first] = _fitted(found[first], in_channels)
    for key in own:
        if key.endswith("num_batches_tracked"):  # which older files do not have
            found.setdefault(key, torch.tensor(0))
    if wrong := incompatible_weights(found, own, whole):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"train.encoder_weights: {path}: is not a state dict of torchvision's {encoder}: "
            f"{'; '.join(wrong[:3])}{more}; for a checkpoint of unet set train.init_from"
        )
    return {key: found[key] for key in own}


def encoder_numbers(encoder: Encoder, in_channels: int) -> tuple[tuple[float, ...], ...] | None:
    """Return mean and standard deviation of the images that torchvision's weights were trained on.

    Of grey images both are the mean of the colours'. None for channels that mean other than these.
    """
    from torchvision.models import get_model_weights

    transforms = get_model_weights(encoder).DEFAULT.transforms()
    numbers = tuple(transforms.mean), tuple(transforms.std)
    if in_channels == 1:
        return tuple((sum(three) / 3,) for three in numbers)
    return numbers if in_channels == 3 else None


def _fetched(encoder: Encoder) -> Path:
    """Download torchvision's weights into torch.hub's folder, if they are not there."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(encoder).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    digest = path.stem.rpartition("-")[2]  # the first of its SHA-256, as torchvision names files
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest)
    except (OSError, RuntimeError) as error:  # no network; a file of another checksum
        raise ValueError(
            f"train.encoder_weights: {path.name} could not be downloaded ({error}); fetch {url} "
            f"where there is a network, and put it into {path.parent}, or give the file itself as "
            "train.encoder_weights=FILE"
        ) from error
    return path


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"train.encoder_weights: there is no file {path}; expected DEFAULT or the file of a "
            "state dict"
        )
    try:
        found = load_torch_file(path)
    except DamagedFileError as error:
        raise ValueError(f"train.encoder_weights: {error}: fetch it anew") from error
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise ValueError(
            f"train.encoder_weights: {path}: is not a state dict, names and tensors; for a "
            "checkpoint of unet set train.init_from"
        )
    return dict(found)


def _fitted(weight: Tensor, in_channels: int) -> Tensor:
    """First convolution (K, 3, h, w) -> (K, C, h, w)."""
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % 3 for i in range(in_channels)]] * (3 / in_channels)


def incompatible_weights(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], known: Collection[str]
) -> list[str]:
    """Say which weights are missing, of another shape, or there besides, a text for each.

    Args:
        found: the weights by name.
        own: those of the network.
        known: the names that may be there, needed or not.
    """
    return [
        f"{key} {_shape(found[key]) if key in found else 'missing'}, expected {_shape(own[key])}"
        for key in own
        if key not in found or found[key].shape != own[key].shape
    ] + [f"{key} besides" for key in found if key not in known]


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
