"""A trained model as one module, and how torch.export traces it for images of any size."""

import copy
import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unet.inference.onnx_network import OnnxNetwork
from unet.inference.predictor import Predictor
from unet.models.fuse import fuse_batch_norm, shuffle_pixels

Output = Literal["probabilities", "classes"]


class ExportedModel(nn.Module):
    """Normalization, network, and softmax or argmax in one module, for images of any size.

    Args:
        model: the trained model.
        output: probabilities (N, K, H, W) float32, or classes, the class ids (N, H, W) int64.

    Raises:
        ValueError: if the model normalises by percentiles or resizes images.
    """

    def __init__(self, model: Predictor, output: Output = "probabilities") -> None:
        super().__init__()
        if isinstance(model.net, OnnxNetwork):
            raise ValueError("export: got an exported file, expected a checkpoint")
        if model.normalization.method == "percentiles":
            raise ValueError(
                "export: got a model with data.normalization percentiles, for which ONNX has no "
                "operator, expected dataset, image or a mean and std; train with one of these"
            )
        if model.config.data.scale != 1:
            raise ValueError(
                f"export: got a model with data.scale {model.config.data.scale:g}, expected 1: an "
                "exported network does not resize images; train without it"
            )
        self.output = output
        self.temperature = 1.0 if model.calibration is None else model.calibration.temperature
        self.net = fuse_batch_norm(model.net)
        shuffle_pixels(self.net)
        self.net.to(memory_format=torch.contiguous_format)
        self.normalization = copy.deepcopy(model.normalization).to(model.device)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) float32 from 0 to 1 -> probabilities or classes."""
        return self.finish(images, self.net.forward_on_grid(self.prepare(images)))

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise images (N, C, H, W) and extend them to the network's grid."""
        x = self.net.mirror_context(self.normalization(images))
        if not self.net.context:
            # UNet pads and crops by F.pad and slices, from which torch.export derives constraints
            # on the sizes. Indices have the same result without them.
            rows, columns = self._pixels(images)
            x = x.index_select(2, self._extend(rows)).index_select(3, self._extend(columns))
        return x

    def finish(self, images: Tensor, logits: Tensor) -> Tensor:
        """Crop logits (N, K, h, w) to the images and return probabilities or classes."""
        rows, columns = self._pixels(images)
        logits = logits.index_select(2, rows).index_select(3, columns)
        if self.output == "classes":
            return logits.argmax(1)
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(1)

    @staticmethod
    def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        return rows, columns

    def _extend(self, indices: Tensor) -> Tensor:
        """Repeat the last index of an axis until its length fits the network's grid."""
        side, stride = indices.shape[0], self.net.output_stride
        # Rounded up without negative numbers, which ONNX and Python divide differently.
        units = torch.sym_max((side + stride - 1) // stride, 2)
        return torch.arange(units * stride, device=indices.device).clamp(max=side - 1)


def trace(exported: ExportedModel) -> ExportedProgram:
    """Trace the whole model: images -> probabilities or classes."""
    images = _example(exported)
    return _trace(exported, (images,), (_sizes(),))


def trace_parts(exported: ExportedModel) -> dict[str, ExportedProgram]:
    """Trace the three parts of a model one by one, so that no size crosses their borders.

    Returns:
        prepare: images -> grid, forward_on_grid: grid -> logits, finish: images, logits -> output.
    """
    net = exported.net
    images = _example(exported)
    with torch.no_grad():
        grid = exported.prepare(images)
        logits = net.forward_on_grid(grid)
    offset = net.geometry.remainder + 2 * net.context
    batch, height, width = (Dim(name) for name in ("batch", "rows", "columns"))
    on_grid = {0: batch}
    for axis, units in ((2, height), (3, width)):
        side = net.output_stride * units if net.output_stride > 1 else units
        on_grid[axis] = side + offset if offset else side
    any_logits = {0: batch, 2: Dim("logit_rows"), 3: Dim("logit_columns")}
    return {
        "prepare": _trace(_Part(exported, "prepare"), (images,), (_sizes(),)),
        "forward_on_grid": _trace(_Part(net, "forward_on_grid"), (grid,), (on_grid,)),
        "finish": _trace(_Part(exported, "finish"), (images, logits), (_sizes(), any_logits)),
    }


class _Part(nn.Module):
    """A method of a module as a module."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = getattr(self.module, self.method)(*inputs)
        return result


def _example(exported: ExportedModel) -> Tensor:
    # torch takes sizes that are equal or 1 in the example as always so: here all differ.
    stride = exported.net.output_stride
    return torch.rand(2, exported.net.in_channels, 3 * stride + 5, 5 * stride + 7)


def _sizes() -> dict[int, Dim]:
    return {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}


def _trace(
    module: nn.Module, example: tuple[Tensor, ...], sizes: tuple[dict[int, Dim], ...]
) -> ExportedProgram:
    shapes = sizes if not isinstance(module, _Part) else (sizes,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internal calls
        return torch.export.export(module.eval(), example, dynamic_shapes=shapes)
