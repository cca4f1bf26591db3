"""Which weights do not fit a network."""

from collections.abc import Collection, Mapping

from torch import Tensor


def misfits(
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
