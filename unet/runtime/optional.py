"""Packages of extras, which only some users install."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

# Distribution and extra of the packages whose names differ from theirs.
_DISTRIBUTIONS = {"skimage": "scikit-image"}
_EXTRAS = {
    "imagecodecs": "tiff",
    "matplotlib": "plots",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pycocotools": "annotations",
    "rasterio": "tiff",
    "scipy": "metrics",
    "skimage": "metrics",
    "tifffile": "tiff",
}


def is_installed(*packages: str) -> bool:
    """Whether all packages can be imported."""
    return all(find_spec(package) is not None for package in packages)


def import_extra(module: str, feature: str, extra: str | None = None) -> ModuleType:
    """Import a module, such as `scipy.ndimage`, for a feature; None is the package's usual extra.

    Raises:
        ValueError: if the package is not installed; the message names the feature and the extra.
    """
    package = module.partition(".")[0]
    if not is_installed(package):
        raise ValueError(
            f"{feature}: needs {_DISTRIBUTIONS.get(package, package)}; install it with "
            f"pip install 'unet[{extra or _EXTRAS.get(package, package)}]'"
        )
    return import_module(module)
