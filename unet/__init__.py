"""U-Net segmentation: train, evaluate and predict.

The names below are imported on first use, so that `unet --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.config.loader import load_config
    from unet.evaluation.calibrate import calibrate
    from unet.evaluation.evaluate import evaluate
    from unet.evaluation.quantize import export_int8
    from unet.evaluation.review import review
    from unet.inference.export import export
    from unet.inference.loading import load_model
    from unet.inference.predict import predict
    from unet.inference.predictor import Ensemble, Predictor
    from unet.models.conv_transpose import ConvTranspose2d, conv_transpose2d
    from unet.models.unet import UNet
    from unet.training.train import train

__all__ = [
    "ConvTranspose2d",
    "Ensemble",
    "Predictor",
    "UNet",
    "calibrate",
    "conv_transpose2d",
    "evaluate",
    "export",
    "export_int8",
    "load_config",
    "load_model",
    "predict",
    "review",
    "train",
]

_MODULES = {
    "ConvTranspose2d": "models.conv_transpose",
    "Ensemble": "inference.predictor",
    "Predictor": "inference.predictor",
    "UNet": "models.unet",
    "calibrate": "evaluation.calibrate",
    "conv_transpose2d": "models.conv_transpose",
    "evaluate": "evaluation.evaluate",
    "export": "inference.export",
    "export_int8": "evaluation.quantize",
    "load_config": "config.loader",
    "load_model": "inference.loading",
    "predict": "inference.predict",
    "review": "evaluation.review",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'unet' has no attribute {name!r}")
    return getattr(import_module(f"unet.{_MODULES[name]}"), name)
