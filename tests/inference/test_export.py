import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import make_config, make_model, shrink_encoders
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.passes import move_to_device_pass

from unet.build import build_network
from unet.checkpoint import save_checkpoint
from unet.config.loader import config_from_dict
from unet.data.normalization import Normalization
from unet.inference.export import TOLERANCE, export, largest_difference
from unet.inference.exported_model import ExportedModel, Output
from unet.inference.loading import load_model
from unet.inference.predictor import Predictor

SIZES = [(1, 1, 1), (1, 1, 9), (2, 5, 1), (1, 36, 52), (4, 17, 31), (5, 64, 8)]


def used_model(root: Path, *overrides: str, levels: int = 3) -> Predictor:
    """A model with batch norm statistics that are not 0 and 1."""
    torch.manual_seed(0)
    config = make_config(root, f"model.widths={[4, 6, 8, 8, 8][:levels]}", *overrides)
    net = build_network(config, torch.device("cpu"))
    for _ in range(3):
        net(net.mirror_context(torch.randn(2, net.in_channels, 32, 32)))
    return replace(make_model(root), net=net, config=config)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    save_checkpoint(folder / "best.pt", used_model(folder, levels=2).contents())
    return folder / "best.pt"


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one level, which is exported in a second."""
    folder = tmp_path_factory.mktemp("small")
    save_checkpoint(folder / "best.pt", used_model(folder, levels=1).contents())
    return folder / "best.pt"


def load(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))), reason="needs unet[onnx]"
)
both = pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=needs_onnx), ".pt2"])


def metadata(path: Path) -> dict[str, str]:
    if path.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    files = {"unet.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["unet.json"])


@pytest.fixture(scope="session")
def exported(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Output], tuple[Path, float]]:
    """Export the checkpoint, once for each suffix and output: the file and its difference."""

    @cache
    def make(suffix: str, output: Output) -> tuple[Path, float]:
        out = tmp_path_factory.mktemp("exported") / "new" / f"model{suffix}"
        return out, export(checkpoint, out, output)

    return make


Exported = Callable[[str, Output], tuple[Path, float]]


@both
def test_a_file_gives_the_probabilities_of_the_model_at_any_size(
    checkpoint: Path, exported: Exported, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out, difference = exported(suffix, "probabilities")
    assert difference <= TOLERANCE
    assert capfd.readouterr() == ("", "")  # torch prints nothing
    assert list(out.parent.iterdir()) == [out]  # one file
    model, run = load_model(checkpoint), load(out)
    for batch, height, width in SIZES:
        images = torch.rand(batch, 1, height, width)
        expected = torch.stack([model.logits(image).softmax(0) for image in images])
        torch.testing.assert_close(run(images), expected, rtol=0, atol=1e-5)
    about = metadata(out)
    assert json.loads(about["classes"]) == {"ground": 0, "box": 200}
    assert config_from_dict(json.loads(about["config"])) == model.config
    assert "from 0 to 1: integers divided by the largest value of their type" in about["input"]
    assert about["output"] == "probabilities (N, 2, H, W) float32"
    assert about["largest_difference"] == f"{difference:.1e}"
    assert about["unet_version"]


@both
def test_a_file_gives_the_classes_of_the_model(
    checkpoint: Path, exported: Exported, suffix: str
) -> None:
    out, difference = exported(suffix, "classes")
    assert difference <= TOLERANCE
    model, images = load_model(checkpoint), torch.rand(3, 1, 21, 34)
    classes = load(out)(images)
    assert classes.dtype == torch.int64
    expected = torch.stack([model.predict(image) for image in images])
    assert (classes != expected).float().mean() < 0.002


# Both formats are written from the same program, so one format is enough below. torch needs one
# or two seconds to trace each level of a network: tests of five levels and of encoders take more
# than 5 seconds.
@needs_onnx
@pytest.mark.parametrize("encoder", ["convnext_tiny", "mobilenet_v3_large"])
def test_an_encoder_of_torchvision_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    shrink_encoders(monkeypatch)
    settings = [f"model={{encoder: {encoder}, widths: [4, 4], in_channels: 1}}"]
    save_checkpoint(tmp_path / "best.pt", used_model(tmp_path, *settings).contents())
    assert export(tmp_path / "best.pt", tmp_path / "model.onnx") <= TOLERANCE


@needs_onnx
@pytest.mark.parametrize(
    ("levels", "norm", "setting"),
    [
        (1, "group", "upsampling=conv_transpose"),
        (1, "instance", "upsampling=conv_transpose"),
        (2, "none", "downsampling=conv"),
        (2, "batch", "upsampling=bilinear"),
    ],
)
def test_every_network_is_exported(tmp_path: Path, levels: int, norm: str, setting: str) -> None:
    settings = [f"model.norm={norm}", f"model.{setting}"]
    save_checkpoint(tmp_path / "best.pt", used_model(tmp_path, *settings, levels=levels).contents())
    assert export(tmp_path / "best.pt", tmp_path / "model.onnx") <= TOLERANCE


@pytest.mark.parametrize(
    ("levels", "norm", "suffix"),
    [
        pytest.param(1, "none", ".onnx", marks=needs_onnx),
        pytest.param(2, "batch", ".onnx", marks=needs_onnx),
        (5, "none", ".pt2"),
    ],
)
def test_an_unpadded_network_mirrors_the_image_inside_the_file(
    tmp_path: Path, suffix: str, levels: int, norm: str
) -> None:
    settings = ["model.padding=valid", "augment.crop=null", "model.dropout=0.5"]
    model = used_model(tmp_path, *settings, f"model.norm={norm}", levels=levels)
    save_checkpoint(tmp_path / "best.pt", model.contents())
    out = tmp_path / f"model{suffix}"
    assert export(tmp_path / "best.pt", out) <= TOLERANCE
    loaded, run = load_model(tmp_path / "best.pt"), load(out)
    for batch, height, width in SIZES[1:]:
        images = torch.rand(batch, 1, height, width)
        expected = torch.stack([loaded.logits(image).softmax(0) for image in images])
        torch.testing.assert_close(run(images), expected, rtol=0, atol=TOLERANCE)


@both
def test_images_are_normalised_by_their_own_statistics_inside_the_file(
    tmp_path: Path, suffix: str
) -> None:
    model = replace(used_model(tmp_path, levels=2), normalization=Normalization(method="image"))
    save_checkpoint(tmp_path / "best.pt", model.contents())
    out = tmp_path / f"model{suffix}"
    assert export(tmp_path / "best.pt", out) <= TOLERANCE
    flat = torch.full((1, 1, 20, 20), 0.7)  # no contrast to divide by
    expected = load_model(tmp_path / "best.pt").logits(flat[0]).softmax(0)
    torch.testing.assert_close(load(out)(flat)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["given", "image"])
@pytest.mark.parametrize("output", ["probabilities", "classes"])
def test_all_tensors_move_with_the_model(tmp_path: Path, method: str, output: str) -> None:
    model = used_model(tmp_path)
    if method != "given":
        model = replace(model, normalization=Normalization(method=method))
    module = ExportedModel(model, output).eval()
    state = module.state_dict()
    with FakeTensorMode() as mode:  # tensors without values, on devices that need not exist
        state = {name: mode.from_tensor(tensor).to("cuda") for name, tensor in state.items()}
        images = torch.empty(2, 1, 17, 31, device="cuda")
        result = torch.func.functional_call(module, state, images)
    assert result.device.type == "cuda"
    assert result.shape == ((2, 2, 17, 31) if output == "probabilities" else (2, 17, 31))


def test_an_exported_model_is_on_the_device_of_its_network(tmp_path: Path) -> None:
    model = used_model(tmp_path)
    module = ExportedModel(replace(model, net=model.net.to("meta"), device=torch.device("meta")))
    devices = {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}
    assert devices == {"meta"}


def test_a_pt2_file_is_moved_to_another_device_by_a_pass_of_torch(exported: Exported) -> None:
    program = torch.export.load(exported(".pt2", "probabilities")[0])
    moved = move_to_device_pass(program, "meta")
    assert moved.module()(torch.empty(3, 1, 21, 34, device="meta")).device.type == "meta"


@needs_onnx
def test_dynamic_sizes_have_names(exported: Exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported(".onnx", "classes")[0])
    assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", "height", "width"]


def test_differences_between_file_and_model_are_found(tmp_path: Path) -> None:
    model = used_model(tmp_path)
    module = ExportedModel(model).eval()
    assert largest_difference(model, module, "probabilities") < 1e-6

    def brighter(images: torch.Tensor) -> torch.Tensor:
        return module(images + 0.1)

    assert largest_difference(model, brighter, "probabilities") > 1e-3
    assert largest_difference(model, lambda images: brighter(images).argmax(1), "classes") > 0
    assert largest_difference(model, lambda images: module(images)[..., 1:], "probabilities") == (
        float("inf")
    )


@pytest.mark.parametrize("difference", [0.3, float("nan")])
def test_a_file_that_differs_is_not_written(
    small: Path, tmp_path: Path, difference: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet.inference.export.largest_difference", lambda *_: difference)
    with pytest.raises(ValueError, match=r"model\.pt2: got probabilities that differ .* by"):
        export(small, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_models_and_names_that_cannot_be_exported_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.pb: expected a file that ends in .onnx or .pt2"):
        export(small, tmp_path / "model.pb")
    model = replace(make_model(tmp_path), normalization=Normalization(method="percentiles"))
    save_checkpoint(tmp_path / "other.pt", model.contents())
    with pytest.raises(ValueError, match=r"got a model with data\.normalization percentiles, fo"):
        export(tmp_path / "other.pt", tmp_path / "model.pt2")
    assert not list(tmp_path.glob("*model*"))


@needs_onnx
def test_weights_too_large_for_one_onnx_file_are_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet.inference.onnx_graph._MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"GiB of weights, expected at most .* write a \.pt2"):
        export(small, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_without_overwrite(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.pt2"
    out.write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"model\.pt2: exists; pass overwrite=True to replace"
    ):
        export(small, out)
    assert out.read_text() == "precious"
    with pytest.raises(FileExistsError, match=r"model\.pt2: is a file; choose another place"):
        export(small, out / "inside.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ValueError, match=r"folder\.pt2: is a folder, expected a file to write"):
        export(small, tmp_path / "folder.pt2", overwrite=True)


def test_missing_packages_are_named_and_a_pt2_needs_none(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet.runtime.optional.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"model\.onnx: needs onnx; .* pip install .*\[onnx\]"):
        export(small, tmp_path / "model.onnx")
    (tmp_path / "model.pt2").write_text("replaced")
    export(small, tmp_path / "model.pt2", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "model.pt2")


def test_an_unknown_output_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^output: got 'logits', expected one of probabilities"):
        export(checkpoint, tmp_path / "a.pt2", "logits")
    assert not (tmp_path / "a.pt2").exists()
