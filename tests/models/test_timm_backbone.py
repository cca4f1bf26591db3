import importlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import with_encoder
from torch import nn

from unet.config.loader import config_from_dict
from unet.models.encoder_specs import encoder_spec
from unet.models.encoders import BackboneEncoder, build_backbone
from unet.models.fuse import fuse_batch_norm
from unet.models.weights import encoder_normalization, load_encoder_weights

timm = pytest.importorskip("timm", reason="needs the extra timm")

# With batch norm; with activations in it; with layer norm; with features (N, H, W, C); with
# features at the full resolution.
SMALL = ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "mambaout_femto", "cspdarknet53"]


@pytest.mark.parametrize("name", [*SMALL, "swin_tiny_patch4_window7_224"])
def test_an_encoder_of_timm_gives_a_list_of_features(name: str) -> None:
    with torch.device("meta"):
        encoder = BackboneEncoder(f"timm/{name}", 2, 5).eval()
        features = encoder(torch.empty(1, 2, 128, 192))
    assert [tuple(feature.shape) for feature in features] == [
        (1, channels, 128 // stride, 192 // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert encoder.strides[0] == 1 < encoder.strides[1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("resnett34", "does not have; did you mean timm/resnet34"),
        ("hf-hub:someone/net", "does not have; timm.list_models() lists"),  # nothing goes online
        ("resnet34.imagenet", "expected one of timm's weights after the point: a1_in1k, a2_in1k"),
        ("vit_tiny_patch16_224", "features of the strides 16, 16, 16, expected a network for"),
        ("maxvit_tiny_tf_224", "is for images of 224 x 224 pixels, expected a network for"),
        ("legacy_xception", "whose features do not divide the image, expected a network for"),
    ],
)
def test_networks_that_are_no_encoders_are_errors_of_the_config(name: str, problem: str) -> None:
    config = {
        "name": "x",
        "data": {
            "root": ".",
            "classes": {"background": 0, "cell": 1},
            "validation": {"fraction": 0.5},
        },
        "model": {"encoder": f"timm/{name}"},
        "train": {"epochs": 1},
    }
    with pytest.raises(ValueError, match=rf"^config: model.encoder: got timm/{name}") as error:
        config_from_dict(config)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", SMALL[:4])
def test_fusing_the_batch_norm_of_an_encoder_of_timm_keeps_the_logits(name: str) -> None:
    torch.manual_seed(0)
    net = with_encoder(f"timm/{name}", in_channels=3)
    for _ in range(3):
        net(1 + torch.randn(2, 3, 64, 64))
    fused, image = fuse_batch_norm(net), torch.randn(2, 3, 45, 70)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(image), net.eval()(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL[:3])
def test_a_state_dict_of_timms_network_gives_its_features(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = timm.create_model(name).eval()
    path = tmp_path / "weights.pth"
    torch.save(whole.state_dict(), path)
    encoder, grey = (build_backbone(f"timm/{name}", channels).eval() for channels in (3, 1))
    encoder.load_state_dict(load_encoder_weights(f"timm/{name}", str(path), 3))
    grey.load_state_dict(load_encoder_weights(f"timm/{name}", str(path), 1))
    image = torch.randn(1, 1, 64, 96)
    colour = image.expand(-1, 3, -1, -1)
    *_, last = encoder(colour).values()
    *_, expected = whole.forward_intermediates(colour, intermediates_only=True)
    assert last.shape == expected.shape
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    *_, also_last = grey(image).values()
    torch.testing.assert_close(also_last, last, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"weights\.pth: is not a state dict of timm/regnetx_002:"):
        load_encoder_weights("timm/regnetx_002", str(path), 3)


def test_without_a_network_connection_the_error_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    expected = (
        r"^train.encoder_weights: .* timm/resnet10t.* \(no network\); download timm/resnet10t"
    )
    with pytest.raises(ValueError, match=expected):
        load_encoder_weights("timm/resnet10t", "DEFAULT", 3)
    monkeypatch.setattr("timm.models.is_model_pretrained", lambda _: False)
    with pytest.raises(ValueError, match=r"got DEFAULT, but timm has no weights of timm/resnet10t"):
        load_encoder_weights("timm/resnet10t", "DEFAULT", 3)


def test_a_server_without_address_is_not_tried_for_a_minute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no address")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("unet.models.timm_backbone.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"resnet10t could not be downloaded .*download timm/"):
        load_encoder_weights("timm/resnet10t", "DEFAULT", 3)
    assert time.monotonic() - start < 20  # of 65 s
    assert not importlib.import_module("huggingface_hub.constants").HF_HUB_OFFLINE


def test_the_normalization_is_that_of_timms_weights() -> None:
    mean, std = encoder_normalization("timm/mobilenetv3_small_050", 3) or ((), ())
    config = timm.get_pretrained_cfg("mobilenetv3_small_050")
    assert (mean, std) == (tuple(config.mean), tuple(config.std))
    assert encoder_normalization("timm/resnet10t", 5) is None
    assert np.allclose(encoder_spec("timm/resnet10t").channels, (64, 64, 128, 256, 512))
