"""Export to INT8."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_predict import main as benchmark
from helpers import make_model, write_pairs

import unet
from unet.checkpoint import save_checkpoint
from unet.cli.main import main
from unet.evaluation.quantize import STRATEGIES, export_int8
from unet.inference.loading import load_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def checkpoint(workdir: Path) -> Path:
    """A network with random weights; its run has data for training and validation."""
    write_pairs(workdir / "data", 6)
    torch.manual_seed(5)
    model = make_model(workdir / "data", "model.widths=[4,8]")
    torch.nn.init.normal_(model.net.head.weight)
    save_checkpoint(Path("best.pt"), {**model.contents(), "val_stems": ["0", "4"]})
    return Path("best.pt")


# More than 5 seconds: torch takes most of them to trace the network.
@pytest.mark.usefixtures("checkpoint")
def test_a_network_is_quantized_with_its_transposed_convolutions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", "best.pt", "-o", "model.onnx"]) == 0
    assert main(["export", "best.pt", "-o", "int8.onnx", "--int8", "--max-loss", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert (
        "wrote int8.onnx in INT8: all layers, 4 calibration images, layers in float: none" in shown
    )
    model = onnx.load("int8.onnx")
    facts = json.loads({entry.key: entry.value for entry in model.metadata_props}["int8"])
    assert facts["images"] == 4
    assert set(facts["loss"]) == {"mean", "ground", "box"}
    # What onnxruntime computes: no float convolution, one conversion at each end.
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "optimized.onnx"
    options.log_severity_level = 4
    onnxruntime.InferenceSession("int8.onnx", options)
    computed = Counter(node.op_type for node in onnx.load("optimized.onnx").graph.node)
    assert computed["QLinearConv"] == 8
    assert computed["DepthToSpace"] == 1
    assert computed["Conv"] == 0
    assert computed["QuantizeLinear"] == computed["DequantizeLinear"] == 1
    one, other = (
        unet.predict(name, "data/images/1.png", probabilities=True)
        for name in ("best.pt", "int8.onnx")
    )
    assert 0 < np.abs(one - other).mean() < 0.05
    words = ["--checkpoint", "best.pt", "--onnx", "model.onnx", "--int8", "int8.onnx"]
    assert benchmark(["--quick", *words]) == 0
    assert "INT8 in onnxruntime" in capsys.readouterr().out


@pytest.mark.usefixtures("checkpoint")
def test_a_network_that_loses_too_much_is_not_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained network hardly loses.
    monkeypatch.setattr(
        "unet.evaluation.quantize._losses", lambda *_: {"mean": -0.1, "ground": 0.5, "box": 0.1}
    )
    assert main(["export", "best.pt", "-o", "int8.onnx", "--int8"]) == 2
    message = capsys.readouterr().err
    assert "int8.onnx: INT8 lowers the IoU of ground by 0.5000 or more on 2 validation" in message
    assert (
        "images, expected at most 0.002; nothing was written. Raise --max-loss IOU, or" in message
    )
    lines = message[message.index("Tried:\n") :].splitlines()[1:]
    assert len(lines) == len(STRATEGIES)
    for strategy, line in zip(STRATEGIES, lines, strict=True):
        kept = "encoder.stem.0, head" if strategy.keep_ends else "none"
        assert line.startswith(
            f"  {strategy.name}, 4 calibration images, layers in float: {kept}; IoU: mean +0.1000, "
        )
        assert line.endswith("ground -0.5000, box -0.1000")
    assert not list(Path().glob("*.onnx"))


def test_wrong_arguments_are_refused_before_work_starts(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.pt2: got INT8, expected a file that ends in \.onnx"):
        export_int8(checkpoint, "a.pt2")
    with pytest.raises(ValueError, match="max_loss: got 2, expected 0 to 1"):
        export_int8(checkpoint, "a.onnx", max_loss=2)
    model = load_model(checkpoint)
    save_checkpoint(checkpoint, {**model.contents(), "val_stems": []})
    with pytest.raises(ValueError, match=r"best\.pt: the model has no validation images"):
        export_int8(checkpoint, "a.onnx")
    assert main(["export", "best.pt", "-o", "a.onnx", "--max-loss", "0.1"]) == 2
