"""A trained model as one file that runs without this project: ONNX, or torch's own .pt2."""

import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unet.config.values import config_to_dict
from unet.inference.predictor import Predictor, load_model
from unet.models.fuse import fuse_batch_norm
from unet.runtime.files import atomic_path, check_writable
from unet.runtime.optional import import_extra

Output = Literal["probabilities", "classes"]

TOLERANCE = 1e-4
"""Probabilities of the file may differ by so much from those of the model."""

# An ONNX file ends at 2 GiB, and torch puts weights of more than this into a second one.
_ONNX_BYTES = 1.5 * 2**30


class ExportedModel(nn.Module):
    """All that lies between images and their result: normalization, network, softmax or argmax.

    Args:
        model: a single one.
        output: probabilities (N, K, H, W) float32, or classes (N, H, W) int64, the class ids.

    Raises:
        ValueError: if the model is several, or normalises by percentiles.
    """

    def __init__(self, model: Predictor, output: Output = "probabilities") -> None:
        super().__init__()
        if model.others:
            raise ValueError(
                f"export: got {1 + len(model.others)} checkpoints, expected one; export each, and "
                "average their probabilities"
            )
        if model.normalization.method == "percentiles":
            raise ValueError(
                "export: got a model with data.normalization percentiles, which ONNX has no "
                "operator for, expected dataset, image or given numbers; train with one of these"
            )
        self.output = output
        self.net = fuse_batch_norm(model.net)
        self.net.to(memory_format=torch.contiguous_format)
        self.normalization = copy.deepcopy(model.normalization).to(model.device)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) float32 from 0 to 1, of any size -> probabilities or classes."""
        # What UNet does by F.pad and a slice, by the places of pixels: torch.export would hold all
        # sizes to what it can prove of those.
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        x = self.net.mirror_context(self.normalization(images))
        if self.net.padding == "same":
            x = x.index_select(2, self._places(rows)).index_select(3, self._places(columns))
        logits = self.net.forward_on_grid(x).index_select(2, rows).index_select(3, columns)
        return logits.softmax(1) if self.output == "probabilities" else logits.argmax(1)

    def _places(self, own: Tensor) -> Tensor:
        """The places along a side, the last one again and again up to the network's grid."""
        side, factor = own.shape[0], self.net.output_stride
        # Rounded up without a negative number, which ONNX divides otherwise than Python.
        cells = torch.sym_max((side + factor - 1) // factor, 2)
        return torch.arange(cells * factor, device=own.device).clamp(max=side - 1)


def export(
    checkpoints: Sequence[Path],
    out: Path,
    output: Output = "probabilities",
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> float:
    """Write a model as ONNX or .pt2, and compare the file with the model at three sizes.

    Batch, height and width are dynamic. Images are float32 from 0 to 1: integers divided by the
    largest of their type (255, 65535), floats as they were in training. A .pt2 is bound to the CPU
    until `torch.export.passes.move_to_device_pass` moves it. Classes, config, version, input range
    and the largest difference found stand in the file: in ONNX as its metadata, in .pt2 as the
    extra file unet.json.

    Args:
        checkpoints: a best.pt or last.pt; several are refused.
        out: the file; ends in .onnx or .pt2.
        output: probabilities (N, K, H, W) float32, or classes (N, H, W) int64, the class ids.
        overwrite: whether to replace a file that exists.
        overrides: as `load_model`.

    Returns:
        The largest difference, as `largest_difference` gives it.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is none, `out` ends otherwise, packages are missing, the model cannot be
            exported, or the file differs from it.
    """
    if out.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{out}: expected a file that ends in .onnx or .pt2")
    if out.is_dir():
        raise ValueError(f"{out}: is a folder, expected a file to write")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: exists; pass --overwrite to replace it, or another -o FILE")
    check_writable(out.parent)
    if out.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(package, str(out), "onnx")
    model = load_model(checkpoints, "cpu", overrides)
    exported = ExportedModel(model, output).eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it calls within itself
        program = _program(exported)
        if out.suffix == ".onnx":
            contents, load = _onnx_file(program, out, output), _load_onnx
        else:
            contents, load = _pt2_file(program), _load_pt2
        difference = largest_difference(model, load(contents({})), output)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{out}: got {output} that differ from the model's by {difference:.1e}, expected "
                f"at most {TOLERANCE:.0e}; nothing was written"
            )
        temporary.write_bytes(contents(_metadata(model, output, difference)))
    return difference


@torch.no_grad()
def largest_difference(model: Predictor, run: Callable[[Tensor], Tensor], output: Output) -> float:
    """Compare an exported model with the model itself at three sizes.

    Args:
        model: on the CPU.
        run: images -> the exported model's output.
        output: what that is.

    Returns:
        The largest difference of a probability. Of classes, the largest amount by which the one
        chosen is less probable than the most probable one. Infinity if the shapes differ.
    """
    random, net = torch.Generator().manual_seed(0), model.net.eval()
    side = net.output_stride
    differences = []
    # Smaller than the network's own smallest size, odd, and a multiple of its factor.
    for batch, height, width in (
        (1, 1, 3),
        (2, 2 * side + 3, 4 * side + 1),
        (3, 6 * side, 3 * side),
    ):
        images = torch.rand(batch, net.in_channels, height, width, generator=random)
        expected = net(net.mirror_context(model.normalization(images)))[
            ..., :height, :width
        ].softmax(1)
        result = run(images)
        if output == "classes":
            result = result.unsqueeze(1)
            if result.shape == expected[:, :1].shape:
                differences.append(expected.amax(1) - expected.gather(1, result).squeeze(1))
        elif result.shape == expected.shape:
            differences.append((result - expected).abs())
    if len(differences) < 3:
        return math.inf
    return float(torch.stack([difference.max() for difference in differences]).max())


def _program(exported: ExportedModel) -> torch.export.ExportedProgram:
    net = exported.net
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    # A size of its own for each, as torch takes equal ones, and ones, for always so.
    example = torch.rand(2, net.in_channels, 3 * net.output_stride + 1, 5 * net.output_stride + 3)
    return torch.export.export(
        exported, (example,), dynamic_shapes=({0: batch, 2: height, 3: width},)
    )


def _metadata(model: Predictor, output: Output, difference: float) -> dict[str, str]:
    classes = dict(zip(model.classes.names, model.classes.values, strict=True))
    return {
        "unet_version": version("unet"),
        "classes": json.dumps(classes),  # name -> mask value, in the order of the class ids
        "config": json.dumps(config_to_dict(model.config)),
        "input": (
            f"images (N, {model.net.in_channels}, H, W) float32 from 0 to 1: integers divided by "
            "the largest of their type, 255 or 65535; floats as they were in training"
        ),
        "output": (
            f"probabilities (N, {len(classes)}, H, W) float32"
            if output == "probabilities"
            else "class ids (N, H, W) int64"
        ),
        "largest_difference": f"{difference:.1e}",
    }


_File = Callable[[dict[str, str]], bytes]
"""Metadata -> a whole file."""


def _onnx_file(program: torch.export.ExportedProgram, out: Path, output: Output) -> _File:
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights > _ONNX_BYTES:
        raise ValueError(
            f"{out}: got {weights / 2**30:.1f} GiB of weights, expected at most "
            f"{_ONNX_BYTES / 2**30:g} in one ONNX file; write a .pt2"
        )
    onnx = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=[output],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),  # their names in the file
        verbose=False,
    )
    assert onnx is not None

    def contents(metadata: dict[str, str]) -> bytes:
        onnx.model.metadata_props.update(metadata)
        file = io.BytesIO()
        onnx.save(file)  # type: ignore[arg-type]
        return file.getvalue()

    return contents


def _load_onnx(contents: bytes) -> Callable[[Tensor], Tensor]:
    session: Any = import_extra("onnxruntime", "export", "onnx").InferenceSession(contents)

    def run(images: Tensor) -> Tensor:
        (result,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(result)

    return run


def _pt2_file(program: torch.export.ExportedProgram) -> _File:
    def contents(metadata: dict[str, str]) -> bytes:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"unet.json": json.dumps(metadata)})
        return file.getvalue()

    return contents


def _load_pt2(contents: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(contents)).module()
