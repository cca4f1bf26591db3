from math import prod

import pytest
import torch

from unet import UNet
from unet.models.encoder_specs import encoder_levels
from unet.models.receptive_field import dependencies, level_strides, receptive_field, unet_geometry


def column_dependencies(net: UNet, height: int, width: int) -> torch.Tensor:
    """Whether each output column (second) depends on each of `width` input columns (first).

    With positive weights and no bias, an image of zeros except for one column has positive logits
    exactly where they depend on that column.
    """
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.fill_(0 if name.endswith("bias") else 0.5)
        impulses = torch.eye(width, dtype=torch.float64)[:, None, None].expand(-1, 1, height, -1)
        return net.double()(impulses)[:, 0, 0] > 0


@pytest.mark.parametrize("upsampling", ["conv_transpose", "bilinear"])
@pytest.mark.parametrize("downsampling", ["max_pool", "conv"])
@pytest.mark.parametrize("num_widths", [1, 2, 3, 4, 5])
def test_the_computed_receptive_field_is_that_of_a_network(
    num_widths: int, downsampling: str, upsampling: str
) -> None:
    net = UNet(1, 1, (1,) * num_widths, "none", downsampling, upsampling)
    unit, margin = net.output_stride, net.margin
    middle = 8 * unit
    depends = column_dependencies(net, 4, 17 * unit)
    distances = []
    for position in range(unit):
        pixel = middle + position
        columns = depends[:, pixel].nonzero().flatten()
        left, right = dependencies(
            encoder_levels("none", num_widths), position, upsampling == "bilinear"
        )
        assert (int(columns.min()), int(columns.max())) == (pixel - left, pixel + right)
        distances.append((left, right))
    side = max(left + 1 + right for left, right in distances)
    assert receptive_field("none", num_widths, upsampling) == (side, max(map(max, distances)))
    # All logits that depend on pixels beyond an edge on the grid are in the margin, and a grid unit
    # less would not contain them.
    assert not depends[:middle, middle + margin :].any()
    assert not depends[middle:, : middle - margin].any()
    assert depends[:middle, middle + margin - unit :].any()


@pytest.mark.parametrize("num_widths", [1, 2, 3, 4, 5])
def test_an_unpadded_network_depends_on_all_of_its_context(num_widths: int) -> None:
    net = UNet(1, 1, (1,) * num_widths, norm="none", padding="valid")
    side = net.geometry.input_side(3 * net.output_stride)
    depends = column_dependencies(net, net.geometry.input_side(1), side)
    assert depends.shape[1] == side - 2 * net.context
    # The first logit depends on the first column, the last logit on the last.
    assert depends[0, 0]
    assert depends[-1, -1]
    levels = encoder_levels("none", num_widths)
    assert dependencies(levels, max(net.output_stride - 2, 0))[0] == net.context


def test_input_side_gives_every_size_that_an_unpadded_network_takes() -> None:
    for num_widths in (1, 2, 3, 4):
        net = UNet(1, 1, widths=(1,) * num_widths, norm="none", padding="valid").eval()
        geometry, accepted = net.geometry, []
        smallest = geometry.input_side(1)
        for side in range(smallest, smallest + 3 * geometry.output_stride):
            logits = side - 2 * geometry.context
            if side == geometry.input_side(logits):
                accepted.append(side)
                assert net(torch.zeros(1, 1, side, side)).shape[2:] == (logits, logits)
                assert (logits - geometry.remainder) % geometry.output_stride == 0
                assert geometry.input_side(logits + 1) == side + geometry.output_stride
        assert len(accepted) == 3
    geometry = unet_geometry(padding="valid")
    assert [geometry.input_side(pixels) for pixels in (1, 4, 5, 388)] == [188, 188, 204, 572]
    assert [unet_geometry().input_side(pixels) for pixels in (1, 5, 388)] == [1, 5, 388]


def test_the_numbers_in_the_documentation() -> None:
    margins = [unet_geometry("none", count).margin for count in (1, 2, 3, 4, 5)]
    assert margins == [2, 8, 24, 48, 96]
    assert unet_geometry(padding="valid").context == 92
    for count in (3, 4, 5, 6):
        geometry = unet_geometry("none", count)
        unit = geometry.output_stride
        assert geometry.margin == 6 * unit
        assert unet_geometry("none", count, upsampling="bilinear").margin == 7 * unit
        field = receptive_field("none", count)
        assert field is not None
        assert field[1] == 7 * unit - 5
    assert ((1024 - 2 * margins[3]) / 1024) ** 2 == pytest.approx(0.82, abs=0.005)
    assert ((1024 - 2 * margins[4]) / 1024) ** 2 == pytest.approx(0.66, abs=0.005)


def test_the_overlap_that_makes_tiles_exact() -> None:
    assert unet_geometry().exact_overlap == 192
    assert unet_geometry(norm="none").exact_overlap == 192
    assert unet_geometry(padding="valid").exact_overlap == 4
    assert unet_geometry("resnet18").exact_overlap == 2 * unet_geometry("resnet18").margin
    assert unet_geometry("mobilenet_v3_large").exact_overlap is None
    for norm in ("group", "instance"):
        assert unet_geometry(norm=norm).exact_overlap is None


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "convnext_tiny"])
def test_the_computed_receptive_field_is_that_of_a_torchvision_encoder(encoder: str) -> None:
    torch.manual_seed(0)
    levels = encoder_levels(encoder, 0)
    net = UNet(1, 1, (1,) * (len(levels) - 1), "none", encoder=encoder).eval()
    for parameter in net.parameters():
        # Nothing negative, so that nothing cancels out.
        parameter.data.fill_(1 / parameter[0].numel() if parameter.ndim == 4 else 1)
    if encoder.startswith("convnext"):  # its layer norms would remove everything otherwise
        net.encoder.backbone.apply(lambda layer: getattr(layer, "reset_parameters", lambda: None)())
    unit = net.output_stride
    assert unit == prod(level_strides(levels))
    middle = net.margin + 2 * unit
    # Brighter with the distance from the middle, so that max pooling takes the furthest pixels.
    distance = (torch.arange(2 * middle, dtype=torch.float32) - middle).abs()
    image = distance.repeat(1, 1, 2 * unit, 1).requires_grad_()
    logits = net(image)
    for position in (0, unit - 1):
        (gradient,) = torch.autograd.grad(
            logits[..., middle + position].sum(), image, retain_graph=True
        )
        columns = gradient.abs().sum((0, 1, 2)).nonzero().flatten() - middle - position
        assert (-int(columns.min()), int(columns.max())) == dependencies(levels, position)
