"""Prediction with exported ONNX files."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import WIDTH, draw, make_model, write_pairs, write_raster
from PIL import Image

import unet
from unet.checkpoint import save_checkpoint
from unet.cli.main import main
from unet.data.normalization import Normalization
from unet.inference.export import export
from unet.inference.loading import load_model
from unet.inference.onnx_network import _pick_providers
from unet.inference.predict import predict
from unet.inference.predictor import Ensemble
from unet.inference.tta import mean_probabilities
from unet.inference.uncertainty import normalized_entropy, predict_uncertainty

onnx = pytest.importorskip("onnx")
for package in ("onnxruntime", "onnxscript"):
    pytest.importorskip(package)


def write_both(folder: Path, *overrides: str, method: str = "given") -> tuple[Path, Path]:
    """A checkpoint and its ONNX file."""
    torch.manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    model = make_model(folder, *overrides)
    torch.nn.init.normal_(model.net.head.weight)
    contents = model.contents()
    if method != "given":
        contents["normalization"] = Normalization(method=method).to_dict()
        contents["config"]["data"]["normalization"] = method
    save_checkpoint(folder / "best.pt", contents)
    export(folder / "best.pt", folder / "model.onnx")
    return folder / "best.pt", folder / "model.onnx"


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_both(tmp_path_factory.mktemp("onnx"))


def test_a_file_holds_all_that_a_checkpoint_holds_apart_from_weights(
    files: tuple[Path, Path],
) -> None:
    checkpoint, exported = (load_model(path) for path in files)
    one, other = checkpoint.contents(), exported.contents()
    del one["model"], other["model"]
    assert json.dumps(one) == json.dumps(other)
    for name in ("names", "values", "colours"):
        assert getattr(exported.classes, name) == getattr(checkpoint.classes, name)
    assert exported.tiles == checkpoint.tiles


# More than 5 seconds: torch takes most of them to trace the networks.
@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (("model.norm=group",), "image"),
        (("model.padding=valid", "augment.crop=null", "model.widths=[4,6]"), "given"),
    ],
)
def test_a_file_predicts_as_its_checkpoint_whole_in_tiles_and_with_options(
    tmp_path: Path, overrides: tuple[str, ...], method: str
) -> None:
    paths = write_both(tmp_path, *overrides, method=method)
    image = torch.rand(1, 70, 53)
    image[0, :9, :9] = torch.nan  # missing
    tiled = "tiling.size=[64,64]"
    for settings in ([], [tiled, "tiling.batch_size=2"]):
        one, other = (load_model(path, overrides=settings) for path in paths)
        torch.testing.assert_close(other.logits(image), one.logits(image), rtol=0, atol=1e-4)
    for options in ({"tta": ("flips", "scales")}, {"threshold": 0.6, "min_size": 20}):
        masks = [predict(model, image[0].numpy(), **options) for model in (one, other)]
        assert (masks[0] != masks[1]).mean() < 0.002  # where both classes are as probable
        assert 0 < masks[0].mean() < 1
    batch = [torch.rand(1, 12, 12)] * 2
    if one.batch_size((12, 12)) > 1:
        torch.testing.assert_close(
            other.batch_logits(batch), one.batch_logits(batch), rtol=0, atol=1e-4
        )


def test_files_and_checkpoints_are_averaged(files: tuple[Path, Path]) -> None:
    image, both = torch.rand(1, 30, 40), load_model(list(files))
    assert isinstance(both, Ensemble)
    expected = load_model(files[0]).logits(image).softmax(0)
    torch.testing.assert_close(both.logits(image).softmax(0), expected, rtol=0, atol=1e-4)
    # Their uncertainty is the same, too, and they agree.
    (_, one), (_, of_both) = (
        predict_uncertainty(model, image, ["flips"]) for model in (load_model(files[1]), both)
    )
    expected = normalized_entropy(mean_probabilities(load_model(files[0]), image, ["flips"]))
    for entropy in (one.entropy, of_both.entropy):
        torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-3)
    assert of_both.means["disagreement"] == pytest.approx(0, abs=1e-4)


def test_the_commands_take_a_file_as_a_checkpoint(
    workdir: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(Path("data"), 4)
    for path in files:
        shutil.copy(path, workdir)
    write_raster("scene.tif", draw(90, 110))
    for name in ("best.pt", "model.onnx"):
        out = Path(name).suffix[1:]
        assert main(["predict", name, "data/images", "scene.tif", "-o", out, "--overlay"]) == (
            2  # an overlay needs the whole image
        )
        assert main(["predict", name, "data/images", "scene.tif", "-o", out]) == 0
        words = ["evaluate", name, "--images", "data/images", "--masks", "data/masks"]
        assert main([*words, "-o", f"scores_{out}"]) == 0
    for mask in sorted(Path("pt").glob("*.*")):
        one, other = (
            np.asarray(Image.open(path / mask.name)) for path in (Path("pt"), Path("onnx"))
        )
        assert (one != other).mean() < 0.002
    scores = [
        json.loads(Path(folder, "metrics.json").read_text())
        for folder in ("scores_pt", "scores_onnx")
    ]
    assert scores[0]["mean_iou"] == pytest.approx(scores[1]["mean_iou"], abs=1e-3)
    capsys.readouterr()
    assert main(["info", "model.onnx"]) == 0
    assert "box: mask value 200" in capsys.readouterr().out
    for words, message in (
        (["export", "model.onnx", "-o", "a.onnx"], "got an exported file, expected a checkpoint"),
        (["train", "model.onnx"], "model.onnx: is a checkpoint, expected a config file"),
        (
            ["predict", "model.onnx", "scene.tif", "train.precision=bfloat16"],
            "got train.precision=bfloat16 for an exported file",
        ),
        (["predict", "model.onnx", "scene.tif", "model.norm=none"], "a trained model keeps its"),
        (["predict", "none.onnx", "scene.tif"], "none.onnx: there is no such file"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_python_takes_a_file_as_a_checkpoint(files: tuple[Path, Path]) -> None:
    image = draw(33, WIDTH)
    masks = [unet.predict(path, image) for path in files]
    assert (masks[0] != masks[1]).mean() < 0.002
    assert unet.load_model(files[1], device="cpu").predict(torch.rand(1, 8, 8)).shape == (8, 8)


def change(path: Path, edit: Callable[..., None]) -> Path:
    model = onnx.load(path)
    edit(model)
    changed = path.with_name("changed.onnx")
    changed.write_bytes(model.SerializeToString())
    return changed


def set_metadata(model: Any, key: str, edit: Callable[..., object]) -> None:
    (entry,) = [entry for entry in model.metadata_props if entry.key == key]
    entry.value = json.dumps(edit(json.loads(entry.value)))


def rename(model: Any, name: str) -> None:
    for node in model.graph.node:
        node.output[:] = ["other" if one == name else one for one in node.output]
        node.input[:] = ["other" if one == name else one for one in node.input]


def more_classes(config: dict) -> dict:
    config["data"]["classes"].append({**config["data"]["classes"][0], "name": "c", "value": 9})
    return config


def more_channels(config: dict) -> dict:
    config["model"]["in_channels"] = 2
    return config


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.ClearField("metadata_props"), "is not an ONNX file of unet: its metadata has"),
        (lambda m: set_metadata(m, "version", lambda v: v + 1), "format version 7, expected 6"),
        (
            lambda m: set_metadata(m, "output_stride", lambda _: 0),
            "got output_stride 0, expected",
        ),
        (lambda m: set_metadata(m, "config", lambda _: 3), "config: got 3, expected a section"),
        (lambda m: set_metadata(m, "palette", lambda _: "red"), "palette: got the text 'red', exp"),
        (
            lambda m: set_metadata(m, "config", more_classes),
            "as the config says; the file was chan",
        ),
        (lambda m: set_metadata(m, "config", more_channels), "normalization.mean: got 1 numbers"),
        (lambda m: rename(m, "grid"), "onnxruntime cannot load it"),
        (lambda m: rename(m, "logits"), "onnxruntime cannot load it"),
        (
            lambda m: m.graph.ClearField("value_info"),
            "has no network from grid to logits; the file",
        ),
        (lambda m: m.graph.node.pop(len(m.graph.node) // 2), "onnxruntime cannot load it"),
        (
            lambda m: m.graph.initializer[0].external_data.add(key="location", value="/etc/hosts"),
            "got weights in other files, expected all in this one",
        ),
    ],
)
def test_changed_files_are_refused(
    tmp_path: Path, files: tuple[Path, Path], edit: Callable[..., None], message: str
) -> None:
    path = change(Path(shutil.copy(files[1], tmp_path)), edit)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{re.escape(message)}"):
        load_model(path)


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_damaged_files_are_refused(tmp_path: Path, files: tuple[Path, Path], keep: int) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(files[1].read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"damaged\.onnx: is (damaged|not an ONNX file of unet)"):
        load_model(path)


def test_onnxruntime_computes_where_the_config_says() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    assert _pick_providers([cuda, cpu], "auto") == [(cuda, {"device_id": 0}), cpu]
    assert _pick_providers([cuda, cpu], "cuda:1") == [(cuda, {"device_id": 1}), cpu]
    assert _pick_providers([cuda, cpu], "cpu") == _pick_providers([cpu], "auto") == [cpu]
    with pytest.raises(ValueError, match="got 'cuda', but onnxruntime has no CUDAExec"):
        _pick_providers([cpu], "cuda")
    with pytest.raises(ValueError, match="got 'tpu', expected auto, cpu, cuda or cuda:N"):
        _pick_providers([cpu], "tpu")


def test_missing_packages_are_named(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet.runtime.optional.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"model\.onnx: needs onnx; .* pip install .*\[onnx\]"):
        load_model(files[1])
