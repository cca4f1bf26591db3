"""ONNX graphs: a model in three parts, joined in one file.

In the file, `images` go to the part prepare (normalization, extension to the network's grid), its
result `grid` to the network, and its result `logits` to the part finish (crop, softmax or argmax).
Only the network is needed to predict with unet, which normalises and tiles images by itself.
"""

import io
import warnings
from typing import Any, NamedTuple

import torch

from unet.inference.exported_model import ExportedModel, trace_parts
from unet.inference.onnx_network import GRID, IMAGES, LOGITS
from unet.runtime.optional import import_extra

# An ONNX file holds at most 2 GiB; torch puts larger weights into a second file.
_MAX_BYTES = 1.5 * 2**30


class Parts(NamedTuple):
    """The parts of a model, each an onnx.ModelProto."""

    prepare: Any
    network: Any
    finish: Any


def make_parts(exported: ExportedModel, where: str) -> Parts:
    """Convert the parts of a model to ONNX.

    Raises:
        ValueError: if the model is too large for one file; the message begins with `where`.
    """
    num_bytes = sum(tensor.nbytes for tensor in exported.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise ValueError(
            f"{where}: got {num_bytes / 2**30:.1f} GiB of weights, expected at most "
            f"{_MAX_BYTES / 2**30:g} in one ONNX file; write a .pt2"
        )
    programs = trace_parts(exported)
    return Parts(
        _convert(programs["prepare"], [IMAGES], GRID),
        _convert(programs["forward_on_grid"], [GRID], LOGITS),
        _convert(programs["finish"], [IMAGES, LOGITS], exported.output),
    )


def _convert(program: torch.export.ExportedProgram, inputs: list[str], output: str) -> Any:
    onnx = import_extra("onnx", "export", "onnx")
    axes = {
        IMAGES: {0: "batch", 2: "height", 3: "width"},
        GRID: {0: "batch", 2: "rows", 3: "columns"},
        LOGITS: {0: "batch", 2: "logit_rows", 3: "logit_columns"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program,
            input_names=inputs,
            output_names=[output],
            dynamic_shapes=tuple(axes[name] for name in inputs),  # their names in the file
            verbose=False,
        )
    assert converted is not None
    file = io.BytesIO()
    converted.save(file)  # type: ignore[arg-type]
    return onnx.load_from_string(file.getvalue())


def join(parts: Parts, metadata: dict[str, str]) -> bytes:
    """Return the contents of a file with all parts."""
    onnx = import_extra("onnx", "export", "onnx")
    graphs = [
        onnx.compose.add_prefix(
            part, f"{name}/", rename_inputs=False, rename_outputs=False, inplace=False
        ).graph
        for name, part in parts._asdict().items()
    ]
    assert not any(part.functions for part in parts)
    graph = onnx.helper.make_graph(
        [node for graph in graphs for node in graph.node],
        "unet",
        graphs[0].input,
        graphs[-1].output,
        [tensor for graph in graphs for tensor in graph.initializer],
        value_info=[value for graph in graphs for value in (*graph.value_info, *graph.output)][:-1],
    )
    opsets = {entry.domain: entry for part in parts for entry in part.opset_import}
    model = onnx.helper.make_model(
        graph, producer_name="unet", opset_imports=opsets.values(), ir_version=parts[1].ir_version
    )
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    contents: bytes = model.SerializeToString()
    return contents
