"""Networks of exported ONNX files, computed by onnxruntime."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet.checkpoint import FORMAT, check_contents
from unet.config.schema import Config
from unet.models.custom import UNKNOWN_GEOMETRY
from unet.models.network import Network
from unet.runtime import distributed
from unet.runtime.errors import is_out_of_memory
from unet.runtime.optional import import_extra

IMAGES, GRID, LOGITS = "images", "grid", "logits"
"""Names in the graph: the input of the file, and the input and output of the network in it."""

CONTENTS = (
    "format",
    "version",
    "config",
    "normalization",
    "image_range",
    "val_stems",
    "palette",
    "calibration",
)
"""Keys of the metadata, JSON each: what a checkpoint holds, without weights."""

STRIDE = "output_stride"
"""Key of the metadata: `Network.output_stride`."""

_LARGEST_STRIDE = 1024  # in pixels
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def load_onnx(path: Path) -> dict[str, Any]:
    """Read a file that `unet export` wrote and check its metadata.

    Returns:
        The contents of the checkpoint without weights, `STRIDE`, and as `network` the
        onnx.ModelProto from `GRID` to `LOGITS`, which `OnnxNetwork` checks.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is damaged, or another program wrote or changed it.
    """
    onnx = import_extra("onnx", str(path), "onnx")
    import_extra("onnxruntime", str(path), "onnx")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; check the path")
    try:
        model = onnx.load_from_string(path.read_bytes())
    except Exception as error:  # of protobuf, which need not be imported
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path}: is damaged, or no ONNX file; export the model again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    try:
        contents: dict[str, Any] = {
            name: json.loads(metadata[name]) for name in (*CONTENTS, STRIDE)
        }
    except (KeyError, ValueError, RecursionError):
        contents = {}
    if contents.get("format") != FORMAT:
        raise ValueError(
            f"{path}: is not an ONNX file of unet: its metadata has no config; take a file that "
            "'unet export' wrote"
        )
    check_contents(contents, path)
    if type(stride := contents[STRIDE]) is not int or not 1 <= stride <= _LARGEST_STRIDE:
        raise _changed(path, f"got {STRIDE} {stride!r:.50}, expected 1 to {_LARGEST_STRIDE}")
    if any(tensor.external_data for tensor in model.graph.initializer):
        raise _changed(path, "got weights in other files, expected all in this one")
    try:
        contents["network"] = find_network(model)
    except Exception as error:  # onnx raises whatever its code meets in a wrong graph
        raise _changed(path, f"has no network from {GRID} to {LOGITS}") from error
    return contents


def find_network(model: Any) -> Any:
    """Return the part of an onnx.ModelProto from `GRID` to `LOGITS`."""
    return (
        import_extra("onnx.utils", "onnx", "onnx").Extractor(model).extract_model([GRID], [LOGITS])
    )


def _changed(where: object, problem: str) -> ValueError:
    return ValueError(f"{where}: {problem}; the file was changed, export the model again")


class OnnxNetwork(Network):
    """A network in ONNX with the methods of a `UNet`; images and logits are on the CPU.

    Args:
        contents: from `load_onnx`; its network and output_stride are used.
        config: the config of the model.
        device: auto, cpu, cuda or cuda:N, where onnxruntime computes.
        where: the file, for messages.

    Raises:
        ValueError: if onnxruntime has no such device, or cannot compute the network.
    """

    def __init__(
        self, contents: Mapping[str, Any], config: Config, device: str, where: object
    ) -> None:
        own = config.custom.network is None
        super().__init__(
            config.model.in_channels,
            len(config.data.classes),
            config.model.geometry if own else UNKNOWN_GEOMETRY,
        )
        self.where, self.output_stride = where, contents[STRIDE]
        runtime = import_extra("onnxruntime", str(where), "onnx")
        providers = _pick_providers(runtime.get_available_providers(), device)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised, too
        try:
            self.session = runtime.InferenceSession(
                contents["network"].SerializeToString(), options, providers=providers
            )
        except Exception as error:  # the classes of onnxruntime have no common one
            raise _changed(where, f"onnxruntime cannot load it ({_shorten(error)})") from error
        self._check()

    def _check(self) -> None:
        """Compute a small image."""
        sides = [(n + 1) * self.output_stride for n in (1, 2)]
        if self.context:
            sides = [self.geometry.input_side(side) for side in sides]
        logits = self.forward_on_grid(torch.zeros(1, self.in_channels, *sides))
        expected = (1, self.num_classes, *(side - 2 * self.context for side in sides))
        if logits.dtype != torch.float32 or tuple(logits.shape) != expected:
            got = f"{str(logits.dtype).removeprefix('torch.')} logits {tuple(logits.shape)}"
            raise _changed(self.where, f"got {got}, expected float32 {expected} as the config says")

    def forward_on_grid(self, x: Tensor) -> Tensor:
        """Compute the network, see `Network`."""
        try:
            (logits,) = self.session.run([LOGITS], {GRID: x.contiguous().numpy()})
        except Exception as error:
            if is_out_of_memory(error) or is_out_of_memory(RuntimeError(str(error))):
                raise MemoryError(_shorten(error)) from error
            raise _changed(self.where, f"onnxruntime fails ({_shorten(error)})") from error
        return torch.from_numpy(logits)


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _pick_providers(available: list[str], device: str) -> list[Any]:
    """Return onnxruntime's execution providers for auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: if CUDA is asked for, and onnxruntime does not have it.
    """
    name, _, number = device.partition(":")
    if name not in ("auto", "cuda", "cpu") or not (number or "0").isdecimal():
        raise ValueError(f"train.device: got {device!r}, expected auto, cpu, cuda or cuda:N")
    if name == "cuda" and _CUDA not in available:
        raise ValueError(
            f"train.device: got {device!r}, but onnxruntime has no {_CUDA}; install "
            "onnxruntime-gpu in place of onnxruntime, or take auto or cpu"
        )
    if name == "cpu" or _CUDA not in available:
        return [_CPU]
    return [(_CUDA, {"device_id": int(number or distributed.local_rank())}), _CPU]
