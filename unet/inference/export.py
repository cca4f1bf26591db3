"""Write a trained model as one file that runs without unet: ONNX, or .pt2 of torch.export."""

import copy
import io
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from unet.config.loader import Overrides
from unet.config.values import config_to_dict
from unet.inference.predictor import Predictor, load_predictor
from unet.models.fuse import fuse_batch_norm
from unet.runtime.files import atomic_path, check_writable
from unet.runtime.optional import import_extra, unet_version

Output = Literal["probabilities", "classes"]

TOLERANCE = 1e-4
"""Largest allowed difference between the probabilities of the file and those of the model."""

# An ONNX file holds at most 2 GiB; torch puts larger weights into a second file.
_MAX_ONNX_BYTES = 1.5 * 2**30


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
        self.net = fuse_batch_norm(model.net)
        self.net.to(memory_format=torch.contiguous_format)
        self.normalization = copy.deepcopy(model.normalization).to(model.device)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) float32 from 0 to 1 -> probabilities or classes."""
        # UNet pads and crops by F.pad and slices, from which torch.export derives constraints on
        # the sizes. Indices have the same result without them.
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        x = self.net.mirror_context(self.normalization(images))
        if not self.net.context:
            x = x.index_select(2, self._extend(rows)).index_select(3, self._extend(columns))
        logits = self.net.forward_on_grid(x).index_select(2, rows).index_select(3, columns)
        return logits.softmax(1) if self.output == "probabilities" else logits.argmax(1)

    def _extend(self, indices: Tensor) -> Tensor:
        """Repeat the last index of an axis until its length fits the network's grid."""
        side, stride = indices.shape[0], self.net.output_stride
        # Rounded up without negative numbers, which ONNX and Python divide differently.
        units = torch.sym_max((side + stride - 1) // stride, 2)
        return torch.arange(units * stride, device=indices.device).clamp(max=side - 1)


def export(
    checkpoint: str | Path,
    out: str | Path,
    output: Output = "probabilities",
    overwrite: bool = False,
    network: nn.Module | None = None,
    overrides: Overrides = (),
) -> float:
    """Write a model as ONNX or .pt2, after comparing the file with the model at three sizes.

    Batch, height and width are dynamic. Images are float32 from 0 to 1: integers are divided by the
    largest value of their type (255 or 65535), floats are used as in training. A .pt2 runs on the
    CPU until `torch.export.passes.move_to_device_pass` moves it. Classes, config, version, input
    range and the largest difference are in the file: in ONNX as metadata, in .pt2 as unet.json.

    Args:
        checkpoint: a best.pt or last.pt.
        out: the file to write, ending in .onnx or .pt2.
        output: probabilities (N, K, H, W) float32, or classes, the class ids (N, H, W) int64.
        overwrite: whether to replace an existing file.
        network: as in `load_model`.
        overrides: as in `load_model`, such as new names of the classes.

    Returns:
        The difference between file and model, see `largest_difference`.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if the checkpoint does not exist.
        ValueError: if an argument is wrong, packages are missing, the model cannot be exported, or
            the file differs from the model.
    """
    out = Path(out)
    if output not in get_args(Output):
        raise ValueError(f"output: got {output!r}, expected one of {', '.join(get_args(Output))}")
    _check_out(out, overwrite)
    model = load_predictor(Path(checkpoint), "cpu", overrides, network)
    exported = ExportedModel(model, output).eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internal calls
        program = _trace(exported)
        if out.suffix == ".onnx":
            serialize, load = _onnx_serializer(program, out, output), _load_onnx
        else:
            serialize, load = _pt2_serializer(program), _load_pt2
        difference = largest_difference(model, load(serialize({})), output)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{out}: got {output} that differ from the model's by {difference:.1e}, expected "
                f"at most {TOLERANCE:.0e}; nothing was written"
            )
        temporary.write_bytes(serialize(_metadata(model, output, difference)))
    return difference


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{out}: expected a file that ends in .onnx or .pt2")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder, expected a file to write")
    if out.exists() and not overwrite:
        raise FileExistsError(
            f"{out}: exists; pass overwrite=True to replace it, or choose another name"
        )
    check_writable(out.parent)
    if out.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(package, str(out), "onnx")


@torch.no_grad()
def largest_difference(model: Predictor, run: Callable[[Tensor], Tensor], output: Output) -> float:
    """Compare a model with its exported form, `run`, at three sizes on the CPU.

    Returns:
        The largest difference of a probability. For classes, the largest amount by which the chosen
        class is less probable than the most probable one. Infinity if the shapes differ.
    """
    random, net, differences = torch.Generator().manual_seed(0), model.net.eval(), []
    side = net.output_stride
    # Smaller than the network's smallest input, odd, and a multiple of its output stride.
    sizes = (1, 1, 3), (2, 2 * side + 3, 4 * side + 1), (3, 6 * side, 3 * side)
    for batch, height, width in sizes:
        images = torch.rand(batch, net.in_channels, height, width, generator=random)
        logits = net(net.mirror_context(model.normalization(images)))[..., :height, :width]
        expected, result = logits.softmax(1), run(images)
        if output == "classes":
            result = result.unsqueeze(1)
            if result.shape == expected[:, :1].shape:
                differences.append(expected.amax(1) - expected.gather(1, result).squeeze(1))
        elif result.shape == expected.shape:
            differences.append((result - expected).abs())
    if len(differences) < len(sizes):
        return math.inf
    return float(torch.stack([difference.max() for difference in differences]).max())


def _trace(exported: ExportedModel) -> torch.export.ExportedProgram:
    net, stride = exported.net, exported.net.output_stride
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    # torch takes sizes that are equal or 1 in the example as always so: here all differ.
    example = torch.rand(2, net.in_channels, 3 * stride + 1, 5 * stride + 3)
    return torch.export.export(
        exported, (example,), dynamic_shapes=({0: batch, 2: height, 3: width},)
    )


def _metadata(model: Predictor, output: Output, difference: float) -> dict[str, str]:
    classes = dict(zip(model.classes.names, model.classes.values, strict=True))
    return {
        "unet_version": unet_version(),
        "classes": json.dumps(classes),  # name -> mask value, in the order of the class ids
        "config": json.dumps(config_to_dict(model.config)),
        "input": (
            f"images (N, {model.net.in_channels}, H, W) float32 from 0 to 1: integers divided by "
            "the largest value of their type, 255 or 65535; floats as in training"
        ),
        "output": (
            f"probabilities (N, {len(classes)}, H, W) float32"
            if output == "probabilities"
            else "class ids (N, H, W) int64"
        ),
        "largest_difference": f"{difference:.1e}",
    }


_Serializer = Callable[[dict[str, str]], bytes]
"""Metadata -> the contents of the file."""


def _onnx_serializer(
    program: torch.export.ExportedProgram, out: Path, output: Output
) -> _Serializer:
    num_bytes = sum(tensor.nbytes for tensor in program.state_dict.values())
    if num_bytes > _MAX_ONNX_BYTES:
        raise ValueError(
            f"{out}: got {num_bytes / 2**30:.1f} GiB of weights, expected at most "
            f"{_MAX_ONNX_BYTES / 2**30:g} in one ONNX file; write a .pt2"
        )
    onnx = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=[output],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),  # their names in the file
        verbose=False,
    )
    assert onnx is not None

    def serialize(metadata: dict[str, str]) -> bytes:
        onnx.model.metadata_props.update(metadata)
        file = io.BytesIO()
        onnx.save(file)  # type: ignore[arg-type]
        return file.getvalue()

    return serialize


def _load_onnx(contents: bytes) -> Callable[[Tensor], Tensor]:
    session: Any = import_extra("onnxruntime", "export", "onnx").InferenceSession(contents)

    def run(images: Tensor) -> Tensor:
        (result,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(result)

    return run


def _pt2_serializer(program: torch.export.ExportedProgram) -> _Serializer:
    def serialize(metadata: dict[str, str]) -> bytes:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"unet.json": json.dumps(metadata)})
        return file.getvalue()

    return serialize


def _load_pt2(contents: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(contents)).module()
