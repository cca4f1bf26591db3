from pathlib import Path

import pytest
import torch
import yaml
from convert_pytorch_unet import convert
from helpers import ENCODER, make_config, their_net

from unet import load_model
from unet.build import build_network
from unet.checkpoint import load_checkpoint, save_checkpoint
from unet.cli.main import main
from unet.config.values import config_to_dict
from unet.data.normalization import Normalization
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")

WIDTHS = "model.widths=[4, 8, 16, 32, 64]"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    state = {**their_net(1).state_dict(), "mask_values": [0, 255]}
    save_checkpoint(tmp_path / "theirs.pt", convert(state, [], "theirs.pth"))
    return tmp_path / "theirs.pt"


def test_a_run_starts_from_weights_of_pytorch_unet(
    data_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = ["optimizer={name: sgd, lr: 1e-12, weight_decay: 0}", "train.epochs=1", WIDTHS]
    run = train(make_config(data_root, f"train.init_from={weights}", *slow))
    shown = capsys.readouterr().out
    assert (
        f"train.init_from: starting from the weights of {weights}; its classes 0, 1 become" in shown
    )
    assert "data.normalization: mean [0.0] and std [1.0], as in the training of the" in shown
    contents = load_checkpoint(run / "last.pt")
    assert contents["normalization"] == Normalization(mean=(0.0,), std=(1.0,)).to_dict()
    theirs = their_net(1).state_dict()
    torch.testing.assert_close(
        contents["model"]["decoder.0.up.weight"], theirs["up1.up.weight"], rtol=0, atol=1e-8
    )
    # What the config says is respected.
    run = train(
        make_config(
            data_root, f"train.init_from={weights}", *slow, "name=b", "data.normalization=image"
        )
    )
    assert load_checkpoint(run / "last.pt")["normalization"]["method"] == "image"


def test_initial_weights_bring_their_normalization(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "data.normalization={mean: [0.9], std: [0.05]}"
    first = train(make_config(data_root, given, "train.epochs=1", "name=first"))
    begin = [f"train.init_from={first / 'last.pt'}", "train.epochs=1"]
    capsys.readouterr()
    run = train(make_config(data_root, *begin, "name=a"))
    assert (
        "data.normalization: mean [0.9] and std [0.05], as in the training"
        in capsys.readouterr().out
    )
    assert load_checkpoint(run / "last.pt")["normalization"]["mean"] == pytest.approx((0.9,))
    run = train(make_config(data_root, *begin, "name=b", "data.normalization=dataset"))
    assert "normalization" not in capsys.readouterr().out
    assert load_checkpoint(run / "last.pt")["normalization"]["mean"] != pytest.approx((0.9,))


def test_weights_of_another_norm_do_not_fit(data_root: Path) -> None:
    run = train(make_config(data_root, "model.norm=group", "train.epochs=1", "name=group"))
    with pytest.raises(ValueError, match=r"do not fit (.|\n)*model\.norm group, expected instance"):
        train(make_config(data_root, "model.norm=instance", f"train.init_from={run / 'last.pt'}"))


def test_weights_that_do_not_fit_say_which_settings_would(data_root: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit .* model\.widths=\[4,8,16,32,64\] model\.no"):
        train(make_config(data_root, f"train.init_from={weights}"))
    assert not Path("runs/tiny").exists()


def test_a_padding_that_differs_from_that_of_the_weights_is_printed(
    data_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpadded = ["model.padding=valid", "augment.crop=null", "train.epochs=1", WIDTHS]
    run = train(make_config(data_root, f"train.init_from={weights}", *unpadded))
    said = "trained with model.padding same, this model has valid, which differs only near image"
    assert said in capsys.readouterr().out
    train(make_config(data_root, f"train.init_from={run / 'last.pt'}", *unpadded, "name=b"))
    assert "trained with" not in capsys.readouterr().out


def test_a_run_starts_from_the_weights_of_another(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = train(make_config(data_root, "train.epochs=2")) / "best.pt"
    init = f"train.init_from={before}"
    slow = "optimizer={name: sgd, lr: 1e-12, weight_decay: 0}"
    run = train(make_config(data_root, "name=same", "train.epochs=1", init, slow))
    weights, now = (load_checkpoint(path)["model"] for path in (before, run / "last.pt"))
    net = build_network(make_config(data_root), torch.device("cpu"))
    parameters = [key for key, _ in net.named_parameters()]
    for key in parameters:
        torch.testing.assert_close(weights[key], now[key], rtol=0, atol=1e-8)

    three = "data.classes={ground: 0, box: 200, sky: 7}"
    capsys.readouterr()
    run = train(make_config(data_root, "name=three", "train.epochs=1", init, slow, three))
    assert "except the head: it has 2 classes, this model has 3" in capsys.readouterr().out
    now = load_checkpoint(run / "last.pt")["model"]
    assert now["head.weight"].shape[0] == 3
    for key in parameters:
        if not key.startswith("head."):
            torch.testing.assert_close(weights[key], now[key], rtol=0, atol=1e-8)

    with pytest.raises(
        ValueError, match=r"weights do not fit .* model.widths=\[4,8\].*:\nencoder\.stem"
    ):
        train(make_config(data_root, "name=wide", init, "model.widths=[8, 8]"))
    assert not Path("runs/wide").exists()
    with pytest.raises(FileNotFoundError, match=r"no\.pt: there is no such checkpoint"):
        train(make_config(data_root, "name=none", "train.init_from=no.pt"))


def encoder_of(path: Path) -> dict[str, torch.Tensor]:
    model = load_checkpoint(path)["model"]
    prefix = "encoder.backbone."
    return {key.removeprefix(prefix): model[key] for key in model if key.startswith(prefix)}


def test_pretrained_encoder_weights_are_needed_only_at_the_start(
    data_root: Path, encoder_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*ENCODER, f"train.encoder_weights={encoder_weights}", "train.epochs=2"]
    given = torch.load(encoder_weights)
    whole = train(make_config(data_root, *overrides, "name=whole", "train.freeze_encoder_epochs=2"))
    shown = capsys.readouterr().out
    assert (
        "the encoder efficientnet_b0 starts from the weights weights.pth; the weights of its first"
        in shown
    )
    assert "normalization    mean [0.449] and std [0.226], from the weights of" in shown
    frozen = encoder_of(whole / "last.pt")
    assert torch.equal(frozen.pop("features.0.0.weight"), given["features.0.0.weight"].sum(1, True))
    for key, weights in frozen.items():
        assert torch.equal(weights, given[key]), key
    # And from here on it is not looked at.
    encoder_weights.unlink()
    model = load_model(whole / "best.pt")
    assert model.normalization.mean.tolist() == pytest.approx([0.449])
    assert main(["evaluate", str(whole / "best.pt")]) == 0
    assert main(["predict", str(whole / "best.pt"), f"{data_root}/images", "-o", "masks"]) == 0
    assert main(["info", str(whole / "best.pt")]) == 0
    assert "the whole image, by squeeze-and-excitation" in capsys.readouterr().out


def test_the_config_overrides_the_normalization_of_the_weights(
    data_root: Path, encoder_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*ENCODER, f"train.encoder_weights={encoder_weights}", "train.epochs=1"]
    run = train(make_config(data_root, *overrides, "data.normalization=image"))
    assert load_model(run / "best.pt").normalization.method == "image"
    assert "those of the weights" not in capsys.readouterr().out
    run = train(make_config(data_root, *overrides, "data.normalization=dataset", "name=dataset"))
    plain = train(make_config(data_root, "train.epochs=1", "name=plain"))
    expected = load_model(plain / "best.pt").normalization
    assert load_model(run / "best.pt").normalization.to_dict() == expected.to_dict()


def test_weights_that_cannot_be_downloaded_leave_no_run(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    settings = config_to_dict(make_config(data_root, *ENCODER, "train.encoder_weights=DEFAULT"))
    Path("tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert main(["train", "tiny.yaml"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: train.encoder_weights: efficientnet_b0_rwightman-7f5810bc.pth")
    assert "put it into hub/checkpoints" in line
    assert not Path("runs/tiny").exists()
    assert not list(Path("hub/checkpoints").iterdir())
