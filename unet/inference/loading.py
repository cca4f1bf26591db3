"""Trained models, loaded from checkpoints and exported files."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet.build import build_network, build_normalization
from unet.checkpoint import find_checkpoint, load_checkpoint, restore_calibration
from unet.config.loader import Overrides, overridden, restore_config
from unet.config.schema import Config
from unet.data.image_range import ImageRange
from unet.data.normalization import Normalization
from unet.inference.onnx_network import OnnxNetwork, load_onnx
from unet.inference.precision import pick_inference_dtype
from unet.inference.predictor import Ensemble, Model, Predictor, check_agreement
from unet.models.custom import check_network
from unet.models.fuse import fuse_batch_norm
from unet.models.network import Network
from unet.models.weights import incompatible_weights
from unet.runtime.device import pick_device
from unet.runtime.text import format_list


def load_model(
    path: str | Path | Sequence[str | Path],
    device: str | None = None,
    overrides: Overrides = (),
    network: nn.Module | None = None,
) -> Model:
    """Load a trained model to predict with; to continue its training, set `train.init_from`.

    Batch norm is fused into the convolutions, which makes a U-Net 1.17 times as fast on two cores.

    Args:
        path: a best.pt or last.pt, or an ONNX file that `unet.export` wrote, which onnxruntime
            computes; several for an `Ensemble`.
        device: auto, cpu, cuda, cuda:N or mps; None for the config's `train.device`.
        overrides: changes of settings that keep the model, such as `{"tiling.overlap": 64}`.
        network: the network of your own that the model was trained with, which is copied.

    Raises:
        FileNotFoundError: if a file does not exist.
        TypeError: if `path` is neither a path nor a list of paths.
        ValueError: if a file is no checkpoint, an override does not fit it, or several models
            differ in classes, mask values or channels.
    """
    paths = [path] if isinstance(path, str | Path) else path
    if not isinstance(paths, list | tuple) or not all(isinstance(x, str | Path) for x in paths):
        raise TypeError(f"path: got {path!r:.100}, expected the path of a checkpoint, or several")
    if not paths:
        raise ValueError("path: got an empty list, expected one checkpoint or more")
    members = [load_predictor(Path(one), device, overrides, network) for one in paths]
    check_agreement(members, list(map(str, paths)))
    return members[0] if len(members) == 1 else Ensemble(tuple(members))


def load_predictor(
    path: Path,
    device: str | None = None,
    overrides: Overrides = (),
    network: nn.Module | None = None,
) -> Predictor:
    """Load one model, as `load_model`."""
    contents = load_contents(path)
    config = restore_config(contents["config"], overrides, str(path))
    name, is_given = device or config.train.device, "train.precision" in overridden(overrides)
    net: Network
    if "network" in contents:
        if is_given:
            raise ValueError(
                f"{path}: got train.precision={config.train.precision} for an exported file, which "
                "has a precision of its own; leave it out"
            )
        chosen, dtype = torch.device("cpu"), torch.float32
        net = OnnxNetwork(contents, config, name, path)
    else:
        chosen = pick_device(name)
        net = _restore_network(contents["model"], config, network, chosen, path)
        dtype = pick_inference_dtype(net, config, chosen, is_given)
    return Predictor(
        net=net,
        config=config,
        normalization=build_normalization(config) or Normalization(**contents["normalization"]),
        image_range=ImageRange(**images) if (images := contents["image_range"]) else None,
        val_stems=tuple(contents["val_stems"]),
        palette=contents["palette"],
        device=chosen,
        weights=contents.get("model"),
        dtype=dtype,
        calibration=restore_calibration(contents),
    )


def load_contents(path: Path) -> dict[str, Any]:
    """Read a checkpoint or an exported file: `load_checkpoint` or `load_onnx`."""
    path = find_checkpoint(path)
    return load_onnx(path) if path.suffix == ".onnx" else load_checkpoint(path)


def _restore_network(
    weights: Mapping[str, Tensor],
    config: Config,
    network: nn.Module | None,
    device: torch.device,
    path: Path,
) -> Network:
    check_network(network, config.custom.network, str(path))
    # Without values first: the settings of a changed checkpoint may describe a huge network.
    own = build_network(config, torch.device("meta"), copy.deepcopy(network)).state_dict()
    if wrong := incompatible_weights(weights, own, own):
        raise ValueError(
            f"{path}: the weights do not fit the network of the checkpoint's config; it was "
            f"changed after training, or they are another network's:\n{format_list(wrong, 3)}"
        )
    net = build_network(config, device, copy.deepcopy(network))
    net.load_state_dict(weights)
    return fuse_batch_norm(net)
