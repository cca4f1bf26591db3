import re
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from unet.models.encoder_specs import ENCODER_SPECS
from unet.models.encoders import build_backbone
from unet.models.weights import (
    encoder_normalization,
    incompatible_weights,
    load_encoder_weights,
)

NAME = "mobilenet_v3_large"  # the smallest


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file as downloaded from torchvision."""
    torch.manual_seed(1)
    torch.save(get_model(NAME, weights=None).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_an_encoder_computes_the_features_of_torchvisions_network(weights: Path) -> None:
    net, encoder = get_model(NAME, weights=None), build_backbone(NAME, 3)
    net.load_state_dict(torch.load(weights, weights_only=True))
    encoder.load_state_dict(load_encoder_weights(NAME, str(weights), 3))
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(list(encoder.eval()(image).values())[-1], net.eval().features[:16](image))


def test_a_grey_image_has_the_features_of_its_three_channel_copy(weights: Path) -> None:
    colour, grey = build_backbone(NAME, 3), build_backbone(NAME, 1)
    colour.load_state_dict(load_encoder_weights(NAME, str(weights), 3))
    grey.load_state_dict(load_encoder_weights(NAME, str(weights), 1))
    image = torch.randn(1, 1, 64, 64)
    expected = colour.eval()(image.expand(-1, 3, -1, -1)).values()
    for one, other in zip(grey.eval()(image).values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_more_channels_repeat_the_weights_and_keep_the_scale(weights: Path) -> None:
    three, five = (load_encoder_weights(NAME, str(weights), channels) for channels in (3, 5))
    first = next(iter(three))
    assert torch.equal(five[first], three[first][:, [0, 1, 2, 0, 1]] * (3 / 5))
    assert all(torch.equal(three[key], five[key]) for key in three if key != first)


def test_older_files_without_batch_counts_load(weights: Path) -> None:
    old = torch.load(weights, weights_only=True)
    torch.save({key: old[key] for key in old if "num_batches" not in key}, weights)
    encoder = build_backbone(NAME, 3)
    encoder.load_state_dict(load_encoder_weights(NAME, str(weights), 3))
    assert encoder.get_submodule("features.1.block.0.1").num_batches_tracked == 0


def test_weights_in_torch_hubs_folder_are_not_downloaded(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = get_model_weights(NAME).DEFAULT.url.rpartition("/")[2]
    weights.rename(tmp_path / "checkpoints" / name)
    assert load_encoder_weights(NAME, "DEFAULT", 3)


def test_without_a_network_connection_the_error_names_url_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no server
    url = get_model_weights(NAME).DEFAULT.url
    place = re.escape(str(tmp_path / "checkpoints"))
    with pytest.raises(
        ValueError,
        match=rf"^train.encoder_weights: {url.rpartition('/')[2]} could not be downloaded \(.*\); "
        rf"download {url} on a machine with a network .* and put it into {place}, or set train\.",
    ):
        load_encoder_weights(NAME, "DEFAULT", 3)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_download_with_a_wrong_checksum_raises_an_error(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", lambda _: urlopen(weights.as_uri()))
    with pytest.raises(ValueError, match=r"could not be downloaded \(invalid hash value"):
        load_encoder_weights(NAME, "DEFAULT", 3)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_weights_of_another_network_raise_an_error(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"weights\.pth: is not a state dict of res"):
        load_encoder_weights("resnet18", str(weights), 3)
    # A deeper resnet has all weights of a shallower one.
    torch.save(get_model("resnet34", weights=None).state_dict(), weights)
    with pytest.raises(ValueError, match=r"layer1\.2\.conv1\.weight unknown.* and \d+ more"):
        load_encoder_weights("resnet18", str(weights), 3)


def test_files_without_weights_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file no\.pth; expected DEFAULT or"):
        load_encoder_weights(NAME, "no.pth", 3)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pth: cannot be loaded safely"):
        load_encoder_weights(NAME, str(tmp_path / "text.pth"), 3)
    torch.save({"format": "unet checkpoint"}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt: is not a state dict; .* set train\.init_from"):
        load_encoder_weights(NAME, str(tmp_path / "best.pt"), 3)


@pytest.mark.parametrize("name", ENCODER_SPECS)
def test_the_normalization_is_that_of_imagenet(name: str) -> None:
    # As documented by torchvision.
    assert encoder_normalization(name, 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = encoder_normalization(name, 1)
    assert (*mean, *std) == pytest.approx((0.449, 0.226))
    assert encoder_normalization(name, 4) is None


def test_incompatible_weights_are_listed() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "count": torch.tensor(0)}
    assert incompatible_weights(own, own, own) == []
    assert incompatible_weights({**own, "old": torch.zeros(1)}, own, [*own, "old"]) == []
    found = {"a": torch.zeros(3, 2), "b": torch.zeros(4), "old": torch.zeros(1)}
    assert incompatible_weights(found, own, own) == [
        "a 3 x 2, expected 2 x 3",
        "count missing, expected a whole number",
        "old unknown",
    ]


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("state_dict", "model."),
        ("model_state_dict", "module."),
        (None, "_orig_mod.module."),
        ("model", ""),
        ("net", "backbone."),
        ("weights", "model.encoder."),
    ],
)
def test_wrapped_state_dicts_are_unwrapped_and_this_is_said(
    weights: Path, wrapper: str | None, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load_encoder_weights(NAME, str(weights), 3)
    assert capsys.readouterr().out == ""
    state = {prefix + key: one for key, one in torch.load(weights, weights_only=True).items()}
    torch.save({wrapper: state, "epoch": 5} if wrapper else state, weights)
    found = load_encoder_weights(NAME, str(weights), 3)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert f"note: train.encoder_weights: {weights}: read without " in capsys.readouterr().out


def test_safetensors_files_are_read(weights: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra safetensors")
    expected = load_encoder_weights(NAME, str(weights), 1)
    path = weights.with_suffix(".safetensors")
    safetensors.save_file(torch.load(weights, weights_only=True), path)
    found = load_encoder_weights(NAME, str(path), 1)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    path.write_bytes(b"no tensors")
    with pytest.raises(
        ValueError, match=r"weights\.safetensors: cannot be read .*download it again"
    ):
        load_encoder_weights(NAME, str(path), 1)
