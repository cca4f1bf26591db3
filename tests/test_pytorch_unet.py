import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet import UNet
from unet.pytorch_unet import is_pytorch_unet, to_checkpoint

# A network of their module names, from torch's own layers alone.


class TheirDoubleConv(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class TheirDown(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), TheirDoubleConv(channels, out))


class TheirUp(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, out, 2, stride=2)
        self.conv = TheirDoubleConv(2 * out, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        bottom, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        return self.conv(torch.cat([skip, x], dim=1))


class TheirOut(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 1)


class TheirUNet(nn.Module):
    """With `shallow` channels at the full image, theirs 64."""

    def __init__(self, channels: int, classes: int, shallow: int = 4) -> None:
        super().__init__()
        widths = [shallow * 2**i for i in range(5)]
        self.inc = TheirDoubleConv(channels, widths[0])
        for i in range(4):
            setattr(self, f"down{i + 1}", TheirDown(widths[i], widths[i + 1]))
            setattr(self, f"up{i + 1}", TheirUp(widths[4 - i], widths[3 - i]))
        self.outc = TheirOut(widths[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.inc(x)]
        for i in range(4):
            features.append(getattr(self, f"down{i + 1}").maxpool_conv(features[-1]))
        x = features.pop()
        for i in range(4):
            x = getattr(self, f"up{i + 1}")(x, features.pop())
        return self.outc.conv(x)


def their_net(channels: int = 3, classes: int = 2, shallow: int = 4) -> TheirUNet:
    """One whose batch norms have statistics, as after a training."""
    torch.manual_seed(0)
    net = TheirUNet(channels, classes, shallow)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for numbers in (module.weight.data, module.running_var):
                numbers.uniform_(0.5, 2)
            for numbers in (module.bias.data, module.running_mean):
                numbers.normal_()
    return net.eval().requires_grad_(False)


def our_net(state: dict, classes: int = 2) -> UNet:
    contents = to_checkpoint(state)
    net = UNet(**contents["config"]["model"], num_classes=classes)
    net.load_state_dict(contents["model"])  # strictly: every name, and none besides
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (33, 47), (50, 61)])
def test_logits_are_theirs(size: tuple[int, int]) -> None:
    """At other sizes than multiples of 16 theirs loses pixels, where the image here is extended."""
    theirs = their_net()
    image = torch.randn(2, 3, *size)
    bottom, right = (max(-side % 16, 32 - side) for side in size)
    expected = theirs(F.pad(image, (0, right, 0, bottom), mode="replicate"))
    torch.testing.assert_close(
        our_net(theirs.state_dict())(image),
        expected[..., : size[0], : size[1]],
        rtol=1e-4,
        atol=1e-4,
    )


def test_logits_of_their_own_size() -> None:
    theirs = their_net(1, 3, shallow=64)
    ours, image = our_net(theirs.state_dict(), 3), torch.randn(1, 1, 48, 32)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_single_output_becomes_two_classes_of_its_sigmoid() -> None:
    theirs, image = their_net(classes=1), torch.randn(1, 3, 32, 48)
    probabilities = our_net(theirs.state_dict())(image).softmax(1)
    expected = theirs(image).sigmoid()
    torch.testing.assert_close(probabilities[:, 1:], expected, rtol=1e-4, atol=1e-5)


def test_older_files_have_biases_that_batch_norm_takes_away() -> None:
    theirs = their_net()
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.randn(module.out_channels), requires_grad=False)
    ours, image = our_net(theirs.state_dict()), torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-4)


def test_what_a_state_dict_tells_of_its_network() -> None:
    state = {**their_net(1, 3).state_dict(), "mask_values": [0, 128, 255]}
    assert is_pytorch_unet(state)
    contents = to_checkpoint(state)
    assert contents["normalization"] == {"mean": (0.0,), "std": (1.0,)}
    assert contents["config"] == {
        "data": {"classes": ["0", "1", "2"]},
        "model": {"in_channels": 1, "widths": [4, 8, 16, 32, 64], "norm": "batch"},
    }


def test_other_networks_are_told_apart() -> None:
    assert not is_pytorch_unet({"model": {}})
    assert not is_pytorch_unet([1, 2])
    state = their_net().state_dict()
    bilinear = {key: tensor for key, tensor in state.items() if ".up." not in key}
    with pytest.raises(ValueError, match="with bilinear upsampling, expected those of UNet"):
        to_checkpoint(bilinear)
    with pytest.raises(ValueError, match=r"got attention\.weight, expected names of Pytorch-UNet"):
        to_checkpoint({**state, "attention.weight": torch.zeros(3)})
