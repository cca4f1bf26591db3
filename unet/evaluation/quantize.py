"""Export to INT8: quantize a network, and compare it with the model on the validation images."""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet.build import build_reader, list_pairs
from unet.config.loader import Overrides
from unet.data.dataset import SegmentationDataset
from unet.data.normalization import normalize
from unet.data.pairing import Pair
from unet.evaluation.evaluate import validation_pairs
from unet.evaluation.scoring import score_pairs
from unet.inference.export import check_out, make_metadata
from unet.inference.exported_model import ExportedModel, Output
from unet.inference.loading import load_predictor
from unet.inference.onnx_graph import join, make_parts
from unet.inference.onnx_network import GRID, LOGITS, STRIDE, OnnxNetwork
from unet.inference.predictor import Predictor
from unet.metrics.confusion import Scores, scores
from unet.models.network import Network
from unet.runtime.files import atomic_path
from unet.runtime.optional import import_extra
from unet.runtime.text import plural

_CROP = 256  # pixels, from the middle of an image


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to quantize: which layers stay in float, and how ranges of activations are found."""

    name: str
    keep_ends: bool = True
    method: str = "MinMax"
    images: int = 32  # with two data sets, more did not help; see docs/benchmarks.md
    options: tuple[tuple[str, Any], ...] = ()


STRATEGIES = (
    Strategy(name="all layers", keep_ends=False),
    Strategy(name="first and last convolution in float"),
    # Onnxruntime keeps all activations in memory for these two.
    Strategy(
        name="percentile calibration",
        method="Percentile",
        images=8,
        options=(("CalibPercentile", 99.999),),
    ),
    Strategy(name="entropy calibration", method="Entropy", images=8),
    Strategy(name="symmetric activations", options=(("ActivationSymmetric", True),)),
)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What became of a network.

    Args:
        strategy: how it was quantized.
        images: number of training images for calibration.
        float_layers: convolutions that were kept in float.
        mean_iou: of the model and of the quantized network, on the validation images.
        loss: by how much the mean IoU and the IoU of each class fell.
    """

    strategy: str
    images: int
    float_layers: tuple[str, ...]
    mean_iou: tuple[float, float]
    loss: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest loss."""
        return max(self.loss.values())

    def __str__(self) -> str:
        kept = ", ".join(self.float_layers) or "none"
        losses = ", ".join(f"{name} {-value:+.4f}" for name, value in self.loss.items())
        return (
            f"{self.strategy}, {plural(self.images, 'calibration image')}, layers in float: "
            f"{kept}; IoU: {losses}"
        )


def export_int8(
    checkpoint: str | Path,
    out: str | Path,
    output: Output = "probabilities",
    overwrite: bool = False,
    max_loss: float = 0.002,
    overrides: Overrides = (),
) -> Quantized:
    """Write a model as ONNX with 8-bit integers, if it predicts the validation images as well.

    onnxruntime quantizes weights per output channel and activations per tensor, calibrated on
    training images. The strategies of `STRATEGIES` are tried in turn.

    Args:
        checkpoint: as in `export`.
        out: the file to write, ending in .onnx.
        output: as in `export`.
        overwrite: whether to replace an existing file.
        max_loss: by how much the mean IoU and the IoU of each class may fall.
        overrides: as in `load_model`, such as `data.root=DIR`.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if the checkpoint or images are missing.
        ValueError: as `export`, if the run has no validation images, or every strategy loses more
            than `max_loss`.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ValueError(f"{out}: got INT8, expected a file that ends in .onnx")
    if not 0 <= max_loss <= 1:
        raise ValueError(f"max_loss: got {max_loss:g}, expected 0 to 1")
    check_out(out, overwrite)
    model = load_predictor(Path(checkpoint), "cpu", overrides)
    if model.calibration is not None:  # other probabilities keep no promise
        model = replace(model, calibration=replace(model.calibration, promises=()))
    if not model.val_stems:
        raise ValueError(
            f"{checkpoint}: the model has no validation images to compare INT8 with float32 on; "
            "export float32"
        )
    parts = make_parts(ExportedModel(model, output).eval(), str(out))
    pairs, images = validation_pairs(model, instances=False), _training_images(model)
    before = scores(score_pairs(model, pairs, "float32")[0])
    tried: list[Quantized] = []
    for strategy in STRATEGIES:
        count = min(strategy.images, len(images.pairs))
        grids = _calibration_grids(model, images, count)
        network, float_layers = _quantize(parts.network, grids, strategy)
        file = {"network": network, STRIDE: model.net.output_stride}
        net = OnnxNetwork(file, model.config, "cpu", out)
        quantized = replace(model, net=net, dtype=torch.float32)
        after = scores(score_pairs(quantized, pairs, f"INT8, {strategy.name}")[0])
        result = Quantized(
            strategy=strategy.name,
            images=count,
            float_layers=float_layers,
            mean_iou=(before.mean_iou, after.mean_iou),
            loss=_losses(model, before, after),
        )
        if result.worst <= max_loss:
            facts = {"int8": json.dumps({**vars(result)})}
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(out) as temporary:
                contents = join(
                    parts._replace(network=network), make_metadata(model, output, facts)
                )
                temporary.write_bytes(contents)
            return result
        tried.append(result)
    best = min(tried, key=lambda one: one.worst)
    lines = "\n".join(f"  {one}" for one in tried)
    raise ValueError(
        f"{out}: INT8 lowers the IoU of {max(best.loss, key=best.loss.__getitem__)} by "
        f"{best.worst:.4f} or more on {plural(len(pairs), 'validation image')}, expected at most "
        f"{max_loss:g}; nothing was written. Raise max_loss=IOU, or export float32. Tried:\n{lines}"
    )


def _training_images(model: Predictor) -> SegmentationDataset:
    """Return the training images of a model."""
    data, pairs = model.config.data, list_pairs(model.config)[0]

    def is_training(pair: Pair) -> bool:
        if data.validation.split is not None:
            return pair.split == "train"
        return data.validation.images is not None or pair.stem not in model.val_stems

    chosen = [pair for pair in pairs if is_training(pair)]
    if not chosen:
        raise ValueError(f"{data.root}: there are no training images to calibrate INT8 with")
    return SegmentationDataset(chosen, build_reader(model.config), normalization=None)


def _losses(model: Predictor, before: Scores, after: Scores) -> dict[str, float]:
    """Return by how much the mean IoU and that of each class fell; a class may have no score."""
    values = zip((before.mean_iou, *before.iou), (after.mean_iou, *after.iou), strict=True)
    losses = zip(("mean", *model.classes.names), (one - two for one, two in values), strict=True)
    return {name: loss for name, loss in losses if not math.isnan(loss)}


class _Recorder(Network):
    """Keeps its inputs on the network's grid."""

    def __init__(self, net: Network) -> None:
        super().__init__(net.in_channels, net.num_classes, net.geometry)
        self.output_stride = net.output_stride
        self.grids: list[Tensor] = []

    def forward_on_grid(self, x: Tensor) -> Tensor:
        self.grids.append(x)
        return x


def _calibration_grids(
    model: Predictor, images: SegmentationDataset, count: int
) -> Iterator[Tensor]:
    """Yield the middle of some training images, as the network gets it."""
    for index in np.random.default_rng(0).permutation(len(images.pairs))[:count].tolist():
        x = normalize(model.normalization, images[0, index][0])
        top, left = (max(0, side - _CROP) // 2 for side in x.shape[1:])
        recorder = _Recorder(model.net)
        recorder(recorder.mirror_context(x[None, :, top:, left:][..., :_CROP, :_CROP]))
        yield from recorder.grids


class _Reader:
    """Inputs of the network, as onnxruntime asks for them."""

    def __init__(self, grids: Iterator[Tensor]) -> None:
        self.grids = grids

    def get_next(self) -> dict[str, np.ndarray] | None:
        grid = next(self.grids, None)
        return None if grid is None else {GRID: grid.contiguous().numpy()}


def _quantize(
    network: Any, grids: Iterator[Tensor], strategy: Strategy
) -> tuple[Any, tuple[str, ...]]:
    """Quantize an onnx.ModelProto; return the result and the names of layers in float."""
    onnx, tools = (import_extra(name, "INT8") for name in ("onnx", "onnxruntime.quantization"))
    # Otherwise onnxruntime warns that it may do better after its own simplification of the graph.
    import_extra("onnxruntime.quantization.quant_utils", "INT8").add_pre_process_metadata(network)
    ends = [
        node
        for node in network.graph.node
        if strategy.keep_ends
        and node.op_type == "Conv"
        and (GRID in node.input or LOGITS in node.output)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(network, source)
        tools.quantize_static(
            source,
            result,
            _Reader(grids),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in ends],
            calibrate_method=tools.CalibrationMethod[strategy.method],
            extra_options=dict(strategy.options),
        )
        weights = [node.input[1] for node in ends]
        names = [name.removeprefix("module.").removesuffix(".weight") for name in weights]
        return onnx.load(result), tuple(names)
