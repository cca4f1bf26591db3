import pytest
import torch

from unet import UNet
from unet.models.encoders import levels_of
from unet.models.receptive_field import (
    BEYOND_CELLS,
    context,
    margin,
    output_stride,
    own_levels,
    reach,
    valid_input_side,
)


def seen_by(net: UNet, size: int) -> torch.Tensor:
    """Which columns of an image of `size` columns (first) each output column (second) depends on.

    With positive weights and no bias, an image of zeros but for one column has positive logits
    exactly where they depend on that column.
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else 0.5)
        impulses = torch.eye(size, dtype=torch.float64)[:, None, None].expand(-1, 1, 4, -1)
        return net.double()(impulses)[:, 0, 0] > 0


@pytest.mark.parametrize("upsampling", ["conv_transpose", "bilinear"])
@pytest.mark.parametrize("downsampling", ["max_pool", "conv"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_the_formula_is_what_a_network_sees(
    levels: int, downsampling: str, upsampling: str
) -> None:
    net = UNet(1, 1, (1,) * levels, "none", downsampling, upsampling)
    own, bilinear = own_levels(levels), upsampling == "bilinear"
    cell, edge = output_stride(own), margin(own, bilinear)
    assert (net.output_stride, net.margin) == (cell, edge)
    middle = 8 * cell
    seen = seen_by(net, 17 * cell)
    for position in range(cell):
        pixel = middle + position
        columns = seen[:, pixel].nonzero().flatten()
        left, right = reach(own, position, bilinear)
        assert (int(columns.min()), int(columns.max())) == (pixel - left, pixel + right)
    # Whatever sees beyond an edge on the grid is in the margin, and a cell less would not do.
    assert not seen[:middle, middle + edge :].any()
    assert not seen[middle:, : middle - edge].any()
    assert seen[:middle, middle + edge - cell :].any()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_an_unpadded_network_takes_its_context_and_sees_it(count: int) -> None:
    net, levels = UNet(1, 1, (1,) * count, norm="none", padding="valid"), own_levels(count)
    side = valid_input_side(levels, 3 * output_stride(levels))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else 0.5)
        height = valid_input_side(levels, 1)
        impulses = torch.eye(side, dtype=torch.float64)[:, None, None].expand(-1, 1, height, -1)
        seen = net.double()(impulses)[:, 0, 0] > 0
    assert net.context == context(levels)
    assert seen.shape[1] == side - 2 * net.context
    # The first logit sees as far as the first column, to the left; the last as far as the last.
    assert seen[0, 0]
    assert seen[-1, -1]
    assert reach(levels, max(output_stride(levels) - 2, 0))[0] == net.context


def test_the_sides_that_an_unpadded_network_takes_are_all_of_them() -> None:
    for count in (1, 2, 3, 4):
        levels, taken = own_levels(count), []
        net = UNet(1, 1, widths=(1,) * count, norm="none", padding="valid").eval()
        smallest = valid_input_side(levels, 1)
        for side in range(smallest, smallest + 3 * output_stride(levels)):
            logits = side - 2 * context(levels)
            if side == valid_input_side(levels, logits):
                taken.append(side)
                assert net(torch.zeros(1, 1, side, side)).shape[2:] == (logits, logits)
                assert (logits - BEYOND_CELLS) % output_stride(levels) == 0
                assert valid_input_side(levels, logits + 1) == side + output_stride(levels)
        assert len(taken) == 3
    sides = [valid_input_side(own_levels(5), pixels) for pixels in (1, 4, 5, 388)]
    assert sides == [188, 188, 204, 572]


def test_the_numbers_that_the_documents_name() -> None:
    assert [margin(own_levels(count)) for count in (1, 2, 3, 4, 5)] == [2, 8, 24, 48, 96]
    for count in (3, 4, 5, 6):
        cell = output_stride(own_levels(count))
        assert margin(own_levels(count)) == 6 * cell
        assert margin(own_levels(count), bilinear=True) == 7 * cell
        assert max(max(reach(own_levels(count), i)) for i in range(cell)) == 7 * cell - 5
    assert ((1024 - 2 * margin(own_levels(4))) / 1024) ** 2 == pytest.approx(0.82, abs=0.005)
    assert ((1024 - 2 * margin(own_levels(5))) / 1024) ** 2 == pytest.approx(0.66, abs=0.005)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "convnext_tiny"])
def test_the_formula_is_what_a_network_of_torchvision_sees(encoder: str) -> None:
    levels = levels_of(encoder, 0)
    net = UNet(1, 1, (1,) * (len(levels) - 1), "none", encoder=encoder).eval().double()
    for parameter in net.parameters():
        # Nothing negative, so that nothing cancels out.
        parameter.data.fill_(1 / parameter[0].numel() if parameter.ndim == 4 else 1)
    if encoder.startswith("convnext"):  # where layer norms would else take all away
        net.encoder.apply(lambda part: getattr(part, "reset_parameters", lambda: None)())
    cell, edge = output_stride(levels), margin(levels)
    assert (net.output_stride, net.margin) == (cell, edge)
    middle = edge + 2 * cell
    # Brighter from the middle outwards, so that max pooling takes what lies furthest.
    away = (torch.arange(2 * middle, dtype=torch.double) - middle).abs()
    image = away.repeat(1, 1, 2 * cell, 1).requires_grad_()
    logits = net(image)
    for position in (0, 1, cell - 1):
        (gradient,) = torch.autograd.grad(
            logits[..., middle + position].sum(), image, retain_graph=True
        )
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten() - middle - position
        assert (-int(columns.min()), int(columns.max())) == reach(levels, position)
