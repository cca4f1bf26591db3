import pytest
import torch
from torch import Tensor, nn

from unet.models.custom import CustomLoss, CustomNetwork


class Halving(nn.Module):
    """Fails unless both sides are even, as many networks do for other multiples."""

    output_stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 2, stride=2), nn.BatchNorm2d(4))
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2] % 2 == x.shape[-1] % 2 == 0
        return self.up(self.down(x))


def test_images_of_any_size_are_padded_for_a_custom_network() -> None:
    inner = Halving()
    net = CustomNetwork(inner, in_channels=1, num_classes=3).eval()
    image = torch.randn(2, 1, 6, 8)
    assert torch.equal(net(image), inner(image))
    assert net(image[..., :5, :7]).shape == (2, 3, 5, 7)


def test_the_state_dict_is_that_of_the_custom_network_itself() -> None:
    inner, other = Halving(), Halving()
    net = CustomNetwork(inner, 1, 3)
    assert net.state_dict().keys() == inner.state_dict().keys()
    net.load_state_dict(other.state_dict())
    assert torch.equal(inner.up.weight, other.up.weight)


def test_checking_a_custom_network_does_not_change_its_state() -> None:
    inner = Halving()
    inner.down.eval()
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    CustomNetwork(inner, 1, 3)
    assert inner.training
    assert not inner.down.training
    assert all(torch.equal(before[name], value) for name, value in inner.state_dict().items())


def test_what_is_no_network_for_the_data_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^network: got <class .*Halving.*expected an instance"):
        CustomNetwork(Halving, 1, 3)
    with pytest.raises(ValueError, match=r"^network: cannot run on an image of shape \(1, 2, 4"):
        CustomNetwork(Halving(), 2, 3)
    with pytest.raises(ValueError, match=r"logits of shape \(1, 3, 4, 4\).*expected \(1, 5, 4"):
        CustomNetwork(Halving(), 1, 5)
    with pytest.raises(ValueError, match="one for each class and pixel"):
        CustomNetwork(nn.Conv2d(1, 3, 2, stride=2), 1, 3)

    class InADict(Halving):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": super().forward(x)}

    with pytest.raises(TypeError, match="got an output of type dict, expected a tensor"):
        CustomNetwork(InADict(), 1, 3)


def test_a_custom_loss_returns_one_number_and_has_nothing_to_train() -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    loss = CustomLoss(nn.CrossEntropyLoss(ignore_index=255))(logits, target)
    assert torch.equal(loss, nn.functional.cross_entropy(logits, target))
    for wrong in (
        nn.CrossEntropyLoss(reduction="none"),
        lambda logits, _: float(logits.detach().sum()),
        lambda logits, _: logits.detach().sum(),
    ):
        with pytest.raises(ValueError, match=r"^loss: got .*expected (a tensor with )?one "):
            CustomLoss(wrong)(logits, target)
    with pytest.raises(ValueError, match=r"^loss: got trainable parameters"):
        CustomLoss(nn.Linear(2, 1))
