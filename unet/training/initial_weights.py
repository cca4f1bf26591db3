"""The weights that a new run starts from: another model's, or pretrained ones for the encoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unet.checkpoint import load_checkpoint
from unet.config.parsing import named_items
from unet.config.schema import Config
from unet.data.normalization import Normalization
from unet.models.network import Network
from unet.models.unet import UNet
from unet.models.weights import incompatible_weights, load_encoder_weights
from unet.runtime import distributed
from unet.runtime.text import format_list, plural


@dataclass(frozen=True)
class InitialWeights:
    """The checkpoint of `train.init_from`, and the state dict of `train.encoder_weights`."""

    checkpoint: dict[str, Any] | None = None
    encoder: dict[str, Tensor] | None = None

    @property
    def normalization(self) -> Normalization | None:
        """The normalization that the checkpoint was trained with."""
        return Normalization(**self.checkpoint["normalization"]) if self.checkpoint else None

    def load_into(self, net: Network, config: Config) -> None:
        """Copy the weights into a network; raise ValueError if they do not fit."""
        if self.checkpoint is not None:
            _load_checkpoint_into(net, self.checkpoint, config)
        if self.encoder is not None:
            assert isinstance(net, UNet)
            net.encoder.backbone.load_state_dict(self.encoder)


def read_initial_weights(config: Config) -> InitialWeights:
    """Read the weights that the config names, downloading them if necessary.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file or a download is damaged, or is not for this encoder.
    """
    encoder = _read_encoder(config) if config.train.encoder_weights is not None else None
    path = config.train.init_from
    return InitialWeights(load_checkpoint(Path(path)) if path is not None else None, encoder)


@distributed.on_first_rank
def _read_encoder(config: Config) -> dict[str, Tensor]:
    encoder, channels = config.model.encoder, config.model.in_channels
    source = str(config.train.encoder_weights)
    weights = load_encoder_weights(encoder, source, channels)
    fitted = ""
    if channels != 3:
        change = "summed over the colours" if channels == 1 else "repeated and scaled"
        fitted = f"; the weights of its first convolution are {change} for "
        fitted += plural(channels, "channel")
    print(f"train.encoder_weights: the encoder {encoder} starts from the weights {source}{fitted}")
    return weights


def _load_checkpoint_into(net: Network, checkpoint: dict[str, Any], config: Config) -> None:
    """Copy a model's weights, without those of the head if it has another number of classes."""
    weights, own, path = checkpoint["model"], net.state_dict(), config.train.init_from
    names, model = list(config.data.classes), checkpoint["config"]["model"]
    others = list(named_items(checkpoint["config"]["data"]["classes"]))
    theirs = checkpoint["config"].get("custom", {}).get("network")
    if theirs != config.custom.network:
        raise ValueError(
            f"train.init_from: got {path} with the network {theirs or 'UNet'}, expected "
            f"{config.custom.network or 'UNet'}, the network of this run"
        )
    text = f"train.init_from: starting from the weights of {path}"
    if len(others) != len(names):
        weights = {key: own[key] if key.startswith("head.") else w for key, w in weights.items()}
        text += f", except the head: it has {len(others)} classes, this model has {len(names)}"
    elif others != names:
        text += f"; its classes {', '.join(others)} become {', '.join(names)}, in this order"
    incompatible = incompatible_weights(weights, own, allowed=own)
    if model["norm"] != config.model.norm:  # group and instance have weights of the same shapes
        incompatible.insert(0, f"model.norm {model['norm']}, expected {config.model.norm}")
    if incompatible:
        settings = " ".join(f"model.{k}={v}".replace(" ", "") for k, v in model.items())
        raise ValueError(
            f"{path}: the weights do not fit this config's model; use the model of the file, "
            f"{settings}:\n{format_list(incompatible, 3)}"
        )
    net.load_state_dict(weights)
    if model["padding"] != config.model.padding:
        text += (
            f"; they were trained with model.padding {model['padding']}, this model has "
            f"{config.model.padding}, which differs only near image borders"
        )
    print(text)
