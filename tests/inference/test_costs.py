from collections.abc import Callable

import pytest
import torch
from torch import nn

from unet import UNet
from unet.inference.costs import multiply_adds, prediction_memory, step_memory
from unet.models.losses import SegmentationLoss


def by_hand(widths: tuple[int, ...], channels: int, classes: int, height: int, width: int) -> int:
    """Kernel times channels in times channels out, for each output pixel."""
    total = 0
    for level, width_here in enumerate(widths):
        pixels = (height >> level) * (width >> level)
        total += pixels * 9 * (channels * width_here + width_here * width_here)
        channels = width_here
    for level in reversed(range(len(widths) - 1)):
        pixels = (height >> level) * (width >> level)
        shallow, deep = widths[level], widths[level + 1]
        total += pixels // 4 * 4 * deep * shallow  # up: each pixel below times a 2 x 2 kernel
        total += pixels * 9 * (2 * shallow * shallow + shallow * shallow)
    return total + height * width * widths[0] * classes


@pytest.mark.parametrize("widths", [(4,), (4, 8), (3, 5, 7, 9)])
def test_multiply_adds_are_those_counted_by_hand(widths: tuple[int, ...]) -> None:
    net = UNet(in_channels=2, num_classes=5, widths=widths)
    assert multiply_adds(net, (32, 48)) == by_hand(widths, 2, 5, 32, 48)
    cell = 2 ** (len(widths) - 1)
    assert multiply_adds(net, (33, 48)) == by_hand(widths, 2, 5, 32 + cell, 48)


def saved_bytes(net: nn.Module, call: Callable[[], torch.Tensor]) -> int:
    """Of all that torch saves for the backward pass, but weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()  # while it lives, so do they
        total = sum(saved.values())
        del out
    return total


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_step_takes_what_torch_saves_and_the_gradients(norm: str) -> None:
    net = UNet(1, 2, widths=(8, 16, 32), norm=norm)
    loss, shape = SegmentationLoss(), (4, 64, 96)
    images, targets = torch.randn(4, 1, 64, 96), torch.zeros(shape, dtype=torch.int64)
    saved = saved_bytes(net, lambda: loss(net(images), targets))
    assert step_memory(net, loss, shape, torch.float32) == pytest.approx(saved, rel=0.2)


def test_the_papers_network_is_counted_by_hand() -> None:
    net = UNet(1, 2, norm="none", padding="valid")
    total, channels = 0, 1
    # Sides after each convolution and up-convolution of figure 1, all levels down and up.
    for width, sides in zip((64, 128, 256, 512, 1024), (570, 282, 138, 66, 30), strict=True):
        total += 9 * (channels * sides**2 + width * (sides - 2) ** 2) * width
        channels = width
    for width, side in zip((512, 256, 128, 64), (56, 104, 200, 392), strict=True):
        total += side**2 * 2 * width * width
        total += 9 * (2 * width * (side - 2) ** 2 + width * (side - 4) ** 2) * width
    assert multiply_adds(net, (388, 388)) == total + 388**2 * 64 * 2


def test_a_step_without_padding_takes_what_torch_saves() -> None:
    net, loss = UNet(1, 2, (8, 16, 32), padding="valid", dropout=0.5), SegmentationLoss()
    images, targets = torch.randn(2, 1, 100, 92), torch.zeros((2, 60, 52), dtype=torch.int64)
    saved = saved_bytes(net, lambda: loss(net(images), targets))
    assert step_memory(net, loss, (2, 100, 92), torch.float32) == pytest.approx(saved, rel=0.25)


def test_what_a_network_keeps_is_counted_by_hand() -> None:
    # Nothing but two convolutions and ReLUs, each of which keeps its input or output.
    net, pixels = UNet(1, 2, widths=(8,), norm="none"), 64 * 64 * 4
    forward = prediction_memory(net, (1, 64, 64), torch.float32)
    # The padded image, and two times 8 channels: what goes into a convolution, what comes out.
    assert forward == pytest.approx((2 + 8 + 8) * pixels, rel=0.01)
    assert prediction_memory(net, (3, 64, 64), torch.bfloat16) == pytest.approx(
        1.5 * forward, rel=0.01
    )


def test_what_a_decoder_is_done_with_is_gone() -> None:
    net, pixels = UNet(1, 2, widths=(8, 16), norm="none"), 64 * 64 * 4
    # Image, padded image, skip, what goes into the up-convolution (16 channels, a quarter of the
    # pixels) and what comes out, and both together.
    forward = prediction_memory(net, (1, 64, 64), torch.float32)
    assert forward == pytest.approx((2 + 8 + 4 + 8 + 16) * pixels, rel=0.01)


def test_recomputing_takes_less() -> None:
    loss, shape = SegmentationLoss(), (2, 64, 64)
    plain, saving = (
        step_memory(
            UNet(1, 2, (8, 16, 32), activation_checkpointing=recompute), loss, shape, torch.float32
        )
        for recompute in (False, True)
    )
    assert saving < 0.8 * plain


def test_no_image_is_too_large_to_be_counted() -> None:
    net = UNet(3, 2, widths=(64, 128))
    side = 2**20
    assert multiply_adds(net, (side, side)) == by_hand((64, 128), 3, 2, side, side)
    assert prediction_memory(net, (1, side, side), torch.float32) > 200 * side**2 * 4
    assert next(net.parameters()).device.type == "cpu"
    assert net.training
