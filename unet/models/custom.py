"""Networks and losses of the user, with the interface of the project's own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unet.models.network import Network
from unet.models.receptive_field import Geometry

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K, H, W), target (N, H, W) int64 with 255 for ignored pixels -> scalar."""


# The layers are unknown: tiles lie on no grid, and no overlap is exact.
UNKNOWN_GEOMETRY = Geometry(output_stride=1, context=0, remainder=0, margin=0, exact_overlap=None)


class CustomNetwork(Network):
    """A network of the user: images (N, C, H, W) -> logits (N, K, H, W).

    Images are padded to 2, 3, ... times `network.output_stride`, or 32 without this attribute. The
    state dict is that of the network.

    Raises:
        TypeError: if it is no module, or its output is no tensor.
        ValueError: if it does not take images of C channels and return K logits for each pixel.
    """

    def __init__(self, network: nn.Module, in_channels: int, num_classes: int) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: got {network!r:.100}, expected an instance of nn.Module")
        super().__init__(in_channels, num_classes, UNKNOWN_GEOMETRY)
        self.network = network
        self.output_stride = int(getattr(network, "output_stride", 32))
        self._check()

    @torch.no_grad()
    def _check(self) -> None:
        """Run the network on one small image, without changing its state."""
        parameter = next(self.network.parameters(), torch.zeros(()))
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        side = 2 * self.output_stride
        image = torch.zeros(1, self.in_channels, side, side, device=parameter.device)
        try:
            self(image)
        except RuntimeError as error:
            raise ValueError(
                f"network: cannot run on an image of shape {tuple(image.shape)}: {error}"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode

    def forward_on_grid(self, x: Tensor) -> Tensor:
        """Image with H and W multiples of `output_stride` -> logits (N, K, H, W)."""
        logits = self.network(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"network: got an output of type {type(logits).__name__}, expected a tensor of "
                "logits (N, K, H, W); return that tensor alone"
            )
        if logits.shape != (expected := (x.shape[0], self.num_classes, *x.shape[-2:])):
            raise ValueError(
                f"network: got logits of shape {tuple(logits.shape)} for images of shape "
                f"{tuple(x.shape)}, expected {tuple(expected)}: one for each class and pixel"
            )
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict of the network."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict of the network."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)


def part_name(part: object) -> str:
    """Return the name of a function, or of the class of an object."""
    return str(getattr(part, "__name__", type(part).__name__))


def check_network(network: nn.Module | None, expected: str | None, where: str) -> None:
    """Raise ValueError unless a network is the one that a model was trained with.

    Args:
        network: the network; None if there is none.
        expected: the name of its class; None for a `UNet` of the config.
        where: the checkpoint, for messages.
    """
    got = None if network is None else part_name(network)
    if got == expected:
        return
    if expected is None:
        raise ValueError(f"{where}: was trained with a U-Net, but got network={got}; leave it out")
    raise ValueError(
        f"{where}: was trained with a network of your own, {expected}, which the file does not "
        f"contain, but got network={got}; load it in Python: unet.load_model({where!r}, "
        f"network={expected}(...))"
    )


class CustomLoss(nn.Module):
    """A loss of the user.

    Raises:
        ValueError: if it has parameters to train, or does not return a scalar.
    """

    def __init__(self, loss: LossFunction) -> None:
        super().__init__()
        self.loss = loss
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                "loss: got trainable parameters, expected none: only the network is trained; make "
                "them part of the network, or buffers"
            )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, K, H, W), target (N, H, W) -> scalar."""
        loss = self.loss(logits, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.50}"
            raise ValueError(f"loss: got {got}, expected a tensor with one number")
        if logits.requires_grad and not loss.requires_grad:
            raise ValueError(
                "loss: got a number without gradient, expected one that torch computed from the "
                "logits"
            )
        return loss.reshape(())
