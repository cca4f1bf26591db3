"""The weights that a network begins with."""

from typing import Any

from unet.config.parsing import named_items
from unet.config.schema import Config
from unet.models.unet import UNet
from unet.models.weights import incompatible_weights
from unet.runtime.text import listed


def load_initial_weights(net: UNet, contents: dict[str, Any], path: str, config: Config) -> str:
    """Take over the weights of another model; of another number of classes, but the head's.

    Args:
        net: to be changed.
        contents: of `load_checkpoint`.
        path: of the file, for the messages.
        config: of the network.

    Returns:
        What was done, in words.

    Raises:
        ValueError: if the weights do not fit.
    """
    weights, own = contents["model"], net.state_dict()
    model, names = contents["config"]["model"], list(config.data.classes)
    theirs = list(named_items(contents["config"]["data"]["classes"]))
    said = f"taking the weights of {path}"
    if len(theirs) != len(names):
        weights = {key: own[key] if key.startswith("head.") else w for key, w in weights.items()}
        said += f", but not those of the head: it has {len(theirs)} classes, here are {len(names)}"
    elif theirs != names:
        said += f"; its classes {', '.join(theirs)} become {', '.join(names)}, in this order"
    other = incompatible_weights(weights, own, allowed=own)
    if model["norm"] != config.model.norm:  # group and instance have weights of the same shapes
        other.insert(0, f"model.norm {model['norm']}, expected {config.model.norm}")
    if other:
        settings = " ".join(f"model.{k}={v}".replace(" ", "") for k, v in model.items())
        raise ValueError(
            f"{path}: the weights do not fit this config's model; set it as there, {settings}:\n"
            f"{listed(other, 3)}"
        )
    net.load_state_dict(weights)
    if model["padding"] != net.padding:
        said += (
            f"; they were trained with model.padding {model['padding']}, here it is {net.padding}, "
            "which is the same but near the borders"
        )
    return said
