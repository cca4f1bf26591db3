from typing import get_args

import pytest
import torch
from torchvision.models import get_model_weights

from unet.models.encoder_specs import ENCODER_SPECS, Encoder, encoder_levels
from unet.models.receptive_field import receptive_field, strides, unet_geometry
from unet.models.unet import backbone


def test_every_name_has_its_entry() -> None:
    assert ("none", *ENCODER_SPECS) == get_args(Encoder)


@pytest.mark.parametrize("name", ENCODER_SPECS)
def test_the_table_is_what_torchvision_makes(name: str) -> None:
    with torch.device("meta"):
        features = backbone(name, 2).eval()(torch.empty(1, 2, 128, 192))
    assert tuple(features) == ENCODER_SPECS[name].nodes
    levels, sides = encoder_levels(name, 0), [128]
    for stride in strides(levels)[1:]:
        sides.append(sides[-1] // stride)
    assert [tuple(feature.shape) for feature in features.values()] == [
        (1, channels, side, side * 3 // 2)
        for channels, side in zip(ENCODER_SPECS[name].channels, sides[1:], strict=True)
    ]
    assert unet_geometry(name).output_stride == 32
    assert get_model_weights(name).DEFAULT.url.startswith("https://")


@pytest.mark.parametrize("name", sorted({*ENCODER_SPECS} - {"resnet101", "convnext_small"}))
def test_which_encoders_see_all(name: str) -> None:
    """A change in a corner reaches the deepest level's other corner only through a mean of all."""
    torch.manual_seed(0)
    net = backbone(name, 3).eval().double().requires_grad_(False)
    images = torch.randn(1, 3, 32, 2048, dtype=torch.double).repeat(2, 1, 1, 1)
    images[1, ..., :64] += 1
    one, other = list(net(images).values())[-1]
    assert (receptive_field(name) is None) == bool((one - other)[..., -1].any())
