"""U-Net segmentation: train, evaluate and predict.

The names below are loaded on first use, so that `unet --help` and a config error
need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.checkpoint import SegmentationModel, load_model
    from unet.conv_transpose import ConvTranspose2d, conv_transpose2d
    from unet.model import UNet
    from unet.prediction import predict

__all__ = [
    "ConvTranspose2d",
    "SegmentationModel",
    "UNet",
    "conv_transpose2d",
    "load_model",
    "predict",
]

_MODULES = {
    "ConvTranspose2d": "conv_transpose",
    "SegmentationModel": "checkpoint",
    "UNet": "model",
    "conv_transpose2d": "conv_transpose",
    "load_model": "checkpoint",
    "predict": "prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'unet' has no attribute {name!r}")
    return getattr(import_module(f"unet.{_MODULES[name]}"), name)
