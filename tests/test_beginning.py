from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import make_config, write_pairs
from PIL import Image
from test_pytorch_unet import their_net
from torch.nn import functional as F

from unet import load_model
from unet.beginning import convert
from unet.checkpoint import load_checkpoint
from unet.cli import main
from unet.config import config_to_dict
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
    assert "images from 0 to 1 as they are, as in Pytorch-UNet" in shown
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


def test_weights_that_do_not_fit_say_which_settings_would(data_root: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit .* model\.widths=\[4,8,16,32,64\] model\.no"):
        train(make_config(data_root, f"train.init_from={weights}"))
    assert not Path("runs/tiny").exists()


def test_a_converted_checkpoint_predicts_exports_and_is_described(
    data_root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(data_root, WIDTHS)
    Path("mine.yaml").write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
    assert main(["predict", str(weights), "images", "-o", "masks"]) == 2
    assert "'unet convert' makes one" in capsys.readouterr().err
    assert main(["export", str(weights), "-o", "model.pt2"]) == 2
    assert f"make one of them with 'unet convert {weights} CONFIG" in capsys.readouterr().err
    assert main(["convert", str(weights), "mine.yaml", "-o", "model.pt"]) == 0
    write_pairs(Path("new"), 2)
    assert main(["predict", "model.pt", "new/images", "-o", "masks"]) == 0
    with Image.open("new/images/1.png") as picture, Image.open("masks/1.png") as mask:
        image, ids = (torch.from_numpy(np.array(one)) for one in (picture, mask))
    padded = F.pad(image[None, None] / 255, (0, 12, 0, 12), mode="replicate")
    assert torch.equal(their_net(1)(padded)[0, :, :36, :52].argmax(0) * 200, ids)
    images = ["--images", "new/images", "--masks", "new/masks"]
    assert main(["evaluate", "model.pt", *images]) == 0
    assert main(["export", "model.pt", "-o", "model.pt2"]) == 0
    assert main(["info", "model.pt"]) == 0
    assert main(["evaluate", "model.pt", "-o", "other"]) == 2
    assert "has no validation images, expected --images and --masks" in capsys.readouterr().err


def test_what_the_config_says_of_normalization_is_respected(data_root: Path, weights: Path) -> None:
    given = "data.normalization={mean: [0.5], std: [0.25]}"
    convert(weights, make_config(data_root, WIDTHS, given), Path("model.pt"))
    assert load_model("model.pt").normalization == Normalization(mean=(0.5,), std=(0.25,))
    convert(weights, make_config(data_root, WIDTHS, "data.normalization=image"), Path("b.pt"))
    assert load_model("b.pt").normalization.method == "image"


def test_what_cannot_be_converted_is_refused(data_root: Path, weights: Path) -> None:
    config, out = make_config(data_root, WIDTHS), Path("model.pt")
    with pytest.raises(ValueError, match="normalization: got dataset, expected auto, image"):
        convert(weights, make_config(data_root, WIDTHS, "data.normalization=dataset"), out)
    with pytest.raises(
        ValueError, match=r"data\.classes: got ground, box, sky, expected 2 classes"
    ):
        convert(weights, make_config(data_root, WIDTHS, "data.classes.sky=9"), out)
    with pytest.raises(ValueError, match=r"theirs\.pth: the weights do not fit this config"):
        convert(weights, make_config(data_root), out)
    unpadded = make_config(data_root, WIDTHS, "model.padding=valid", "augment.crop=null")
    with pytest.raises(ValueError, match=r"model\.padding: got valid, expected same, as Pytorch"):
        convert(weights, unpadded, out)
    with pytest.raises(ValueError, match=r"model\.pth: expected a file that ends in \.pt"):
        convert(weights, config, Path("model.pth"))
    bilinear = {k: v for k, v in torch.load(weights).items() if ".up." not in k}
    torch.save(bilinear, "bilinear.pth")
    with pytest.raises(ValueError, match=r"bilinear\.pth: got weights .* with bilinear upsampling"):
        convert(Path("bilinear.pth"), config, out)
    assert not out.exists()
    convert(weights, config, out)
    with pytest.raises(FileExistsError, match=r"model\.pt: exists; pass --overwrite"):
        convert(weights, config, out)
    with pytest.raises(ValueError, match=r"model\.pt: is a checkpoint of unet already"):
        convert(out, config, Path("other.pt"))
