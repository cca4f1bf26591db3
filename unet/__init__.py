"""U-Net segmentation: train, evaluate and predict.

The names below are loaded on first use, so that `unet --help` and a config error
need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.config.loader import load_config
    from unet.evaluation.evaluate import evaluate
    from unet.inference.predict import predict
    from unet.inference.predictor import Predictor, load_model
    from unet.models.conv_transpose import ConvTranspose2d, conv_transpose2d
    from unet.models.unet import UNet
    from unet.training.trainer import train

__all__ = [
    "ConvTranspose2d",
    "Predictor",
    "UNet",
    "conv_transpose2d",
    "evaluate",
    "load_config",
    "load_model",
    "predict",
    "train",
]

_MODULES = {
    "ConvTranspose2d": "models.conv_transpose",
    "Predictor": "inference.predictor",
    "UNet": "models.unet",
    "conv_transpose2d": "models.conv_transpose",
    "evaluate": "evaluation.evaluate",
    "load_config": "config.loader",
    "load_model": "inference.predictor",
    "predict": "inference.predict",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'unet' has no attribute {name!r}")
    return getattr(import_module(f"unet.{_MODULES[name]}"), name)
