"""Networks of timm as encoders; needs the extra timm."""

import difflib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from unet.models.encoder_specs import TIMM, EncoderSpec
from unet.runtime.optional import import_extra
from unet.runtime.text import shorten


class TimmBackbone(nn.Module):
    """A network of timm that returns a dict of features, without one at the full resolution.

    Args:
        name: timm/NAME.
        in_channels: channels of the image.
        pretrained: whether to download timm's weights; otherwise the weights are random.
    """

    def __init__(self, name: str, in_channels: int, pretrained: bool = False) -> None:
        super().__init__()
        self.net = _create(name, features_only=True, in_chans=in_channels, pretrained=pretrained)
        self.strides = tuple(stride for stride in self.net.feature_info.reduction() if stride > 1)
        self.channels = tuple(self.net.feature_info.channels()[-len(self.strides) :])
        self.channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # noqa: D102
        features = self.net(image)[-len(self.strides) :]
        if self.channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return {str(stride): x for stride, x in zip(self.strides, features, strict=True)}


@cache
def timm_spec(name: str) -> EncoderSpec:
    """Return the spec of timm/NAME; its receptive field is not known.

    Raises:
        ValueError: if timm is not installed, has no such network, or one that is no encoder.
    """
    timm = import_extra("timm", f"encoder: {name}")
    network = name.removeprefix(TIMM)
    tags = [one.rpartition(".")[2] for one in timm.list_pretrained(f"{network.split('.')[0]}.*")]
    if not timm.is_model(network):
        near = difflib.get_close_matches(network.partition(".")[0], timm.list_models(), 3)
        names = " or ".join(TIMM + one for one in near)
        raise ValueError(
            f"encoder: got {name}, which timm {timm.__version__} does not have; "
            + (f"did you mean {names}?" if near else "timm.list_models() lists its networks")
        )
    if "." in network and network.partition(".")[2] not in tags:
        raise ValueError(
            f"encoder: got {name}, expected one of timm's weights after the point: "
            f"{', '.join(tags) or 'none'}"
        )
    expected = "expected a network for images of any size with features of growing strides"
    with torch.device("meta"), torch.no_grad():  # shapes without values
        try:
            backbone = TimmBackbone(name, 3).eval()
        except (AttributeError, RuntimeError) as error:
            raise ValueError(f"encoder: got {name}, whose features timm cannot return") from error
        strides, channels = backbone.strides, backbone.channels
        if any(deep <= shallow or deep % shallow for shallow, deep in pairwise((1, *strides))):
            raise ValueError(
                f"encoder: got {name} with features of the strides {', '.join(map(str, strides))}, "
                f"{expected}, such as timm/resnet34"
            )
        height, width = 2 * strides[-1], 3 * strides[-1]
        try:
            features = backbone(torch.empty(1, 3, height, width))
        except Exception as error:  # of the network, whatever the type
            size = " x ".join(map(str, backbone.net.pretrained_cfg["input_size"][1:]))
            raise ValueError(
                f"encoder: got {name}, which is for images of {size} pixels, {expected}"
            ) from error
    if [tuple(x.shape[1:]) for x in features.values()] != [
        (count, height // stride, width // stride)
        for count, stride in zip(channels, strides, strict=True)
    ]:
        raise ValueError(f"encoder: got {name}, whose features do not divide the image, {expected}")
    levels = tuple(((3, deep // shallow),) for shallow, deep in pairwise((1, *strides)))
    return EncoderSpec((), channels, levels, global_field=True)


def download_timm_weights(name: str, in_channels: int) -> dict[str, Tensor]:
    """Return a state dict of `TimmBackbone`, downloaded unless it was before.

    Raises:
        ValueError: if there are no weights, or no network connection.
    """
    timm = import_extra("timm", f"encoder: {name}")
    network = name.removeprefix(TIMM)
    if not timm.models.is_model_pretrained(network):
        raise ValueError(
            f"train.encoder_weights: got DEFAULT, but timm has no weights of {name}; give a file"
        )
    try:
        with _without_retries():
            return TimmBackbone(name, in_channels, pretrained=True).state_dict()
    except Exception as error:  # of the network connection, whatever package opens it
        config = timm.get_pretrained_cfg(network)
        raise ValueError(
            f"train.encoder_weights: the weights of {name} could not be downloaded "
            f"({shorten(' '.join(str(error).split()))}); download {config.hf_hub_id or config.url} "
            "on a machine with a network connection, and set train.encoder_weights=FILE"
        ) from error


@contextmanager
def _without_retries() -> Iterator[None]:
    """Keep huggingface_hub from trying for a minute if its server has no address here."""
    hub: Any = import_extra("huggingface_hub.constants", "train.encoder_weights", "timm")
    before = hub.HF_HUB_OFFLINE
    try:
        if not getproxies():
            socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, None)
    except OSError:
        hub.HF_HUB_OFFLINE = True  # files that were downloaded before are still found
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _create(name: str, **options: Any) -> Any:
    network = name.removeprefix(TIMM)
    if network.startswith(("swin_", "swinv2_")) and not network.startswith("swinv2_cr"):
        options["strict_img_size"] = False  # windows at the border are padded
    return import_extra("timm", f"encoder: {name}").create_model(network, **options)
