import pytest
import torch
from helpers import ENCODERS, with_encoder
from torch import fx, nn

from unet import UNet
from unet.models.fuse import fuse_batch_norm


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_fusing_batch_norm_keeps_the_logits(norm: str, padding: str) -> None:
    torch.manual_seed(0)
    net = UNet(in_channels=2, num_classes=3, widths=(4, 8, 16), norm=norm, padding=padding)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # unlike the initial values
            for numbers in (module.weight.data, module.running_var):
                numbers.uniform_(0.5, 2)
            for numbers in (module.bias.data, module.running_mean):
                numbers.normal_()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fused, image = fuse_batch_norm(net), net.mirror_context(torch.randn(2, 2, 21, 18))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not fused.training
    torch.testing.assert_close(fused(image), net.eval()(image), rtol=1e-4, atol=1e-4)
    # The network itself is unchanged, and fusing again changes nothing.
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    torch.testing.assert_close(fuse_batch_norm(fused)(image), fused(image), rtol=0, atol=0)


def test_fusing_keeps_the_memory_format_of_weights() -> None:
    net = UNet(1, 2, widths=(8, 16)).to(memory_format=torch.channels_last)
    for convolution in fuse_batch_norm(net).modules():
        if isinstance(convolution, nn.Conv2d):
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_fusing_the_batch_norm_of_an_encoder_keeps_the_logits(encoder: str) -> None:
    net = with_encoder(encoder, in_channels=3)
    for _ in range(3):
        net(1 + torch.randn(2, 3, 64, 64))
    fused, image = fuse_batch_norm(net), torch.randn(2, 3, 45, 70)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(image), net.eval()(image), rtol=1e-3, atol=1e-4)


def test_batch_norm_is_not_fused_if_its_convolution_has_other_users() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.norm(x) + x

    net = with_encoder("resnet18", in_channels=2)
    net.encoder.backbone = fx.symbolic_trace(Both())
    assert isinstance(fuse_batch_norm(net).encoder.backbone.norm, nn.BatchNorm2d)
