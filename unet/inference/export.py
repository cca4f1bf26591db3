"""Write a trained model as one file that runs without unet: ONNX, or .pt2 of torch.export."""

import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from unet.checkpoint import FORMAT, VERSION
from unet.config.loader import Overrides
from unet.inference.exported_model import ExportedModel, Output, trace
from unet.inference.loading import load_predictor
from unet.inference.onnx_graph import join, make_parts
from unet.inference.onnx_network import CONTENTS, STRIDE
from unet.inference.predictor import Predictor
from unet.runtime.files import atomic_path, check_writable
from unet.runtime.optional import import_extra, unet_version

TOLERANCE = 1e-4
"""Largest allowed difference between the probabilities of the file and those of the model."""


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
    check_out(out, overwrite)
    model = load_predictor(Path(checkpoint), "cpu", overrides, network)
    exported = ExportedModel(model, output).eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    serialize: Serializer
    with atomic_path(out) as temporary:
        if out.suffix == ".onnx":
            serialize, load = partial(join, make_parts(exported, str(out))), _load_onnx
        else:
            serialize, load = _pt2_serializer(trace(exported)), _load_pt2
        difference = largest_difference(model, load(serialize({})), output)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{out}: got {output} that differ from the model's by {difference:.1e}, expected "
                f"at most {TOLERANCE:.0e}; nothing was written"
            )
        temporary.write_bytes(
            serialize(make_metadata(model, output, {"largest_difference": f"{difference:.1e}"}))
        )
    return difference


def check_out(out: Path, overwrite: bool) -> None:
    """Raise an error if a file cannot be written, or a package is missing."""
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
        temperature = 1.0 if model.calibration is None else model.calibration.temperature
        expected, result = (logits / temperature).softmax(1), run(images)
        if output == "classes":
            result = result.unsqueeze(1)
            if result.shape == expected[:, :1].shape:
                differences.append(expected.amax(1) - expected.gather(1, result).squeeze(1))
        elif result.shape == expected.shape:
            differences.append((result - expected).abs())
    if len(differences) < len(sizes):
        return math.inf
    return float(torch.stack([difference.max() for difference in differences]).max())


def make_metadata(model: Predictor, output: Output, facts: dict[str, str]) -> dict[str, str]:
    """Return all that is in a file apart from the network, and facts about its accuracy."""
    classes = dict(zip(model.classes.names, model.classes.values, strict=True))
    contents = {"format": FORMAT, "version": VERSION, **model.contents()}
    return {
        **{name: json.dumps(contents[name]) for name in CONTENTS},
        STRIDE: json.dumps(model.net.output_stride),
        "unet_version": unet_version(),
        "classes": json.dumps(classes),  # name -> mask value, in the order of the class ids
        "input": (
            f"images (N, {model.net.in_channels}, H, W) float32 from 0 to 1: integers divided by "
            "the largest value of their type, 255 or 65535; floats as in training"
        ),
        "output": (
            f"probabilities (N, {len(classes)}, H, W) float32"
            if output == "probabilities"
            else "class ids (N, H, W) int64"
        ),
        **facts,
    }


Serializer = Callable[[dict[str, str]], bytes]
"""Metadata -> the contents of the file."""


def _load_onnx(contents: bytes) -> Callable[[Tensor], Tensor]:
    session: Any = import_extra("onnxruntime", "export", "onnx").InferenceSession(contents)

    def run(images: Tensor) -> Tensor:
        (result,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(result)

    return run


def _pt2_serializer(program: ExportedProgram) -> Serializer:
    def serialize(metadata: dict[str, str]) -> bytes:
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"unet.json": json.dumps(metadata)})
        return file.getvalue()

    return serialize


def _load_pt2(contents: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(contents)).module()
