from pathlib import Path

import pytest
import torch
from conftest import make_config
from test_pytorch_unet import their_net

from unet.checkpoint import load_checkpoint
from unet.data import Normalization
from unet.training import train

pytestmark = pytest.mark.usefixtures("workdir")

WIDTHS = "model.widths=[4, 8, 16, 32, 64]"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({**their_net(1).state_dict(), "mask_values": [0, 255]}, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


def test_weights_of_pytorch_unet_begin_a_run(
    data_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = ["optimizer={name: sgd, lr: 1e-12, weight_decay: 0}", "train.epochs=1", WIDTHS]
    run = train(make_config(data_root, f"train.init_from={weights}", *slow))
    shown = capsys.readouterr().out
    assert f"train.init_from: taking the weights of {weights}; its classes 0, 1 become" in shown
    assert "data.normalization: mean [0.0] and std [1.0], as these weights know images" in shown
    contents = load_checkpoint(run / "last.pt")
    assert Normalization(**contents["normalization"]) == Normalization(mean=(0.0,), std=(1.0,))
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


def test_weights_bring_their_normalization_along(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "data.normalization={mean: [0.9], std: [0.05]}"
    first = train(make_config(data_root, given, "train.epochs=1", "name=first"))
    begin = [f"train.init_from={first / 'last.pt'}", "train.epochs=1"]
    capsys.readouterr()
    run = train(make_config(data_root, *begin, "name=a"))
    assert "data.normalization: mean [0.9] and std [0.05], as these" in capsys.readouterr().out
    assert load_checkpoint(run / "last.pt")["normalization"]["mean"] == (0.9,)
    run = train(make_config(data_root, *begin, "name=b", "data.normalization=dataset"))
    assert "normalization" not in capsys.readouterr().out
    assert load_checkpoint(run / "last.pt")["normalization"]["mean"] != (0.9,)


def test_weights_of_another_norm_do_not_fit(data_root: Path) -> None:
    run = train(make_config(data_root, "model.norm=group", "train.epochs=1", "name=group"))
    with pytest.raises(ValueError, match=r"do not fit (.|\n)*model\.norm group, expected instance"):
        train(make_config(data_root, "model.norm=instance", f"train.init_from={run / 'last.pt'}"))


def test_weights_that_do_not_fit_say_which_settings_would(data_root: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit .* model\.widths=\[4,8,16,32,64\] model\.no"):
        train(make_config(data_root, f"train.init_from={weights}"))
    assert not Path("runs/tiny").exists()


def test_padding_other_than_that_of_the_weights_is_said(
    data_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unpadded = ["model.padding=valid", "augment.crop=null", "train.epochs=1", WIDTHS]
    run = train(make_config(data_root, f"train.init_from={weights}", *unpadded))
    said = "trained with model.padding same, here it is valid, which is the same but near the bord"
    assert said in capsys.readouterr().out
    train(make_config(data_root, f"train.init_from={run / 'last.pt'}", *unpadded, "name=b"))
    assert "trained with" not in capsys.readouterr().out
