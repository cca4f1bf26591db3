import pytest
import torch
from torchvision.models import get_model_weights

from unet.models.encoder_specs import ENCODER_SPECS
from unet.models.encoders import BackboneEncoder, UNetEncoder, build_backbone
from unet.models.receptive_field import receptive_field, unet_geometry


@pytest.mark.parametrize("name", ["none", *ENCODER_SPECS])
def test_an_encoder_gives_a_list_of_features(name: str) -> None:
    with torch.device("meta"):
        own = name == "none"
        encoder = UNetEncoder(2, (4, 6, 8)) if own else BackboneEncoder(name, 2, 5)
        features = encoder.eval()(torch.empty(1, 2, 128, 192))
    assert isinstance(features, list)
    assert [tuple(feature.shape) for feature in features] == [
        (1, channels, 128 // stride, 192 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert encoder.strides[0] == 1
    num_widths = len(encoder.channels)
    assert encoder.strides[-1] == unet_geometry(name, num_widths).output_stride


@pytest.mark.parametrize("name", ENCODER_SPECS)
def test_the_features_are_those_of_the_spec(name: str) -> None:
    with torch.device("meta"):
        features = build_backbone(name, 3).eval()(torch.empty(1, 3, 64, 64))
    assert tuple(features) == ENCODER_SPECS[name].nodes
    assert get_model_weights(name).DEFAULT.url.startswith("https://")


# Their larger siblings have the same blocks.
@pytest.mark.parametrize("name", sorted({*ENCODER_SPECS} - {"resnet101", "convnext_small"}))
def test_which_encoders_have_a_global_receptive_field(name: str) -> None:
    """A change on the left reaches features on the far right only through a global mean."""
    torch.manual_seed(0)
    net = build_backbone(name, 3).eval().double().requires_grad_(False)
    images = torch.randn(1, 3, 32, 1024, dtype=torch.double).repeat(2, 1, 1, 1)
    images[1, ..., :64] += 1
    one, other = list(net(images).values())[-1]
    assert (receptive_field(name) is None) == bool((one - other)[..., -1].any())
