"""What a network costs: multiply-adds and memory.

Found on torch's meta device, where tensors have shapes and no numbers: nothing is computed, however
large the image.
"""

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from unet.models.blocks import centre_crop
from unet.models.unet import UNet


def multiply_adds(net: UNet, size: tuple[int, int]) -> int:
    """Count the multiply-adds of the convolutions and up-convolutions for one image.

    Args:
        net: any; it stays as it is.
        size: (H, W) of the image; what it is padded or mirrored to counts.
    """
    image = torch.empty(1, net.in_channels, *size, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        _on_meta(net, torch.float32).eval()(net.mirror_context(image))
    return int(counter.get_total_flops()) // 2  # torch counts a multiply-add as two


def prediction_memory(net: UNet, shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Bytes that tiles (N, H, W) and what is made of them take at most, beside the weights.

    Raises:
        ValueError: with padding valid, if the net does not take this size.
    """
    net = _on_meta(net, dtype).eval()
    memory = _LiveBytes(net)
    with torch.no_grad(), memory:
        net(torch.empty(shape[0], net.in_channels, *shape[1:], dtype=dtype, device="meta"))
    return memory.peak


def step_memory(
    net: UNet, loss_function: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype
) -> int:
    """Bytes that a step of training takes at most, beside weights and optimizer.

    They are images and targets, the activations saved for the backward pass, and the gradients,
    as they come and go. What a library needs besides, such as the workspace of a convolution, is
    not among them.

    Args:
        net: any; it stays as it is.
        loss_function: (logits, targets) -> scalar.
        shape: (N, H, W) of the batch.
        dtype: of the activations.
    """
    net, loss_function = _on_meta(net, dtype).train(), copy.deepcopy(loss_function).to("meta")
    memory = _LiveBytes(net)
    with memory:
        images = torch.empty(shape[0], net.in_channels, *shape[1:], dtype=dtype, device="meta")
        targets = torch.empty(shape, dtype=torch.int64, device="meta")
        logits = net(images)
        loss_function(logits, centre_crop(targets, logits)).backward()
    return memory.peak


def _on_meta(net: UNet, dtype: torch.dtype) -> UNet:
    return copy.deepcopy(net).to("meta", dtype)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made within it, until they are gone.

    Args:
        net: whose weights and buffers do not count.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        # Views share a storage, which lives as long as any of them.
        self._known: Any = WeakIdKeyDictionary()
        for tensor in (*net.parameters(), *net.buffers()):
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known[storage] = True
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
