import pytest
import torch
from helpers import ENCODERS, with_encoder
from torch import fx, nn

from unet import UNet
from unet.models.fuse import fuse_batch_norm


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_folding_batch_norm_changes_no_logits(norm: str, padding: str) -> None:
    torch.manual_seed(0)
    net = UNet(in_channels=2, num_classes=3, widths=(4, 8, 16), norm=norm, padding=padding)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # as none is at first
            for numbers in (module.weight.data, module.running_var):
                numbers.uniform_(0.5, 2)
            for numbers in (module.bias.data, module.running_mean):
                numbers.normal_()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded, image = fuse_batch_norm(net), net.mirror_context(torch.randn(2, 2, 21, 18))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training
    torch.testing.assert_close(folded(image), net.eval()(image), rtol=1e-4, atol=1e-4)
    # The network itself is as it was, and what is folded stays so.
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    torch.testing.assert_close(fuse_batch_norm(folded)(image), folded(image), rtol=0, atol=0)


def test_folding_keeps_how_weights_lie_in_memory() -> None:
    net = UNet(1, 2, widths=(8, 16)).to(memory_format=torch.channels_last)
    for convolution in fuse_batch_norm(net).modules():
        if isinstance(convolution, nn.Conv2d):
            assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_folding_the_batch_norm_of_an_encoder_changes_no_logits(encoder: str) -> None:
    net = with_encoder(encoder, in_channels=3)
    for _ in range(3):
        net(1 + torch.randn(2, 3, 64, 64))
    folded, image = fuse_batch_norm(net), torch.randn(2, 3, 45, 70)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(image), net.eval()(image), rtol=1e-3, atol=1e-4)


def test_a_batch_norm_whose_convolution_others_see_is_not_folded() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = self.conv(x)
            return self.norm(seen) + seen

    net = with_encoder("resnet18", in_channels=2)
    net.encoder.backbone = fx.symbolic_trace(Both())
    assert isinstance(fuse_batch_norm(net).encoder.backbone.norm, nn.BatchNorm2d)
