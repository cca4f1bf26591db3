"""Pretrained weights for an encoder. Only the start of a training needs them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet.models.encoder_specs import TIMM
from unet.models.encoders import build_backbone
from unet.models.timm_backbone import download_timm_weights
from unet.runtime.files import DamagedFileError, load_torch_file
from unet.runtime.optional import import_extra

# What other tools wrap around a state dict, and put before the names in it: DataParallel,
# torch.compile and Lightning.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")


def load_encoder_weights(encoder: str, weights: str, in_channels: int) -> dict[str, Tensor]:
    """Load a state dict for the backbone of a `BackboneEncoder`.

    The first convolution is adapted to images with C channels. For C = 1 its weights are summed:
    features are those of a grey image shown in three channels. For others they are repeated or cut
    off, and scaled by 3 / C to keep the size of the features.

    Args:
        encoder: a network of torchvision or timm.
        weights: DEFAULT for those of torchvision or timm, downloaded unless they were before; or a
            file with a state dict of the network.
        in_channels: C of the images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the weights cannot be downloaded or read, or do not fit the network.
    """
    if weights == "DEFAULT" and encoder.startswith(TIMM):
        return download_timm_weights(encoder, in_channels)
    path = _download(encoder) if weights == "DEFAULT" else Path(weights)
    found = _read_state_dict(path)
    with torch.device("meta"):  # names and shapes without values
        own = build_backbone(encoder, in_channels).state_dict()
        colour = build_backbone(encoder, 3).state_dict()
        whole = _build_whole(encoder).state_dict()
    if encoder.startswith(TIMM):
        names = {key.removeprefix("net.").replace(".", "_"): key for key in own}
        found, whole = (
            {names.get(key.replace(".", "_"), key): one for key, one in state.items()}
            for state in (found, whole)
        )
    for key in own:
        if key in found and found[key].shape == colour[key].shape != own[key].shape:
            found[key] = _adapt_channels(found[key], in_channels)
        if key.endswith("num_batches_tracked"):  # missing from older files
            found.setdefault(key, torch.tensor(0))
    if wrong := incompatible_weights(found, own, whole):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"train.encoder_weights: {path}: is not a state dict of {encoder}: "
            f"{'; '.join(wrong[:3])}{more}; for a checkpoint of unet set train.init_from"
        )
    return {key: found[key] for key in own}


def encoder_normalization(
    encoder: str, in_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and standard deviation of the images that pretrained weights expect.

    For grey images both are averaged over the colours. None for other numbers of channels.
    """
    if encoder.startswith(TIMM):
        pretrained = import_extra("timm", encoder).get_pretrained_cfg(encoder.removeprefix(TIMM))
        if pretrained is None:
            return None
        mean, std = tuple(pretrained.mean), tuple(pretrained.std)
    else:
        from torchvision.models import get_model_weights

        transforms = get_model_weights(encoder).DEFAULT.transforms()
        mean, std = tuple(transforms.mean), tuple(transforms.std)
    if in_channels == 1:
        return (sum(mean) / 3,), (sum(std) / 3,)
    return (mean, std) if in_channels == 3 else None


def incompatible_weights(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], allowed: Collection[str]
) -> list[str]:
    """List the weights that are missing, unknown, or of another shape or type, one text for each.

    Args:
        found: the weights.
        own: the weights of the network.
        allowed: names that may be found, whether the network has them or not.
    """
    shapes = {key: _describe(one) for key, one in found.items()}
    expected = {key: _describe(one) for key, one in own.items()}
    return [
        f"{key} {shapes.get(key, 'missing')}, expected {shape}"
        for key, shape in expected.items()
        if shapes.get(key) != shape
    ] + [f"{key} unknown" for key in found if key not in allowed]


def _describe(weight: Tensor) -> str:
    if not weight.shape:
        return "a number" if weight.is_floating_point() else "a whole number"
    return " x ".join(map(str, weight.shape)) + ("" if weight.is_floating_point() else " integers")


def _build_whole(encoder: str) -> nn.Module:
    """Make a network with its classifier."""
    if encoder.startswith(TIMM):
        net: nn.Module = import_extra("timm", encoder).create_model(encoder.removeprefix(TIMM))
        return net
    from torchvision.models import get_model  # slow to import, see `build_backbone`

    return get_model(encoder, weights=None)  # type: ignore[no-any-return]


def _download(encoder: str) -> Path:
    """Download torchvision's weights into torch.hub's folder unless they are there."""
    from torchvision.models import get_model_weights

    url: str = get_model_weights(encoder).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.exists():
        return path
    digest = path.stem.rpartition("-")[2]  # torchvision's file names end in the start of a SHA-256
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), digest)
    except (OSError, RuntimeError) as error:  # no network; a wrong checksum
        raise ValueError(
            f"train.encoder_weights: {path.name} could not be downloaded ({error}); download {url} "
            f"on a machine with a network connection and put it into {path.parent}, or set "
            "train.encoder_weights=FILE"
        ) from error
    return path


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"train.encoder_weights: there is no file {path}; expected DEFAULT or the file of a "
            "state dict"
        )
    try:
        found = _load_file(path)
    except DamagedFileError as error:
        raise ValueError(f"train.encoder_weights: {error}: download it again") from error
    if isinstance(found, dict) and "format" not in found:  # no checkpoint of unet
        found = _unwrap(found, path)
    if isinstance(found, dict) and all(isinstance(one, Tensor) for one in found.values()):
        return found
    raise ValueError(
        f"train.encoder_weights: {path}: is not a state dict; for a checkpoint of unet set "
        "train.init_from"
    )


def _load_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return load_torch_file(path)
    safetensors = import_extra("safetensors.torch", str(path))
    try:
        return safetensors.load_file(path)
    except Exception as error:  # of its own type, which its extra defines
        raise DamagedFileError(f"{path}: cannot be read ({error})") from error


def _unwrap(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the state dict in a file of another tool, without a prefix of all its keys."""
    removed = []
    while inner := [key for key in _WRAPPERS if isinstance(found.get(key), dict)]:
        found = found[inner[0]]
        removed.append(f"the entry {inner[0]}")
    while prefix := next((p for p in _PREFIXES if found and all(_begins(k, p) for k in found)), ""):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
        removed.append(f"the prefix {prefix}")
    if removed:
        print(f"note: train.encoder_weights: {path}: read without {', '.join(removed)}")
    return found


def _begins(key: object, prefix: str) -> bool:
    return isinstance(key, str) and key.startswith(prefix)


def _adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """First convolution (K, 3, h, w) -> (K, C, h, w)."""
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [i % 3 for i in range(in_channels)]] * (3 / in_channels)
