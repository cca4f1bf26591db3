from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import ENCODERS, with_encoder
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from unet import ConvTranspose2d, UNet
from unet.models.blocks import Up, centre_crop
from unet.models.unet import argmax_classes


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (16, 16), (17, 31), (40, 23)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    net = UNet(in_channels=2, num_classes=5, widths=(4, 6, 8)).eval()
    assert net(torch.randn(3, 2, *size)).shape == (3, 5, *size)


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize("resizing", [{}, {"downsampling": "conv"}, {"upsampling": "bilinear"}])
def test_every_parameter_learns(norm: str, resizing: dict[str, str]) -> None:
    net = UNet(1, 2, widths=(4, 6, 8), norm=norm, **resizing)
    net(torch.randn(2, 1, 19, 21)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
def test_every_norm_takes_any_size(norm: str) -> None:
    for training in (True, False):
        net = UNet(1, 2, widths=(4, 6, 8), norm=norm).train(training)
        assert net(torch.randn(1, 1, 3, 2)).isfinite().all()


def test_group_norm_has_groups_of_several_channels() -> None:
    net = UNet(1, 2, widths=(32, 36, 7), norm="group")
    groups = [m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert set(groups) == {8, 4, 1}


def test_convolutions_start_with_the_papers_standard_deviation() -> None:
    torch.manual_seed(0)
    weight = UNet(1, 2, widths=(64, 64)).encoder.stem[3].weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


def test_without_a_norm_all_weights_start_with_the_papers_standard_deviation() -> None:
    """sqrt(2 / N), N inputs to each output: arXiv 1505.04597, section 3."""
    torch.manual_seed(0)
    net = UNet(1, 20, widths=(64, 64), norm="none", downsampling="conv")
    inputs = {
        "encoder.stem.0": 9, "encoder.stem.3": 9 * 64, "encoder.backbone.0.halve": 4 * 64,
        "encoder.backbone.0.conv.0": 9 * 64, "encoder.backbone.0.conv.3": 9 * 64,
        "decoder.0.up": 64, "decoder.0.conv.0": 9 * 128, "decoder.0.conv.3": 9 * 64, "head": 64,
    }  # fmt: skip
    for name, count in inputs.items():
        layer = net.get_submodule(name)
        assert float(layer.weight.detach().std()) == pytest.approx((2 / count) ** 0.5, rel=0.07), (
            name
        )
        assert not layer.bias.any()
    parameters = {name.rpartition(".")[0] for name, _ in net.named_parameters()}
    assert parameters == set(inputs)


class Calls(TorchDispatchMode):
    """Records every call of a torch operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


def transposed_convolutions(run: Callable[[], object]) -> tuple[int, int]:
    """Count convolutions, forward and backward, and the transposed ones among them."""
    with Calls() as calls:
        run()
    flags = []
    for name, args in calls.calls:
        if name == "aten.convolution.default":  # input, weight, bias, stride, padding, ...
            flags.append(args[6])
        elif name == "aten.convolution_backward.default":  # the gradient comes first
            flags.append(args[7])
        elif "conv" in name:
            flags.append("transpose" in name)
    return len(flags), sum(flags)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("encoder", ["none", "mobilenet_v3_large"])
def test_torchs_transposed_convolution_is_never_called(
    layout: torch.memory_format, encoder: str
) -> None:
    def torchs() -> Tensor:
        return F.conv_transpose2d(torch.ones(1, 2, 3, 3), kernel, stride=2)

    kernel = torch.ones(2, 1, 2, 2, requires_grad=True)
    assert transposed_convolutions(lambda: torchs().sum().backward()) == (2, 2)
    with torch.inference_mode():
        assert transposed_convolutions(torchs) == (1, 1)
    net = UNet(1, 2, widths=(4, 6, 8, 10, 12), encoder=encoder).to(memory_format=layout)
    image = torch.randn(2, 1, 64, 64).to(memory_format=layout)
    convolutions, transposed = transposed_convolutions(lambda: net(image).mean().backward())
    assert (convolutions > 30, transposed) == (True, 0)
    with torch.inference_mode():
        convolutions, transposed = transposed_convolutions(lambda: net.eval()(image))
    assert (convolutions > 15, transposed) == (True, 0)


def test_channels_last_is_kept_through_the_network() -> None:
    net = UNet(1, 2, widths=(8, 16, 32)).to(memory_format=torch.channels_last)
    seen = []
    for module in net.modules():
        module.register_forward_hook(
            lambda _, __, out: seen.extend(out if isinstance(out, list) else [out])
        )
    net(torch.randn(2, 1, 16, 16).to(memory_format=torch.channels_last))
    assert len(seen) > 20
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


def test_odd_images_are_padded_then_cropped_back() -> None:
    net = UNet(1, 2, widths=(4, 6, 8)).eval()
    image = torch.randn(1, 1, 13, 18)
    padded = F.pad(image, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(net(image), net(padded)[..., :13, :18])


def test_the_unpadded_network_is_the_one_in_the_papers_figure() -> None:
    """Channels and size of every level in figure 1 of arXiv 1505.04597."""
    with torch.device("meta"):
        net = UNet(in_channels=1, num_classes=2, norm="none", padding="valid")
        image = torch.zeros(1, 1, 572, 572)
    seen = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | ConvTranspose2d):
            module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:3])))
        if isinstance(module, Up):
            module.conv[0].register_forward_pre_hook(
                lambda _, x: seen.append(tuple(x[0].shape[1:3]))
            )
    assert net(image).shape == (1, 2, 388, 388)
    assert seen == [
        *((64, 570), (64, 568)),
        *((64, 284), (128, 282), (128, 280)),
        *((128, 140), (256, 138), (256, 136)),
        *((256, 68), (512, 66), (512, 64)),
        *((512, 32), (1024, 30), (1024, 28)),
        *((512, 56), (1024, 56), (512, 54), (512, 52)),  # up, with the skip, two convolutions
        *((256, 104), (512, 104), (256, 102), (256, 100)),
        *((128, 200), (256, 200), (128, 198), (128, 196)),
        *((64, 392), (128, 392), (64, 390), (64, 388)),
        (2, 388),
    ]


@pytest.mark.parametrize("downsampling", ["max_pool", "conv"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_padded_and_unpadded_logits_agree_far_from_the_border(
    levels: int, downsampling: str
) -> None:
    settings = {"widths": (4, 6, 8, 8)[:levels], "norm": "batch", "downsampling": downsampling}
    padded, unpadded = (
        UNet(2, 3, **settings, padding=padding).eval() for padding in ("same", "valid")
    )
    unpadded.load_state_dict(padded.state_dict())
    image = torch.randn(1, 2, 20 * padded.output_stride, 17 * padded.output_stride)
    # The padded network's grid starts two pixels before the unpadded network's.
    inner = unpadded(image[..., 2:-2, 2:-2])
    torch.testing.assert_close(inner, centre_crop(padded(image), inner), rtol=1e-5, atol=1e-5)


def test_sizes_that_an_unpadded_network_cannot_halve_raise_an_error() -> None:
    net = UNet(1, 2, widths=(1,) * 5, padding="valid")
    for size in ((570, 572), (572, 588 + 1), (172, 572)):
        with pytest.raises(ValueError, match=r"UNet: got an image of .* sides of 188 plus multipl"):
            net(torch.zeros(1, 1, *size))


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (16, 16), (17, 31)])
def test_mirror_context_pads_an_image_of_any_size_for_an_unpadded_network(
    size: tuple[int, int],
) -> None:
    net = UNet(1, 2, widths=(2, 2, 2), padding="valid")
    image = torch.rand(1, 1, *size)
    surrounded = net.mirror_context(image)
    logits = net(surrounded)
    assert all(0 <= got - side < 4 for got, side in zip(logits.shape[2:], size, strict=True))
    # As numpy mirrors it.
    around = [
        (net.context, got - side - net.context)
        for got, side in zip(surrounded.shape[2:], size, strict=True)
    ]
    expected = np.pad(image[0, 0].numpy(), around, mode="symmetric")
    assert np.array_equal(surrounded[0, 0].numpy(), expected)
    assert UNet(1, 2, widths=(2, 2)).mirror_context(image) is image


def test_dropout_is_after_the_two_deepest_levels_and_in_training_only() -> None:
    net = UNet(1, 2, widths=(4, 6, 8), dropout=0.5)
    image, seen = torch.randn(1, 1, 16, 16), []
    net.encoder.dropout.register_forward_hook(lambda _, x, out: seen.append((x[0], out)))
    torch.manual_seed(5)
    first = net(image)
    assert [x.shape[1] for x, _ in seen] == [6, 8]
    for x, out in seen:
        kept = out != 0
        torch.testing.assert_close(out[kept], 2 * x[kept])
        assert 0.3 < float((kept & (x > 0)).sum() / (x > 0).sum()) < 0.7
    assert not torch.equal(net(image), first)
    torch.manual_seed(5)
    assert torch.equal(net(image), first)
    net.eval()
    assert torch.equal(net(image), net(image))
    plain = UNet(1, 2, widths=(4, 6, 8)).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain(image), net(image))


def test_upsampling_uses_our_layer_and_not_torchs() -> None:
    net = UNet(widths=(4, 6, 8))
    assert sum(isinstance(module, ConvTranspose2d) for module in net.modules()) == 2
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in net.modules())


def test_the_default_network_has_as_many_parameters_as_the_papers() -> None:
    net = UNet(in_channels=1, num_classes=2, norm="none")
    # Counted by hand from figure 1 of the paper: 3 x 3 convolutions, 2 x 2 up-convolutions, head.
    widths = (64, 128, 256, 512, 1024)
    expected = 0
    channels = 1
    for width in widths:
        expected += (9 * channels + 1) * width + (9 * width + 1) * width
        channels = width
    for deep, shallow in zip(widths[:0:-1], widths[-2::-1], strict=True):
        expected += (4 * deep + 1) * shallow
        expected += (9 * 2 * shallow + 1) * shallow + (9 * shallow + 1) * shallow
    expected += (64 + 1) * 2
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_a_single_width_is_a_network_at_one_resolution() -> None:
    assert UNet(1, 2, widths=(4,)).eval()(torch.zeros(1, 1, 5, 7)).shape == (1, 2, 5, 7)


@pytest.mark.parametrize(
    "wrong", [{"in_channels": 0}, {"num_classes": 0}, {"widths": ()}, {"widths": (4, 0)}]
)
def test_numbers_that_are_not_positive_raise_an_error(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"UNet: got .*expected positive numbers"):
        UNet(**wrong)


def test_bilinear_upsampling_interpolates_the_image_features() -> None:
    up = Up(3, 2, 4, norm="none", stride=2, upsampling="bilinear")
    up.conv = nn.Sequential(nn.Identity())  # to see its input
    x, skip = torch.randn(1, 3, 5, 6), torch.randn(1, 2, 10, 12)
    mixed = F.conv2d(F.interpolate(x, scale_factor=2, mode="bilinear"), up.up[0].weight)
    expected = torch.cat([skip, mixed + up.up[0].bias[:, None, None]], dim=1)
    torch.testing.assert_close(up(x, skip), expected)


def test_unknown_options_raise_errors() -> None:
    with pytest.raises(ValueError, match="norm: got 'bach', expected one of batch, group,"):
        UNet(norm="bach")
    with pytest.raises(ValueError, match="downsampling: got 'maxpool', expected one of max_pool"):
        UNet(downsampling="maxpool")
    with pytest.raises(ValueError, match="upsampling: got 'nearest', expected one of conv_transp"):
        UNet(upsampling="nearest")
    with pytest.raises(ValueError, match="UNet: got upsampling bilinear and padding valid"):
        UNet(upsampling="bilinear", padding="valid")
    with pytest.raises(ValueError, match="padding: got 'none', expected one of same, valid"):
        UNet(padding="none")


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_activation_checkpointing_changes_no_number(norm: str, padding: str) -> None:
    torch.manual_seed(0)
    settings = {"widths": [4, 8, 16], "norm": norm, "padding": padding, "dropout": 0.3}
    plain = UNet(in_channels=2, **settings)
    saving = UNet(in_channels=2, **settings, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 2, 52, 60)
    for net in (plain, saving):
        torch.manual_seed(1)
        for _ in range(2):
            net(image).square().sum().backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), saving.named_parameters(), strict=True
    ):
        assert torch.equal(one.grad, other.grad), name
    for name, buffer in plain.state_dict().items():
        assert torch.equal(buffer, saving.state_dict()[name]), name
    # It keeps fewer activations until the backward pass.
    kept = []
    for net in (plain, saving):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.append(x.numel()), x)[1], lambda x: x
        ):
            net(image)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_of_torchvision_takes_any_image_and_learns(encoder: str) -> None:
    net = with_encoder(encoder, in_channels=2)
    assert net.eval()(torch.randn(1, 2, 33, 70)).shape == (1, 2, 33, 70)
    assert net(torch.randn(1, 2, 1, 1)).shape == (1, 2, 1, 1)
    net.train()(torch.randn(2, 2, 65, 40)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in net.modules())


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet_b0"])
def test_activation_checkpointing_of_an_encoder_changes_no_number(encoder: str) -> None:
    image, states = torch.randn(2, 3, 64, 64), []
    for checkpointing in (False, True):
        net = with_encoder(encoder, activation_checkpointing=checkpointing)
        torch.manual_seed(1)  # stochastic depth
        net(image).square().sum().backward()
        gradients = {f"{name} gradient": p.grad for name, p in net.named_parameters()}
        states.append({**net.state_dict(), **gradients})
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_frozen_encoder_does_not_change() -> None:
    net = with_encoder("efficientnet_b0")
    backbone, stem = net.encoder.backbone, net.encoder.stem
    net.encoder.frozen = True
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    image = torch.randn(2, 3, 64, 64)
    features = [net.train().encoder(image)[-1] for _ in range(2)]
    assert torch.equal(*features)  # no stochastic depth
    net(image).square().mean().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(p.grad is not None for part in (stem, net.decoder) for p in part.parameters())
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    net.encoder.frozen = False
    net.train()(image).square().mean().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert not torch.equal(backbone.state_dict()["features.0.1.running_mean"],
                           before["features.0.1.running_mean"])  # fmt: skip


def test_unknown_encoders_and_wrong_arguments_of_encoders_raise_errors() -> None:
    with pytest.raises(ValueError, match="encoder: got 'resnet', expected one of none, resnet18"):
        UNet(encoder="resnet")
    with pytest.raises(ValueError, match=r"widths: got \(8, 8\), expected 5 numbers"):
        UNet(widths=(8, 8), encoder="resnet18")
    for setting in ({"downsampling": "conv"}, {"padding": "valid"}, {"dropout": 0.5}):
        with pytest.raises(ValueError, match="with encoder resnet18, expected the defaults"):
            UNet(widths=(8,) * 5, encoder="resnet18", **setting)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_argmax_classes_chooses_the_first_of_equal_scores(num_classes: int) -> None:
    scores = torch.randint(3, (num_classes, 31, 45), dtype=torch.float32)
    expected = torch.from_numpy(scores.numpy().argmax(0)).to(torch.uint8)
    for layout in (scores, scores.movedim(0, -1).contiguous().movedim(-1, 0), scores.bfloat16()):
        assert torch.equal(argmax_classes(layout), expected)


# More than 5 seconds: torch traces the network twice.
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compiles_as_one_graph_and_only_once_more_for_all_other_sizes(
    memory_format: torch.memory_format,
) -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: fx.GraphModule, _: object) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    net = UNet(widths=(16, 32)).eval().to(memory_format=memory_format)
    compiled = torch.compile(net, fullgraph=True, backend=count)
    # Torch itself compiles again where a feature has fewer than 20480 values.
    for size in ((96, 128), (112, 144), (101, 117), (128, 96)):
        image = torch.randn(1, 3, *size).to(memory_format=memory_format)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image), net(image))
    assert len(graphs) == 2
